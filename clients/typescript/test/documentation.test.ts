/** The code of docs/clients.md is what the compiler takes. */
import { execFileSync } from "node:child_process";
import { mkdirSync, readFileSync, writeFileSync } from "node:fs";
import { join } from "node:path";
import { test } from "node:test";
import { fileURLToPath } from "node:url";

import { ROOT } from "./agent_process.ts";

const HERE = fileURLToPath(new URL("../..", import.meta.url)); // clients/typescript, from dist/test
const OPTIONS = ["--strict", "--target", "es2023", "--module", "nodenext", "--allowImportingTsExtensions", "--skipLibCheck", "--types", "node"];

test("the code of docs/clients.md", () => {
  const blocks = [...readFileSync(join(ROOT, "docs/clients.md"), "utf8").matchAll(/```ts\n(.*?)```/gs)];
  const folder = join(HERE, "build/documented");
  mkdirSync(folder, { recursive: true });
  const files = blocks.map(([, code], index) => {
    const file = join(folder, `block${index}.ts`);
    writeFileSync(file, code!.replaceAll('"hmarl-client/node"', '"../../src/node.ts"'));
    return file;
  });
  if (files.length < 2) throw new Error("expected blocks of TypeScript");
  execFileSync(join(HERE, "node_modules/.bin/tsc"), ["--ignoreConfig", "--noEmit", ...OPTIONS, ...files], { stdio: "inherit" });
});
