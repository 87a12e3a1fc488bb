import express from 'express'
import { expressjwt } from 'express-jwt'
import jwksRsa from 'jwks-rsa'

const { ISSUER, JWKS_URL, AUDIENCE, PORT } = process.env
const app = express()
app.use(expressjwt({
  secret: jwksRsa.expressJwtSecret({ cache: true, rateLimit: true, jwksRequestsPerMinute: 5, jwksUri: JWKS_URL }),
  issuer: ISSUER, audience: AUDIENCE, algorithms: ['RS256'],
}))
app.get('/', (request, response) => response.send(request.auth.sub))
app.listen(PORT, '127.0.0.1')
