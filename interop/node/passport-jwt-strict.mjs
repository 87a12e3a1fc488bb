import express from 'express'
import jwksRsa from 'jwks-rsa'
import passport from 'passport'
import { ExtractJwt, Strategy } from 'passport-jwt'

const { ISSUER, JWKS_URL, AUDIENCE, PORT } = process.env
const key = jwksRsa.passportJwtSecret({ cache: true, rateLimit: true, jwksRequestsPerMinute: 5, jwksUri: JWKS_URL })
const critical = token => {
  try {
    return 'crit' in JSON.parse(Buffer.from(token.split('.')[0], 'base64url'))
  } catch {
    return true
  }
}
passport.use(new Strategy({
  jwtFromRequest: ExtractJwt.fromAuthHeaderAsBearerToken(),
  secretOrKeyProvider: (request, token, done) => critical(token)
    ? done(null, null) : key(request, token, done),
  issuer: ISSUER, audience: AUDIENCE, algorithms: ['RS256'],
}, (claims, done) => done(null, claims.exp && claims)))

const app = express()
app.get('/', passport.authenticate('jwt', { session: false }), (request, response) => response.send(request.user.sub))
app.listen(PORT, '127.0.0.1')
