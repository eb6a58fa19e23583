// Drives the official JavaScript SDK of the desktop. Run in a directory where it is installed.
import assert from 'node:assert/strict'
import { get } from 'node:http'
import { text } from 'node:stream/consumers'
import { Sandbox } from '@e2b/desktop'

const sandbox = await Sandbox.create({ timeoutMs: 300_000 })
try {
  const shot = Buffer.from(await sandbox.screenshot())
  assert.ok(shot.subarray(1, 4).equals(Buffer.from('PNG')))
  assert.deepEqual([shot.readUInt32BE(16), shot.readUInt32BE(20)], [1024, 768])
  assert.deepEqual(await sandbox.getScreenSize(), { width: 1024, height: 768 })
  await sandbox.moveMouse(200, 150)
  assert.deepEqual(await sandbox.getCursorPosition(), { x: 200, y: 150 })

  await sandbox.launch('st')
  const started = await sandbox.waitAndVerify(
    'xprop -id $(xdotool getwindowfocus) WM_CLASS', (done) => /"st-/.test(done.stdout), 60)
  assert.ok(started)
  await sandbox.write('echo typed > /tmp/typed')
  await sandbox.press('enter')
  assert.ok(await sandbox.waitAndVerify('cat /tmp/typed', (done) => done.stdout === 'typed\n', 30))

  await sandbox.stream.start({ requireAuth: true })
  const url = new URL(sandbox.stream.getUrl({ authKey: sandbox.stream.getAuthKey() }))
  // A server without a domain serves the same address without TLS. Names below localhost are this host, though
  // not every resolver knows it.
  const request = { host: '127.0.0.1', port: url.port, path: url.pathname + url.search, headers: { host: url.host } }
  const page = await new Promise((done, failed) => get(request, done).on('error', failed))
  assert.equal(page.statusCode, 200)
  assert.match(await text(page), /noVNC/)
  await sandbox.stream.stop()
} finally {
  await sandbox.kill()
}
