// Drives the template API of the official JavaScript SDK: `templates_tour.mjs <prefix> <registry>`, in a directory
// where `e2b` is installed. Ends with one line of JSON: for each step `ok`. Any failure is an exception. Templates are
// called `<prefix>-…`; the registry (`host:port`) has `team/tool:1.0` for whoever knows the password.
import assert from 'node:assert/strict'
import { mkdir, mkdtemp, rm, writeFile } from 'node:fs/promises'
import { tmpdir } from 'node:os'
import { dirname, join } from 'node:path'
import { BuildError, Sandbox, Template, TemplateError, waitForPort } from 'e2b'

const [prefix, registry] = process.argv.slice(2)
const outcome = {}

const step = async (name, take) => {
  try {
    await take()
  } catch (error) {
    console.error(`at the step '${name}', after`, outcome)
    throw error
  }
  outcome[name] = 'ok'
}

const inSandbox = async (template, use) => {
  const sandbox = await Sandbox.create(template, { timeoutMs: 120_000 })
  try {
    await use(sandbox, async (command, options) => (await sandbox.commands.run(command, options)).stdout)
  } finally {
    await sandbox.kill()
  }
}

const fileContextPath = await mkdtemp(join(tmpdir(), 'templates-'))
const FILES = { 'note.txt': 'a note\n', 'app/main.txt': 'main\n', 'app/secret.key': 'no\n', '.dockerignore': '**/*.key\n' }
for (const [name, text] of Object.entries(FILES)) {
  await mkdir(dirname(join(fileContextPath, name)), { recursive: true })
  await writeFile(join(fileContextPath, name), text)
}

await step('fromPythonImage, every kind of step, tags, logs', async () => {
  const template = Template({ fileContextPath })
    .fromPythonImage('3')
    .setEnvs({ WHO: 'world', GREETING: 'hello' })
    .copy('note.txt', '/srv/note.txt')
    .copyItems([{ src: 'app', dest: 'app', user: 'root', mode: 0o750 }])
    .setUser('root')
    .makeDir('/made', { mode: 0o711 })
    .rename('/srv/note.txt', '/srv/renamed.txt')
    .makeSymlink('/srv/renamed.txt', '/made/link')
    .setUser('user')
    .runCmd(['echo $GREETING $WHO > said', 'id -un >> said'])
    .runCmd('id -un > /by-root', { user: 'root' })
    .setWorkdir('/home/user/work')
  const lines = []
  const onBuildLogs = (entry) => lines.push(entry.message)
  const built = await Template.build(template, `${prefix}-image:v1`, { tags: ['stable'], cpuCount: 1, memoryMB: 512, onBuildLogs })
  assert.ok(lines.some((line) => line.includes('RUN echo $GREETING')), lines)
  assert.ok(lines.some((line) => line.includes("Uploaded 'app'")), lines)
  await inSandbox(`${prefix}-image:stable`, async (sandbox, run) => {
    assert.equal(await run('cat ../said /by-root; pwd'), 'hello world\nuser\nroot\n/home/user/work\n')
    assert.equal(await run('cat /made/link; ls -A /home/user/app', { user: 'root' }), 'a note\nmain.txt\n')
    const stat = "stat -c '%U %a' /made /home/user/app/main.txt /srv/renamed.txt"
    assert.equal(await run(stat, { user: 'root' }), 'root 711\nroot 750\nuser 644\n')
    const info = await sandbox.getInfo()
    assert.deepEqual([info.cpuCount, info.memoryMB, info.templateId], [1, 512, built.templateId])
  })
})

await step('fromBaseImage, in the background, something that runs already', async () => {
  const template = Template()
    .fromBaseImage()
    .pipInstall('six==1.17.0')
    .setStartCmd('python3 -m http.server 8000 --directory /etc', waitForPort(8000))
  const info = await Template.buildInBackground(template, `${prefix}-base`)
  let status = await Template.getBuildStatus(info)
  assert.ok(['building', 'waiting'].includes(status.status), status.status)
  const lines = []
  while (['building', 'waiting'].includes(status.status)) {
    lines.push(...status.logEntries)
    await new Promise((resolve) => { setTimeout(resolve, 100) })
    status = await Template.getBuildStatus(info, { logsOffset: lines.length })
  }
  assert.equal(status.status, 'ready', JSON.stringify(status.reason))
  await inSandbox(`${prefix}-base`, async (_, run) => {
    assert.match(await run('curl -s localhost:8000/passwd'), /root:x:0:0/)
    assert.equal(await run("python3 -c 'import six; print(six.__version__)'"), '1.17.0\n')
  })
})

await step('fromDebianImage', async () => {
  const template = Template().fromDebianImage('bookworm-slim').runCmd('cat /etc/debian_version > release')
  await Template.build(template, `${prefix}-debian`)
  await inSandbox(`${prefix}-debian`, async (_, run) => assert.match(await run('cat release'), /^12/))
})

await step('fromImage with credentials', async () => {
  const from = (password) => Template().fromImage(`${registry}/team/tool:1.0`, { username: 'me', password }).runCmd('true')
  await Template.build(from('secret-word'), `${prefix}-private`)
  await assert.rejects(Template.build(from('wrong-word'), `${prefix}-private`), (error) => {
    assert.ok(error instanceof BuildError)
    assert.match(error.message, /cannot be fetched/)
    assert.ok(!error.message.includes('wrong-word'))
    return true
  })
})

await step('fromDockerfile, fromTemplate', async () => {
  const dockerfile = 'FROM python:3\nENV A=1\nUSER root\nRUN echo made > /made\nUSER user\nWORKDIR /srv\n'
  await Template.build(Template().fromDockerfile(dockerfile), `${prefix}-dockerfile`)
  await Template.build(Template().fromTemplate(`${prefix}-dockerfile`).runCmd('echo $A > /home/user/a'), `${prefix}-upon`)
  await inSandbox(`${prefix}-upon`, async (_, run) => assert.equal(await run('cat /made /home/user/a; pwd'), 'made\n1\n/srv\n'))
})

await step('a failure says the reason', async () => {
  const template = Template().fromTemplate(`${prefix}-dockerfile`).runCmd('true').runCmd('echo why >&2; exit 3')
  await assert.rejects(Template.build(template, `${prefix}-dockerfile`), (error) => {
    assert.ok(error instanceof BuildError)
    assert.match(error.message, /failed to run command 'echo why >&2; exit 3': exit status 3/)
    return true
  })
  await inSandbox(`${prefix}-dockerfile`, async (_, run) => assert.equal(await run('cat /made'), 'made\n'))
})

await step('the cache, and passing it by', async () => {
  const built = async (options) => {
    const lines = []
    const template = Template().fromPythonImage().runCmd(`echo ${prefix}; date +%N > /home/user/now`)
    await Template.build(template, `${prefix}-cached`, { ...options, onBuildLogs: (entry) => lines.push(entry.message) })
    return lines.find((line) => line.includes('RUN echo')).startsWith('CACHED')
  }
  assert.deepEqual([await built(), await built(), await built({ skipCache: true })], [false, true, false])
})

await step('names', async () => {
  assert.equal(await Template.exists(`${prefix}-base`), true)
  assert.equal(await Template.aliasExists(`${prefix}-never`), false)
})

await step('tags', async () => {
  const name = `${prefix}-image`
  const given = await Template.assignTags(`${name}:v1`, ['production', 'v1.0'])
  assert.deepEqual(given.tags.toSorted(), ['production', 'v1.0'])
  const known = await Template.getTags(name)
  assert.deepEqual(known.map((each) => each.tag).toSorted(), ['production', 'stable', 'v1', 'v1.0'])
  assert.ok(known.every((each) => each.buildId === given.buildId))
  await Template.removeTags(name, ['production', 'v1.0'])
  await assert.rejects(Template.removeTags(name, 'v1.0'), TemplateError)
  assert.deepEqual((await Template.getTags(`default/${name}`)).map((each) => each.tag).toSorted(), ['stable', 'v1'])
})

await rm(fileContextPath, { recursive: true })
console.log(JSON.stringify(outcome))
