import { createServer } from 'node:http'
import { createRemoteJWKSet, errors, jwtVerify } from 'jose'

const { ISSUER, JWKS_URL, AUDIENCE, PORT } = process.env
const jwks = createRemoteJWKSet(new URL(JWKS_URL))

createServer(async (request, response) => {
  const [, token] = /^Bearer (.+)$/i.exec(request.headers.authorization) ?? []
  try {
    const { payload } = await jwtVerify(token, jwks, { issuer: ISSUER, audience: AUDIENCE, algorithms: ['RS256'] })
    response.end(payload.sub)
  } catch (error) {
    response.writeHead(error instanceof errors.JOSEError ? 401 : 500, { 'WWW-Authenticate': 'Bearer error="invalid_token"' }).end()
  }
}).listen(PORT, '127.0.0.1')
