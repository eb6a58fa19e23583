// Drives the official JavaScript SDK through everything it can do. Run in a directory where `e2b` is installed.
// Ends with one line of JSON: for each step `ok`, or `lacks` where this release has no such call.
import assert from 'node:assert/strict'
import { Sandbox } from 'e2b'

// The SDK has a connection pool of its own, which asks no environment for a proxy.
const reach = process.env.SDK_PROXY ? { proxy: process.env.SDK_PROXY } : {}
const label = { sdk: 'js & co' }
let sandbox = await Sandbox.create({ ...reach, timeoutMs: 120_000, metadata: label, envs: { WHO: 'me' } })
const outcome = { create: 'ok' }

const step = async (name, take, there = true) => {
  outcome[name] = 'lacks'
  if (!there) return
  try {
    await take()
  } catch (error) {
    console.error(`at the step '${name}', after`, outcome)
    throw error
  }
  outcome[name] = 'ok'
}

await step('commands', async () => {
  const done = await sandbox.commands.run('echo "hello $WHO" && id -un && pwd')
  assert.deepEqual(done.stdout.split('\n').slice(0, 3), ['hello me', 'user', '/home/user'])
  let heard = ''
  await sandbox.commands.run('echo heard; echo shout >&2', { onStdout: (text) => { heard += text } })
  assert.equal(heard, 'heard\n')
  assert.equal((await sandbox.commands.run('whoami', { user: 'root' })).stdout, 'root\n')
  await assert.rejects(sandbox.commands.run('exit 3'), (error) => error.exitCode === 3)
})

await step('input', async () => {
  const handle = await sandbox.commands.run('head -c 3', { background: true, stdin: true })
  await sandbox.commands.sendStdin(handle.pid, 'abc')
  assert.equal((await handle.wait()).stdout, 'abc')
})

await step('processes', async () => {
  const handle = await sandbox.commands.run('sleep 600', { background: true })
  assert.ok((await sandbox.commands.list()).some((each) => each.pid === handle.pid))
  assert.equal(await sandbox.commands.kill(handle.pid), true)
  assert.equal(await sandbox.commands.kill(handle.pid), false)
})

await step('timeouts', async () => {
  await assert.rejects(sandbox.commands.run('sleep 60', { timeoutMs: 1000 }))
})

await step('terminal', async () => {
  let heard = ''
  const decode = new TextDecoder()
  const handle = await sandbox.pty.create({ cols: 80, rows: 24, onData: (data) => { heard += decode.decode(data) } })
  await sandbox.pty.resize(handle.pid, { cols: 100, rows: 30 })
  await sandbox.pty.sendInput(handle.pid, new TextEncoder().encode('echo $(tput cols)x$(tput lines); exit\n'))
  await handle.wait()
  assert.match(heard, /100x30/)
})

await step('files', async () => {
  await sandbox.files.write('notes/deep.txt', '4' + '2'.repeat(100_000))
  assert.equal((await sandbox.files.read('notes/deep.txt')).length, 100_001)
  assert.equal((await sandbox.files.read('notes/deep.txt', { format: 'bytes' }))[0], 0x34)
  assert.deepEqual((await sandbox.files.list('notes')).map((entry) => entry.name), ['deep.txt'])
  assert.equal(await sandbox.files.exists('nowhere'), false)
  assert.equal(await sandbox.files.makeDir('made'), true)
  assert.equal(await sandbox.files.makeDir('made'), false)
  await sandbox.files.remove('made')
  await assert.rejects(sandbox.files.read('nowhere'))
})

await step('file facts', async () => {
  const info = await sandbox.files.getInfo('notes/deep.txt')
  assert.deepEqual([info.size, info.mode, info.owner], [100_001, 0o644, 'user'])
})

await step('watch', async () => {
  await sandbox.files.makeDir('watched')
  let tell
  const told = new Promise((resolve) => { tell = resolve })
  const handle = await sandbox.files.watchDir('watched', tell)
  await sandbox.files.write('watched/new.txt', '1')
  assert.equal((await told).name, 'new.txt')
  await handle.stop()
})

await step('signed URLs', async () => {
  assert.match(await sandbox.downloadUrl('notes/deep.txt'), /path=notes/)
})

await step('git', async () => {
  await sandbox.git.init('/home/user/repo', { initialBranch: 'main' })
  await sandbox.git.configureUser('Ada', 'ada@example.org', { scope: 'local', path: '/home/user/repo' })
  await sandbox.files.write('repo/a.txt', '1')
  await sandbox.git.add('/home/user/repo')
  await sandbox.git.commit('/home/user/repo', 'first')
  assert.equal((await sandbox.git.status('/home/user/repo')).currentBranch, 'main')
}, sandbox.git !== undefined)

await step('pause and resume', async () => {
  const count = 'i=0; while true; do i=$((i+1)); echo $i > count.new; mv count.new count; sleep 0.05; done'
  const counting = await sandbox.commands.run(count, { background: true })
  await sandbox.commands.run('until [ -s count ]; do sleep 0.02; done')
  await sandbox.pause()
  assert.equal(await sandbox.isRunning(), false)
  assert.equal((await Sandbox.getInfo(sandbox.sandboxId, reach)).state, 'paused')
  sandbox = await Sandbox.connect(sandbox.sandboxId, reach)
  const before = Number(await sandbox.files.read('count'))
  await sandbox.commands.run(`until [ $(cat count) -gt ${before + 2} ]; do sleep 0.02; done`)
  await sandbox.setTimeout(240_000)
  assert.equal(await sandbox.commands.kill(counting.pid), true)
})

await step('fork', async () => {
  for (const one of await sandbox.fork({ count: 2 })) {
    const clone = one.sandbox ?? one
    assert.equal((await clone.commands.run('hostname')).stdout.trim(), clone.sandboxId)
    assert.equal(await clone.kill(), true)
  }
}, sandbox.fork !== undefined)

await step('snapshot', async () => {
  const snapshot = await sandbox.createSnapshot()
  const made = await Sandbox.create(snapshot.snapshotId, { ...reach, timeoutMs: 60_000 })
  assert.equal((await made.files.read('notes/deep.txt')).length, 100_001)
  await made.kill()
  assert.equal(await Sandbox.deleteSnapshot(snapshot.snapshotId, reach), true)
  assert.equal(await Sandbox.deleteSnapshot(snapshot.snapshotId, reach), false)
}, sandbox.createSnapshot !== undefined)

await step('list', async () => {
  const pages = Sandbox.list({ ...reach, query: { metadata: label } })
  assert.deepEqual((await pages.nextItems()).map((item) => item.sandboxId), [sandbox.sandboxId])
  assert.equal(pages.hasNext, false)
})

await step('metrics', async () => assert.ok(Array.isArray(await sandbox.getMetrics())))

await step('ports', async () => assert.ok(sandbox.getHost(8080).startsWith(`8080-${sandbox.sandboxId}.`)))

await step('no internet', async () => {
  const closed = await Sandbox.create({ ...reach, timeoutMs: 60_000, allowInternetAccess: false })
  const done = await closed.commands.run('curl --silent --max-time 5 http://1.1.1.1/ || echo shut')
  assert.equal(done.stdout, 'shut\n')
  await closed.kill()
})

await step('network rules', async () => {
  await sandbox.updateNetwork({ allowOut: ['good.test'], denyOut: ({ allTraffic }) => [allTraffic] })
  const network = (await sandbox.getInfo()).network
  assert.deepEqual([network.allowOut, network.denyOut], [['good.test'], ['0.0.0.0/0']])
  const curl = 'curl -sS --connect-timeout 3 --max-time 10 http://1.1.1.1/ || echo closed'
  assert.equal((await sandbox.commands.run(curl)).stdout, 'closed\n')
  await sandbox.updateNetwork({})
  assert.equal((await sandbox.getInfo()).network.denyOut, undefined)
}, sandbox.updateNetwork !== undefined)

await step('MCP failure is told', async () => {
  const metadata = { sdk: 'js & co mcp' }
  await assert.rejects(Sandbox.create('base', { ...reach, timeoutMs: 60_000, metadata, mcp: { exa: { apiKey: 'none' } } }))
  assert.deepEqual(await Sandbox.list({ ...reach, query: { metadata } }).nextItems(), [])
})

assert.equal(await sandbox.kill(), true)
assert.equal(await Sandbox.kill(sandbox.sandboxId, reach), false)
assert.equal(await sandbox.isRunning(), false)
outcome.kill = 'ok'
console.log(JSON.stringify(outcome))
