// Inside: look a release over as it is seen here. Answers on standard output, in one line: the digest of the tree,
// the challenge, and what runs it.
import { createHash } from "node:crypto";
import { closeSync, readFileSync, realpathSync, writeSync } from "node:fs";
import { dirname, join } from "node:path";
import { pathToFileURL } from "node:url";
import vm from "node:vm";

const [root, ...names] = process.argv.slice(2);
const place = dirname(root);
const sha256 = (bytes) => createHash("sha256").update(bytes).digest("hex");
process.stdout.write = process.stderr.write.bind(process.stderr); // what modules print as they load is no answer

// Whether something lies over the release: then it is not what was read that is seen.
function covered() {
  const mounts = readFileSync("/proc/self/mountinfo", "utf8").trimEnd().split("\n");
  const points = mounts.map((line) => line.split(" ")[4]);
  const hides = points.some((point) => point === root || point.startsWith(root + "/"));
  return hides || points.filter((point) => point === place).length !== 1 || realpathSync(root) !== root;
}

// The release is read once, as one file: the challenge, a line for each entry, an empty line, the bytes of all.
const trial = readFileSync(join(place, "trial"));
const gap = trial.indexOf("\n\n");
const [challenge, ...entries] = trial.subarray(0, gap).toString().split("\n");
const files = new Map();
let at = gap + 2;
const lines = entries.map((entry) => {
  const [, mode, size, path] = /^(\S+) (\d+) (.*)$/.exec(entry);
  const bytes = trial.subarray(at, (at += Number(size)));
  const isDirectory = mode.startsWith("4");
  if (!isDirectory) files.set(join(root, path), bytes);
  return `${mode} ${bytes.length} ${isDirectory ? "-" : sha256(bytes)} ${path}\n`;
});

const types = new Map();
function typeOf(directory) {
  // Of the nearest package.json, but not above the release.
  if (!types.has(directory)) {
    const said = files.get(join(directory, "package.json"));
    const above = () => (directory === root ? "commonjs" : typeOf(dirname(directory)));
    types.set(directory, said ? (JSON.parse(said.toString()).type ?? "commonjs") : above());
  }
  return types.get(directory);
}

// As `node --check`, for every file in one process.
function check(path, source) {
  const isModule = path.endsWith(".mjs") || (path.endsWith(".js") && typeOf(dirname(path)) === "module");
  const text = source.toString().replace(/^#!.*/, "");
  if (isModule) new vm.SourceTextModule(text, { identifier: path });
  else vm.compileFunction(text, ["exports", "require", "module", "__filename", "__dirname"], { filename: path });
}

for (const [path, bytes] of files) if (/\.[cm]?js$/.test(path)) check(path, bytes);
const digest = covered() ? "covered" : sha256(lines.join(""));
for (const name of names) await import(pathToFileURL(join(root, name)).href);
writeSync(1, `${digest} ${challenge} node-${process.version}\n`);
closeSync(1);
process.exit(0); // what a module began has no say
