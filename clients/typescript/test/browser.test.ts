/** The same class in a real browser: the conformance vectors by onnxruntime-web, and the game of examples/jewels. */
import assert from "node:assert/strict";
import { execFileSync } from "node:child_process";
import { cpSync, mkdirSync, mkdtempSync, writeFileSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { test } from "node:test";
import { fileURLToPath } from "node:url";

import { build } from "esbuild";

import { PYTHON, ROOT, VECTORS } from "./agent_process.ts";
import { chromiumPath, openChromium, serveFolder } from "./chromium.ts";
import { type EpisodeVector, near, vectors } from "./vectors.ts";

const HERE = fileURLToPath(new URL("../..", import.meta.url)); // clients/typescript, from dist/test
const WEB = join(HERE, "node_modules/onnxruntime-web/dist");
const GAME = join(ROOT, "examples/jewels");
const skip = chromiumPath() === undefined ? "Chromium is not installed" : false;
const inPage = <T>(code: string) => code as unknown as () => T;

test("episodes in the browser", { skip }, async () => {
  const folder = mkdtempSync(join(tmpdir(), "hmarl-browser-"));
  mkdirSync(join(folder, "wasm"));
  cpSync(join(WEB, "ort-wasm-simd-threaded.wasm"), join(folder, "wasm/ort-wasm-simd-threaded.wasm"));
  cpSync(VECTORS, join(folder, "vectors"), { recursive: true });
  writeFileSync(join(folder, "index.html"), '<!doctype html><script type="module" src="page.js"></script>');
  await build({
    entryPoints: [join(HERE, "test/browser_page.ts")], bundle: true, format: "esm", outfile: join(folder, "page.js"),
    alias: { "onnxruntime-web/wasm": join(WEB, "ort.wasm.bundle.min.mjs") }, logLevel: "error",
  });
  const { url, server } = await serveFolder(folder);
  const browser = await openChromium();
  try {
    const page = await browser.newPage();
    await page.goto(`${url}index.html`);
    await page.waitForFunction(inPage<boolean>("globalThis.played !== undefined"));
    const played = await page.evaluate<(number | number[])[][]>(inPage("globalThis.played"));
    for (const [index, episode] of vectors<EpisodeVector[]>("episodes").entries()) {
      assert.equal(played[index]!.length, episode.steps.length);
      for (const [row, action] of played[index]!.entries()) {
        assert.ok(near(action, episode.steps[row]!.action), `${episode.name}, step ${row}: ${String(action)}`);
      }
    }
  } finally {
    await browser.close();
    server.close();
  }
});

/** A team of the game's bundle in hmarl's own environment. */
const TRACE = `
import json, sys
import numpy as np
from hmarl.sdk import LocalAgent, load_bundle, make_environment
bundle = load_bundle(sys.argv[1])
env = make_environment("mpe/simple_spread", 1)
team = [LocalAgent(bundle, each.id) for each in env.spec.agents]
for agent in team:
    agent.reset(0)
observed, trace = env.reset(np.array([3])), []
for _ in range(20):
    state = env.get_state()
    seen = observed.observations[0][0]
    moves = [agent.act(row).action for agent, row in zip(team, seen)]
    trace.append({"positions": state["positions"][0].tolist(), "velocities": state["velocities"][0].tolist(),
                  "observations": seen.tolist(), "moves": moves})
    observed = env.step((np.array([moves]),)).observation
print(json.dumps(trace))
`;

interface World {
  guards: [number, number][];
  velocities: [number, number][];
  jewels: [number, number][];
}

/** examples/jewels/world.ts, which is no part of this project. */
interface WorldModule {
  advance(world: World, moves: number[]): void;
  observation(world: World, i: number): Float32Array;
}

interface Traced {
  positions: [number, number][];
  velocities: [number, number][];
  observations: number[][];
  moves: number[];
}

test("the game's world is the environment that its guards were trained in", async () => {
  const outfile = join(mkdtempSync(join(tmpdir(), "hmarl-world-")), "world.mjs");
  await build({ entryPoints: [join(GAME, "world.ts")], bundle: true, format: "esm", outfile, logLevel: "error" });
  const { advance, observation } = (await import(outfile)) as WorldModule;
  const trace = JSON.parse(execFileSync(PYTHON, ["-c", TRACE, join(GAME, "bundle")], { encoding: "utf8" })) as Traced[];
  const { positions, velocities } = structuredClone(trace[0]!);
  const world = { guards: positions.slice(0, 3), velocities, jewels: positions.slice(3) };
  for (const [step, row] of trace.entries()) {
    for (const i of [0, 1, 2]) assert.ok(near(observation(world, i), row.observations[i]!), `step ${step}, guard ${i}`);
    advance(world, row.moves);
  }
});

test("the game is played with the mouse", { skip }, async () => {
  const { url, server } = await serveFolder(GAME);
  const browser = await openChromium();
  try {
    const page = await browser.newPage({ viewport: { width: 900, height: 1000 } });
    const problems: string[] = [];
    page.on("pageerror", (error) => problems.push(String(error)));
    await page.goto(`${url}index.html?seed=4`);
    // Left alone, the guards go to the jewels, and on to where one hops to.
    await page.waitForFunction(inPage<boolean>("globalThis.game?.steps >= 1"), null, { timeout: 60_000 });
    for (const steps of [1, 45]) {
      await page.waitForFunction(inPage<boolean>(`game.steps >= ${steps} && game.world.jewels.every((jewel) => !game.free(jewel))`), null, { timeout: 60_000 });
    }
    await page.screenshot({ path: join(tmpdir(), "hmarl-jewels.png") });
    // The thief goes where the mouse is; a guard that it touches catches it.
    const box = (await page.locator("canvas").boundingBox())!;
    const to = async ([x, y]: number[]) => page.mouse.move(box.x + ((x! + 1.2) / 2.4) * box.width, box.y + ((1.2 - y!) / 2.4) * box.height);
    await to([1.1, -1.1]);
    await page.waitForFunction(inPage<boolean>("Math.hypot(game.thief[0] - 1.1, game.thief[1] + 1.1) < 0.1"), null, { timeout: 30_000 });
    // A jewel that is put beside the thief is free, until a guard is there; when it is taken another one appears.
    await page.evaluate(inPage("game.world.jewels[0] = [1.1, -1.05]"));
    await page.waitForFunction(inPage<boolean>("game.score === 1"), null, { timeout: 30_000 });
    assert.match((await page.locator("#said").textContent())!, /^jewels 1, lives 3$/);
    await to(await page.evaluate<number[]>(inPage("game.world.guards[0]")));
    await page.waitForFunction(inPage<boolean>("game.lives < 3"), null, { timeout: 30_000 });
    assert.deepEqual(problems, []);
  } finally {
    await browser.close();
    server.close();
  }
});
