// Runs in a browser, on a page of another origin than the server's. It tells the test what
// the page can do with the server: a result each, or the class of the error.
import { createRemoteJWKSet, jwtVerify } from '/node_modules/jose/dist/webapi/index.js'

const { server, token } = await (await fetch('/given')).json()
const jwks = new URL(server + '/.well-known/jwks.json')

const verify = async (options) => (await jwtVerify(token, createRemoteJWKSet(jwks, options), { issuer: server })).payload.sub
const read = async (path, options) => (await fetch(server + path, options)).json()

const attempts = {
  jose: () => verify(),
  'jose with a header': () => verify({ headers: { 'x-team': 'blue' } }),
  'openid-configuration': async () => (await read('/.well-known/openid-configuration')).issuer,
  'oauth-authorization-server': async () => (await read('/.well-known/oauth-authorization-server')).issuer,
  faults: async () => (await read('/faults'))[0].fault,
  'POST /auth': async () => (await read('/auth', { method: 'POST' })).token,
  'POST /auth with JSON': async () =>
    (await read('/auth', { method: 'POST', body: '{}', headers: { 'content-type': 'application/json' } })).token,
}
const results = {}
for (const [name, attempt] of Object.entries(attempts)) {
  results[name] = await attempt().catch((error) => error.constructor.name)
}
await fetch(location.hash.slice(1), { method: 'POST', mode: 'no-cors', body: JSON.stringify(results) })
