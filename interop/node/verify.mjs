// Runs the JavaScript recipes of ../README.md. It reads [{name, code, tokens: {fault: token}}] and
// prints {versions, results: {name: {fault: error}}}, with no error where a token was accepted.
import { mkdtempSync, readFileSync, rmSync, writeFileSync } from 'node:fs'
import { text } from 'node:stream/consumers'

const here = new URL('.', import.meta.url).pathname
const dir = mkdtempSync(`${here}.recipes-`) // here, so that imports find node_modules

// load returns a recipe's function in a new module, which has no cache of another.
let loaded = 0
async function load(file) {
  const { app, verify } = await import(`${file}?${loaded++}`)
  return app ? token => ask(app, token) : verify
}

async function ask(app, token) {
  app.set('env', 'test') // logs no errors
  const server = app.listen(0, '127.0.0.1')
  await new Promise(resolve => server.once('listening', resolve))
  const response = await fetch(`http://127.0.0.1:${server.address().port}/`, {
    headers: { authorization: `Bearer ${token}`, connection: 'close' },
  })
  server.close()
  if (response.status !== 200) throw new Error(`${response.status} ${response.headers.get('www-authenticate')}`)
}

async function attempt(verify, token) {
  try {
    await verify(token)
    return ''
  } catch (error) {
    return `${error.name}: ${error.message}`
  }
}

const read = file => JSON.parse(readFileSync(here + file))
const versions = Object.keys(read('package.json').dependencies)
  .map(name => `${name} ${read(`node_modules/${name}/package.json`).version}`)
const results = {}
try {
  for (const [i, { name, code, tokens }] of JSON.parse(await text(process.stdin)).entries()) {
    const file = `${dir}/${i}.mjs`
    const exported = code.includes('const app') ? 'app' : 'verify'
    writeFileSync(file, code.replace('app.listen(3000)', '') + `\nexport { ${exported} }\n`)
    const errors = results[name] = {}
    const veteran = await load(file) // meets all tokens
    for (const [fault, token] of Object.entries(tokens)) {
      errors[fault] = await attempt(await load(file), token)
      await attempt(veteran, token)
    }
    errors['good at last'] = await attempt(veteran, tokens.good)
  }
} finally {
  rmSync(dir, { recursive: true })
}
process.stdout.write(JSON.stringify({ versions, results }), () => process.exit()) // timers of caches go on
