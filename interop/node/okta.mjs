import { createServer } from 'node:http'
import OktaJwtVerifier from '@okta/jwt-verifier'

const { ISSUER, JWKS_URL, AUDIENCE, PORT } = process.env
const verifier = new OktaJwtVerifier({ issuer: ISSUER, jwksUri: JWKS_URL, testing: { disableHttpsCheck: true } })

createServer(async (request, response) => {
  const [, token] = /^Bearer (.+)$/i.exec(request.headers.authorization) ?? []
  try {
    const { claims } = await verifier.verifyAccessToken(token, AUDIENCE)
    response.end(claims.sub)
  } catch {
    response.writeHead(401, { 'WWW-Authenticate': 'Bearer error="invalid_token"' }).end()
  }
}).listen(PORT, '127.0.0.1')
