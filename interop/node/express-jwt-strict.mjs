import express from 'express'
import { expressjwt, UnauthorizedError } from 'express-jwt'
import jwksRsa from 'jwks-rsa'

const { ISSUER, JWKS_URL, AUDIENCE, PORT } = process.env
const key = jwksRsa.expressJwtSecret({
  cache: true, rateLimit: true, jwksRequestsPerMinute: 5, jwksUri: JWKS_URL,
  handleSigningKeyError: (error, done) => done(new UnauthorizedError('invalid_token', error)),
})
const app = express()
app.use(expressjwt({
  secret: async (request, token) => {
    if (token?.header.crit || !token?.payload.exp) throw new UnauthorizedError('invalid_token', { message: 'unknown extensions, or no exp' })
    return key(request, token)
  },
  issuer: ISSUER, audience: AUDIENCE, algorithms: ['RS256'],
}))
app.get('/', (request, response) => response.send(request.auth.sub))
app.listen(PORT, '127.0.0.1')
