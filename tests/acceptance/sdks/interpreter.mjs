// Drives the official JavaScript SDK of the code interpreter. Run in a directory where it is installed.
import assert from 'node:assert/strict'
import { Sandbox } from '@e2b/code-interpreter'

const sandbox = await Sandbox.create({ timeoutMs: 300_000, envs: { WHO: 'me' } })
try {
  const sum = await sandbox.runCode('x = 41\nx + 1')
  assert.equal(sum.text, '42')
  assert.equal(sum.results[0].isMainResult, true)
  assert.equal((await sandbox.runCode('x')).text, '41')
  assert.equal((await sandbox.runCode('import os; os.environ["WHO"]')).text, 'me')

  const heard = []
  const printed = await sandbox.runCode('import sys\nprint("out")\nprint("err", file=sys.stderr)', {
    onStdout: (said) => heard.push([said.line, said.error]),
    onStderr: (said) => heard.push([said.line, said.error]),
  })
  assert.deepEqual(heard.sort(), [['err\n', true], ['out\n', false]])
  assert.deepEqual(printed.logs, { stdout: ['out\n'], stderr: ['err\n'] })

  const failed = await sandbox.runCode('1 / 0')
  assert.deepEqual([failed.error.name, failed.error.value], ['ZeroDivisionError', 'division by zero'])

  const frame = await sandbox.runCode('import pandas\npandas.DataFrame({"a": [1, 2], "b": ["x", None]})')
  assert.deepEqual(frame.results[0].data, { a: [1, 2], b: ['x', null] })
  assert.match(frame.results[0].html, /<table/)

  const plot = 'import matplotlib.pyplot as plt\nplt.bar(["a", "b"], [3, 5])\nplt.title("T")\nplt.show()'
  const [bars] = (await sandbox.runCode(plot)).results
  assert.ok(Buffer.from(bars.png, 'base64').subarray(1, 4).equals(Buffer.from('PNG')))
  assert.deepEqual([bars.chart.type, bars.chart.title], ['bar', 'T'])
  assert.deepEqual(bars.chart.elements.map((each) => [each.label, Number(each.value)]), [['a', 3], ['b', 5]])
  const line = 'plt.plot([1, 2], [3, float("nan")], label="l")\nplt.show()'
  const [points] = (await sandbox.runCode(line)).results
  assert.deepEqual(points.chart.elements[0].points, [[1, 3], [2, null]])

  const context = await sandbox.createCodeContext({ language: 'js', cwd: '/tmp' })
  assert.equal((await sandbox.runCode('const f = (n) => n * 2; f(21)', { context })).text, '42')
  assert.equal((await sandbox.runCode('process.cwd()', { context })).text, '/tmp')
  await assert.rejects(sandbox.runCode('while (true);', { context, timeoutMs: 1500 }))
  assert.equal((await sandbox.runCode('f(2)', { context })).text, '4')
  assert.ok((await sandbox.listCodeContexts()).some((each) => each.id === context.id))
  await sandbox.restartCodeContext(context)
  assert.equal((await sandbox.runCode('f', { context })).error.name, 'ReferenceError')
  await sandbox.removeCodeContext(context)
  assert.equal((await sandbox.runCode('const n: number = 3; n', { language: 'ts' })).text, '3')
  assert.deepEqual((await sandbox.runCode('echo $WHO', { language: 'bash' })).logs.stdout, ['me\n'])
} finally {
  await sandbox.kill()
}
