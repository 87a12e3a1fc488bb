import { createServer } from 'node:http'
import OktaJwtVerifier from '@okta/jwt-verifier'

const { ISSUER, JWKS_URL, AUDIENCE, PORT } = process.env
const verifier = new OktaJwtVerifier({ issuer: ISSUER, jwksUri: JWKS_URL, testing: { disableHttpsCheck: true } })

createServer(async (request, response) => {
  const [, token, encoded] = /^Bearer (([\w-]+)\.[\w-]+\.[\w-]+)$/i.exec(request.headers.authorization) ?? []
  try {
    if ('crit' in JSON.parse(Buffer.from(encoded, 'base64url'))) throw new Error('unknown extensions')
    const { claims } = await verifier.verifyAccessToken(token, AUDIENCE)
    if (typeof claims.exp !== 'number') throw new Error('no exp')
    response.end(claims.sub)
  } catch {
    response.writeHead(401, { 'WWW-Authenticate': 'Bearer error="invalid_token"' }).end()
  }
}).listen(PORT, '127.0.0.1')
