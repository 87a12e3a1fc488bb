import { createServer } from 'node:http'

const { ISSUER, JWKS_URL, AUDIENCE, PORT } = process.env
const { fetch } = globalThis // Clerk reads keys from /v1/jwks of its own API
globalThis.fetch = (url, options) => fetch(String(url).endsWith('/v1/jwks') ? JWKS_URL : url, options)
const { verifyToken } = await import('@clerk/backend')

createServer(async (request, response) => {
  const [, token] = /^Bearer (.+)$/i.exec(request.headers.authorization) ?? []
  try {
    const claims = await verifyToken(token, { secretKey: 'sk_test_1', apiUrl: ISSUER, audience: AUDIENCE })
    response.end(claims.sub)
  } catch {
    response.writeHead(401, { 'WWW-Authenticate': 'Bearer error="invalid_token"' }).end()
  }
}).listen(PORT, '127.0.0.1')
