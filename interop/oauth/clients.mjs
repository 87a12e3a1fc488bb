// Has an OAuth client ask for tokens: node clients.mjs CLIENT. It reads the asks on stdin,
// {"issuer", "id", "asks": [{"secret", "scope", "query"}]}, and prints what the client makes of
// each answer: [{"token", "scope", "expires_in"} or {"error"}].
import { readFileSync } from 'node:fs'
import axios from 'axios'
import * as oauth from 'oauth4webapi'
import * as openid from 'openid-client'
import simple from 'simple-oauth2'
import { fetch } from 'undici'

const { issuer, id, asks } = JSON.parse(readFileSync(0))
const plain = { [oauth.allowInsecureRequests]: true } // http

// openid-client and oauth4webapi find the token endpoint by discovery: algorithm oidc or oauth2.
const openidClient = (algorithm, authentication) => async ({ secret, scope, query }) => {
  const found = await openid.discovery(new URL(issuer), id, {}, authentication(secret), {
    algorithm, execute: [openid.allowInsecureRequests],
  })
  const server = found.serverMetadata()
  const config = new openid.Configuration({ ...server, token_endpoint: server.token_endpoint + query }, id, {}, authentication(secret))
  openid.allowInsecureRequests(config)
  return openid.clientCredentialsGrant(config, scope ? { scope } : {})
}

const oauth4webapi = (algorithm, authentication) => async ({ secret, scope, query }) => {
  const url = new URL(issuer)
  const server = await oauth.processDiscoveryResponse(url, await oauth.discoveryRequest(url, { algorithm, ...plain }))
  const endpoint = { ...server, token_endpoint: server.token_endpoint + query }
  const client = { client_id: id }
  const response = await oauth.clientCredentialsGrantRequest(endpoint, client, authentication(secret), scope ? { scope } : {}, plain)
  return oauth.processClientCredentialsResponse(endpoint, client, response)
}

const simpleOAuth2 = (options) => async ({ secret, scope, query }) => {
  const config = { client: { id, secret }, auth: { tokenHost: issuer, tokenPath: '/auth' + query }, options }
  return (await new simple.ClientCredentials(config).getToken(scope ? { scope } : {})).token
}

const fields = (more) => new URLSearchParams({ grant_type: 'client_credentials', ...more })
const inForm = ({ secret, scope }) => fields({ client_id: id, client_secret: secret, scope })

const viaAxios = async (query, body, options) => (await axios.post(issuer + '/auth' + query, body, options)).data

const viaUndici = async (query, body, headers) => {
  const response = await fetch(issuer + '/auth' + query, { method: 'POST', body, headers })
  const json = await response.json()
  return response.ok ? json : Promise.reject(json)
}

const clients = {
  'openid-client, in the form': openidClient('oidc', openid.ClientSecretPost),
  'openid-client, by Basic': openidClient('oauth2', openid.ClientSecretBasic),
  'oauth4webapi, in the form': oauth4webapi('oidc', oauth.ClientSecretPost),
  'oauth4webapi, by Basic': oauth4webapi('oauth2', oauth.ClientSecretBasic),
  'simple-oauth2, in the form': simpleOAuth2({ authorizationMethod: 'body' }),
  'simple-oauth2, by Basic': simpleOAuth2({}),
  'axios, in the form': (ask) => viaAxios(ask.query, inForm(ask)),
  'axios, by Basic': ({ secret, scope, query }) => viaAxios(query, fields({ scope }), { auth: { username: id, password: secret } }),
  'undici, in the form': (ask) => viaUndici(ask.query, inForm(ask)),
  'undici, by Basic': ({ secret, scope, query }) =>
    viaUndici(query, fields({ scope }), { authorization: 'Basic ' + Buffer.from(`${id}:${secret}`).toString('base64') }),
}

// code returns the error code of the answer, where each library keeps it.
const code = (error) => error.error ?? error.response?.data?.error ?? error.data?.payload.error ?? error.code ?? String(error)

const answers = []
for (const ask of asks) {
  answers.push(await clients[process.argv[2]](ask).then(
    ({ access_token: token, scope, expires_in }) => ({ token, scope, expires_in }),
    (error) => ({ error: code(error) }),
  ))
}
console.log(JSON.stringify(answers))
