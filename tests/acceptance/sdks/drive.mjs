// Drives the official JavaScript SDK through a sandbox's life. Run in a directory where `e2b` is installed.
// Ends with one line of JSON that names the steps that were taken; any failure is an exception.
import assert from 'node:assert/strict'
import { Sandbox } from 'e2b'

const steps = []
const sandbox = await Sandbox.create({ timeoutMs: 120_000, metadata: { sdk: 'js & co' }, envs: { WHO: 'me' } })
steps.push('create')

const done = await sandbox.commands.run('echo "hello $WHO" && id -un && pwd')
assert.deepEqual(done.stdout.split('\n').slice(0, 3), ['hello me', 'user', '/home/user'])
steps.push('commands')

await sandbox.files.write('notes/deep.txt', '4' + '2'.repeat(100_000))
assert.equal((await sandbox.files.read('notes/deep.txt')).length, 100_001)
assert.deepEqual((await sandbox.files.list('notes')).map((entry) => entry.name), ['deep.txt'])
assert.equal(await sandbox.files.exists('nowhere'), false)
steps.push('files')

const count = 'i=0; while true; do i=$((i+1)); echo $i > count.new; mv count.new count; sleep 0.05; done'
await sandbox.commands.run(count, { background: true })
await sandbox.commands.run('until [ -s count ]; do sleep 0.02; done')
assert.equal(await sandbox.pause(), true)
assert.equal(await sandbox.isRunning(), false)
assert.equal((await Sandbox.getInfo(sandbox.sandboxId)).state, 'paused')
const again = await Sandbox.connect(sandbox.sandboxId)
const before = Number(await again.files.read('count'))
await again.commands.run(`until [ $(cat count) -gt ${before + 2} ]; do sleep 0.02; done`)
await again.setTimeout(240_000)
steps.push('pause and resume')

const clones = await again.fork({ count: 2 })
for (const one of clones) {
  const clone = one.sandbox ?? one
  assert.equal((await clone.commands.run('hostname')).stdout.trim(), clone.sandboxId)
  assert.equal(await clone.kill(), true)
}
steps.push('fork')

const snapshot = await again.createSnapshot()
const made = await Sandbox.create(snapshot.snapshotId, { timeoutMs: 60_000 })
assert.equal((await made.files.read('notes/deep.txt')).length, 100_001)
await made.kill()
assert.equal(await Sandbox.deleteSnapshot(snapshot.snapshotId), true)
assert.equal(await Sandbox.deleteSnapshot(snapshot.snapshotId), false)
steps.push('snapshot')

const pages = Sandbox.list({ query: { metadata: { sdk: 'js & co' } } })
assert.deepEqual((await pages.nextItems()).map((item) => item.sandboxId), [sandbox.sandboxId])
assert.ok(Array.isArray(await again.getMetrics()))
steps.push('list')

await again.updateNetwork({ allowOut: ['good.test'], denyOut: ({ allTraffic }) => [allTraffic] })
const network = (await again.getInfo()).network
assert.deepEqual([network.allowOut, network.denyOut], [['good.test'], ['0.0.0.0/0']])
const curl = 'curl -sS --connect-timeout 3 --max-time 10 http://1.1.1.1/ || echo closed'
assert.equal((await again.commands.run(curl)).stdout, 'closed\n')
await again.updateNetwork({})
assert.equal((await again.getInfo()).network.denyOut, undefined)
steps.push('network')

assert.equal(await again.kill(), true)
assert.equal(await Sandbox.kill(sandbox.sandboxId), false)
assert.equal(await sandbox.isRunning(), false)
steps.push('kill')
console.log(JSON.stringify(steps))
