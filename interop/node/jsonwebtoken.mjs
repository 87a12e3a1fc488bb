import { createServer } from 'node:http'
import jwt from 'jsonwebtoken'
import { JwksClient } from 'jwks-rsa'

const { ISSUER, JWKS_URL, AUDIENCE, PORT } = process.env
const jwks = new JwksClient({ jwksUri: JWKS_URL })
const key = ({ kid }, done) => jwks.getSigningKey(kid, (error, key) => done(error, key?.getPublicKey()))

createServer((request, response) => {
  const [, token] = /^Bearer (.+)$/i.exec(request.headers.authorization) ?? []
  jwt.verify(token, key, { issuer: ISSUER, audience: AUDIENCE, algorithms: ['RS256'] }, (error, claims) => {
    if (error) response.writeHead(401, { 'WWW-Authenticate': 'Bearer error="invalid_token"' }).end()
    else response.end(claims.sub)
  })
}).listen(PORT, '127.0.0.1')
