"use strict";
/* The JavaScript kernel: runs cells in this process's own context and speaks Jupyter's messages.

   node kernel.js LANGUAGE REQUESTS MESSAGES: descriptors of pipes that carry JSON lines. A request is
   {id, code, silent}; messages are {kind, content}, and {kind: "idle", id} ends each request.

   A cell may import, await, and declare again what an earlier cell declared; its last expression is its result. */
const fs = require("fs");
const path = require("path");
const util = require("util");
const vm = require("vm");
const { createRequire, isBuiltin } = require("module");
const { pathToFileURL } = require("url");

const LIBRARIES = "/usr/share/nodejs/"; // where Debian keeps them
const rewrite = require("./rewrite.js");

const [language, requests, messages] = process.argv.slice(2);
const DISPLAY = Symbol.for("Jupyter.display");
const BUNDLES = { _toHtml: "text/html", _toSvg: "image/svg+xml", _toPng: "image/png", _toJpeg: "image/jpeg" };

// --- talking

function say(message) {
  let bytes = Buffer.from(JSON.stringify(message) + "\n");
  while (bytes.length) bytes = bytes.subarray(fs.writeSync(Number(messages), bytes));
}

function redirect(stream, name) {
  stream.write = (chunk, encoding, done) => {
    const text = typeof chunk === "string" ? chunk : Buffer.from(chunk).toString();
    say({ kind: "stream", content: { name, text } });
    const callback = typeof encoding === "function" ? encoding : done;
    if (callback) process.nextTick(callback);
    return true;
  };
}

function bundle(value) {
  const text = { "text/plain": util.inspect(value) };
  if (value === null || (typeof value !== "object" && typeof value !== "function")) return text;
  if (typeof value[DISPLAY] === "function") return { ...text, ...value[DISPLAY]() };
  if (typeof value._toMime === "function") return { ...text, ...value._toMime() };
  for (const [method, mime] of Object.entries(BUNDLES))
    if (typeof value[method] === "function") text[mime] = value[method]();
  return text;
}

function failure(error) {
  if (!(error instanceof Error) && !util.types.isNativeError(error))
    return { ename: "Error", evalue: util.inspect(error), traceback: [`Uncaught ${util.inspect(error)}`] };
  const lines = String(error.stack ?? error).split("\n");
  const ours = lines.findIndex((line) => line.includes(__filename) || line.includes("node:vm"));
  return { ename: error.name, evalue: error.message, traceback: ours > 0 ? lines.slice(0, ours) : lines };
}

// --- running

const here = path.join(process.cwd(), "cell");
globalThis.require = createRequire(here);
globalThis.display = (value) => say({ kind: "display_data", content: { data: bundle(value), metadata: {} } });

function load(specifier) {
  if (specifier.startsWith("npm:"))
    throw new Error(`'${specifier}': install it with npm, then import it by its name`);
  if (isBuiltin(specifier) || specifier.includes("://")) return import(specifier);
  return import(pathToFileURL(require_(specifier)).href);
}
const require_ = (specifier) => globalThis.require.resolve(specifier);

let interrupted = () => {};
process.on("SIGINT", () => interrupted(Object.assign(new Error("interrupted"), { name: "KeyboardInterrupt" })));

async function run(code, name) {
  if (language === "typescript") code = javascript(code);
  const cell = rewrite(code);
  const script = new vm.Script(cell.code, { filename: name, importModuleDynamically: load });
  let value;
  try {
    value = script.runInThisContext({ breakOnSigint: true, displayErrors: false });
  } catch (error) {
    if (error?.code === "ERR_SCRIPT_EXECUTION_INTERRUPTED") error.name = "KeyboardInterrupt";
    throw error;
  }
  if (cell.awaits) {
    const stopped = new Promise((_, reject) => (interrupted = reject));
    value = await Promise.race([value, stopped]).finally(() => (interrupted = () => {}));
  }
  return cell.shows ? value : undefined;
}

function javascript(code) {
  const ts = require(LIBRARIES + "typescript");
  const { ESNext, Preserve } = { ...ts.ModuleKind, ...ts.ScriptTarget, ...ts.ImportsNotUsedAsValues };
  return ts.transpile(code, {
    target: ESNext,
    module: ts.ModuleKind.ESNext,
    importsNotUsedAsValues: Preserve,
    preserveValueImports: true,
    isolatedModules: true,
  });
}

let count = 0;
async function execute({ id, code, silent }) {
  if (!silent) say({ kind: "execute_input", content: { execution_count: ++count, code } });
  try {
    const value = await run(code, `cell ${count}`);
    if (!silent && value !== undefined) {
      const data = bundle(value);
      say({ kind: "execute_result", content: { data, metadata: {}, execution_count: count } });
    }
  } catch (error) {
    say({ kind: "error", content: failure(error) });
  }
  setImmediate(() => say({ kind: "idle", id })); // after what the cell has queued to write
}

for (const event of ["uncaughtException", "unhandledRejection"])
  process.on(event, (error) => process.stderr.write(failure(error).traceback.join("\n") + "\n"));
redirect(process.stdout, "stdout");
redirect(process.stderr, "stderr");

let rest = "";
let queue = Promise.resolve();
fs.createReadStream(null, { fd: Number(requests), encoding: "utf8" })
  .on("data", (chunk) => {
    const lines = (rest + chunk).split("\n");
    rest = lines.pop();
    for (const line of lines) queue = queue.then(() => execute(JSON.parse(line)));
  })
  .on("end", () => process.exit());
