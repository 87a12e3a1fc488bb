import { koaJwtSecret } from 'jwks-rsa'
import Koa from 'koa'
import jwt from 'koa-jwt'

const { ISSUER, JWKS_URL, AUDIENCE, PORT } = process.env
const key = koaJwtSecret({ jwksUri: JWKS_URL, cache: true, cacheMaxEntries: 5, cacheMaxAge: 36_000_000 })
const app = new Koa()
app.silent = true // no stack trace for each 401
app.use(jwt({
  secret: async (header, claims) => {
    if (header.crit || !claims.exp) throw new Error('unknown extensions, or no exp')
    return key(header)
  },
  issuer: ISSUER, audience: AUDIENCE, algorithms: ['RS256'],
}))
app.use(context => { context.body = context.state.user.sub })
app.listen(PORT, '127.0.0.1')
