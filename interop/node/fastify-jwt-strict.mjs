import jwt from '@fastify/jwt'
import Fastify from 'fastify'
import buildGetJwks from 'get-jwks'

const { ISSUER, AUDIENCE, PORT } = process.env
const jwks = buildGetJwks({ issuersWhitelist: [ISSUER] })
const app = Fastify()
app.register(jwt, {
  decode: { complete: true },
  secret: (request, { header: { kid, alg }, payload: { iss } }) => jwks.getPublicKey({ kid, alg, domain: iss }),
  verify: { allowedIss: ISSUER, allowedAud: AUDIENCE, algorithms: ['RS256'], requiredClaims: ['iss', 'aud', 'exp'] },
})
app.addHook('onRequest', async (request, reply) => {
  try {
    await request.jwtVerify()
  } catch (error) {
    reply.code(401).header('WWW-Authenticate', 'Bearer error="invalid_token"').send(error)
  }
})
app.get('/', async request => request.user.sub)
app.listen({ port: Number(PORT), host: '127.0.0.1' })
