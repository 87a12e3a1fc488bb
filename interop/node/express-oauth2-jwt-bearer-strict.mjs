import express from 'express'
import { auth } from 'express-oauth2-jwt-bearer'

const { ISSUER, AUDIENCE, PORT } = process.env
const app = express()
app.use(({ headers: { authorization } }, response, next) => {
  if (!authorization || /^Bearer [\w-]+\.[\w-]+\.[\w-]+$/i.test(authorization)) next()
  else response.status(401).set('WWW-Authenticate', 'Bearer error="invalid_token"').end()
})
app.use(auth({ issuerBaseURL: ISSUER, audience: AUDIENCE }))
app.get('/', (request, response) => response.send(request.auth.payload.sub))
app.listen(PORT, '127.0.0.1')
