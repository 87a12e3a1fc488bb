import express from 'express'
import jwksRsa from 'jwks-rsa'
import passport from 'passport'
import { ExtractJwt, Strategy } from 'passport-jwt'

const { ISSUER, JWKS_URL, AUDIENCE, PORT } = process.env
passport.use(new Strategy({
  jwtFromRequest: ExtractJwt.fromAuthHeaderAsBearerToken(),
  secretOrKeyProvider: jwksRsa.passportJwtSecret({ cache: true, rateLimit: true, jwksRequestsPerMinute: 5, jwksUri: JWKS_URL }),
  issuer: ISSUER, audience: AUDIENCE, algorithms: ['RS256'],
}, (claims, done) => done(null, claims)))

const app = express()
app.get('/', passport.authenticate('jwt', { session: false }), (request, response) => response.send(request.user.sub))
app.listen(PORT, '127.0.0.1')
