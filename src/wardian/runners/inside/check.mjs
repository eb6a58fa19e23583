// Inside: look a release over as it is seen here. Answers on standard output, in one line: the digest of the tree,
// the challenge, and what runs it.
import { createHash } from "node:crypto";
import { closeSync, lstatSync, readFileSync, readdirSync, writeSync } from "node:fs";
import { dirname, join, relative } from "node:path";
import { pathToFileURL } from "node:url";
import vm from "node:vm";

const [root, ...names] = process.argv.slice(2);
const sha256 = (bytes) => createHash("sha256").update(bytes).digest("hex");
process.stdout.write = process.stderr.write.bind(process.stderr); // what modules print as they load is no answer

const types = new Map();
function typeOf(directory) {
  // Of the nearest package.json, but not above the release.
  if (!types.has(directory)) {
    let type;
    try {
      type = JSON.parse(readFileSync(join(directory, "package.json"), "utf8")).type ?? "commonjs";
    } catch (error) {
      if (error.code !== "ENOENT") throw error;
      type = directory === root ? "commonjs" : typeOf(dirname(directory));
    }
    types.set(directory, type);
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

const lines = [];
(function walk(place) {
  for (const name of readdirSync(place)) {
    const path = join(place, name);
    const status = lstatSync(path);
    let [size, digest] = [0, "-"];
    if (status.isDirectory()) walk(path);
    else {
      const bytes = readFileSync(path);
      [size, digest] = [status.size, sha256(bytes)];
      if (/\.[cm]?js$/.test(name)) check(path, bytes);
    }
    const shown = relative(root, path);
    lines.push([Buffer.from(shown), `${status.mode.toString(8)} ${size} ${digest} ${shown}\n`]);
  }
})(root);
lines.sort((one, other) => Buffer.compare(one[0], other[0]));
const digest = sha256(lines.map(([, line]) => line).join(""));
const challenge = readFileSync(join(dirname(root), "challenge"), "utf8");
for (const name of names) await import(pathToFileURL(join(root, name)).href);
writeSync(1, `${digest} ${challenge} node-${process.version}\n`);
closeSync(1);
process.exit(0); // what a module began has no say
