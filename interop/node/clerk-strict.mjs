import { createServer } from 'node:http'

const { ISSUER, JWKS_URL, AUDIENCE, PORT } = process.env
const { fetch } = globalThis // Clerk reads keys from /v1/jwks of its own API
globalThis.fetch = (url, options) => fetch(String(url).endsWith('/v1/jwks') ? JWKS_URL : url, options)
const { verifyToken } = await import('@clerk/backend')
const { decodeJwt } = await import('@clerk/backend/jwt')

createServer(async (request, response) => {
  const [, token] = /^Bearer (.+)$/i.exec(request.headers.authorization) ?? []
  try {
    const { header } = decodeJwt(token)
    if (header.alg !== 'RS256' || header.crit) throw new Error('another algorithm, or unknown extensions')
    const claims = await verifyToken(token, { secretKey: 'sk_test_1', apiUrl: ISSUER, audience: AUDIENCE })
    if (claims.iss !== ISSUER || !claims.aud) throw new Error('another issuer, or no audience')
    response.end(claims.sub)
  } catch {
    response.writeHead(401, { 'WWW-Authenticate': 'Bearer error="invalid_token"' }).end()
  }
}).listen(PORT, '127.0.0.1')
