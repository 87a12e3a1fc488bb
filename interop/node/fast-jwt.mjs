import { createServer } from 'node:http'
import { createVerifier } from 'fast-jwt'
import buildGetJwks from 'get-jwks'

const { ISSUER, AUDIENCE, PORT } = process.env
const jwks = buildGetJwks({ issuersWhitelist: [ISSUER] })
const verify = createVerifier({
  key: ({ header: { kid, alg } }) => jwks.getPublicKey({ kid, alg, domain: ISSUER }),
  allowedIss: ISSUER, allowedAud: AUDIENCE, algorithms: ['RS256'],
})

createServer(async (request, response) => {
  const [, token] = /^Bearer (.+)$/i.exec(request.headers.authorization) ?? []
  try {
    response.end((await verify(token)).sub)
  } catch {
    response.writeHead(401, { 'WWW-Authenticate': 'Bearer error="invalid_token"' }).end()
  }
}).listen(PORT, '127.0.0.1')
