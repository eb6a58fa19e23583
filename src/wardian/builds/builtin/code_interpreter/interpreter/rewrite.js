"use strict";
/* Makes a cell into a script: text is edited where the syntax tree says, so that line numbers stay true.

   import statements become await import(), top-level declarations become variables of the context (so that a
   cell may be run again), and a cell that awaits becomes an async function that returns its last expression. */
const acorn = require("/usr/share/nodejs/acorn");

const OPTIONS = {
  ecmaVersion: "latest",
  allowAwaitOutsideFunction: true,
  allowImportExportEverywhere: true,
  allowHashBang: true,
};

module.exports = function rewrite(code) {
  const { text, tree } = parse(code);
  const edits = new Edits(text);
  const body = tree.body;
  const awaits = body.some((statement) => statement.type === "ImportDeclaration") || hasAwait(body);
  const names = [];
  for (const statement of body) edit(statement, edits, awaits, names);
  const last = body.at(-1);
  const shows = last?.type === "ExpressionStatement";
  if (!awaits) return { code: edits.done(), awaits, shows };
  if (shows) {
    const end = text[last.end - 1] === ";" ? last.end - 1 : last.end;
    edits.insert(last.start, "return (");
    edits.insert(end, "\n)");
  }
  const functions = body.filter((statement) => statement.type === "FunctionDeclaration").map(({ id }) => id.name);
  const variables = names.length ? `var ${[...new Set(names)].join(",")};` : "";
  const hoisted = functions.map((name) => `globalThis.${name}=${name};`).join("");
  return { code: `${variables}(async()=>{${hoisted}${edits.done()}\n})()`, awaits, shows };
};

/** As an expression if it can be one: `{a: 1}` is an object, not a block. */
function parse(code) {
  if (/^\s*\{/.test(code) && !/;\s*$/.test(code)) {
    try {
      const text = `(${code.trimEnd()}\n)`;
      return { text, tree: acorn.parse(text, OPTIONS) };
    } catch {
      // a block, then
    }
  }
  return { text: code, tree: acorn.parse(code, OPTIONS) };
}

/** Replacements of a text, made together at the end. */
class Edits {
  constructor(text) {
    this.text = text;
    this.list = [];
  }
  replace(start, end, by) {
    this.list.push({ start, end, by, order: this.list.length });
  }
  insert(at, by) {
    this.replace(at, at, by);
  }
  source(node) {
    return this.text.slice(node.start, node.end);
  }
  /** Drop a stretch, but keep its line breaks. */
  blank(start, end, by = "") {
    this.replace(start, end, by + this.text.slice(start, end).replace(/[^\n]/g, ""));
  }
  done() {
    let result = "";
    let at = 0;
    for (const { start, end, by } of this.list.sort((a, b) => a.start - b.start || a.order - b.order)) {
      result += this.text.slice(at, start) + by;
      at = end;
    }
    return result + this.text.slice(at);
  }
}

function edit(statement, edits, awaits, names) {
  switch (statement.type) {
    case "ImportDeclaration":
      return edits.blank(statement.start, statement.end, imported(statement, edits, names));
    case "ExportNamedDeclaration":
      if (!statement.declaration) return edits.blank(statement.start, statement.end);
      edits.blank(statement.start, statement.declaration.start);
      return edit(statement.declaration, edits, awaits, names);
    case "ExportDefaultDeclaration":
      return edits.blank(statement.start, statement.declaration.start);
    case "ClassDeclaration":
      if (awaits) names.push(statement.id.name);
      edits.insert(statement.start, `${awaits ? "" : "var "}${statement.id.name} = `);
      return edits.insert(statement.end, ";");
    case "VariableDeclaration":
      if (awaits) return assigned(statement, edits, names);
      return edits.replace(statement.start, statement.start + statement.kind.length, "var");
  }
}

/** `import d, {a as b} from "m"` as assignments, on one line. */
function imported(statement, edits, names) {
  const load = `await import(${edits.source(statement.source)})`;
  if (!statement.specifiers.length) return `${load};`;
  const whole = statement.specifiers.find(({ type }) => type === "ImportNamespaceSpecifier");
  const parts = [];
  for (const { type, local, imported } of statement.specifiers) {
    names.push(local.name);
    if (type === "ImportDefaultSpecifier") parts.push(`default: ${local.name}`);
    if (type === "ImportSpecifier") parts.push(`${edits.source(imported)}: ${local.name}`);
  }
  if (!whole) return `({${parts.join(", ")}} = ${load});`;
  const rest = parts.length ? ` ({${parts.join(", ")}} = ${whole.local.name});` : "";
  return `${whole.local.name} = ${load};${rest}`;
}

/** `const a = 1, {b} = c` as assignments to variables of the context. */
function assigned(statement, edits, names) {
  edits.replace(statement.start, statement.start + statement.kind.length, ";void (");
  const text = edits.text;
  statement.declarations.forEach((declaration, at) => {
    names.push(...bound(declaration.id));
    if (at === 0) edits.blank(statement.start + statement.kind.length, declaration.start);
    if (declaration.init) {
      edits.insert(declaration.start, "(");
      edits.insert(declaration.end, ")");
    } else if (statement.kind !== "var") {
      edits.insert(declaration.end, " = undefined");
    }
  });
  const end = text[statement.end - 1] === ";" ? statement.end - 1 : statement.end;
  edits.insert(end, ")");
  if (end === statement.end) edits.insert(end, ";");
}

/** The names that a pattern binds. */
function bound(pattern) {
  switch (pattern.type) {
    case "Identifier":
      return [pattern.name];
    case "ObjectPattern":
      return pattern.properties.flatMap((property) => bound(property.value ?? property.argument));
    case "ArrayPattern":
      return pattern.elements.flatMap((element) => (element ? bound(element) : []));
    case "AssignmentPattern":
      return bound(pattern.left);
    case "RestElement":
      return bound(pattern.argument);
  }
  return [];
}

/** Whether anything in ``node`` awaits, outside of functions of its own. */
function hasAwait(node) {
  if (Array.isArray(node)) return node.some(hasAwait);
  if (!node || typeof node.type !== "string") return false;
  if (node.type === "AwaitExpression" || (node.type === "ForOfStatement" && node.await)) return true;
  if (/Function/.test(node.type)) return false;
  return Object.values(node).some((child) => child && typeof child === "object" && hasAwait(child));
}
