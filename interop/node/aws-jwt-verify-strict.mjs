import { createServer } from 'node:http'
import { JwtVerifier } from 'aws-jwt-verify'

const { ISSUER, AUDIENCE, PORT } = process.env // the issuer has to be https
const verifier = JwtVerifier.create({
  issuer: ISSUER, audience: AUDIENCE,
  customJwtCheck({ header, payload }) {
    if (header.alg !== 'RS256') throw new Error('another algorithm')
    if (header.crit) throw new Error('unknown extensions')
    if (!payload.exp) throw new Error('no exp')
  },
})

createServer(async (request, response) => {
  const [, token] = /^Bearer (.+)$/i.exec(request.headers.authorization) ?? []
  try {
    response.end((await verifier.verify(token)).sub)
  } catch {
    response.writeHead(401, { 'WWW-Authenticate': 'Bearer error="invalid_token"' }).end()
  }
}).listen(PORT, '127.0.0.1')
