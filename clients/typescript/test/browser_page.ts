/** What the page of browser.test.ts runs: all episodes in the browser, by onnxruntime-web. */
import * as ort from "onnxruntime-web/wasm";

import { Bundle, filesBelow, LocalAgent } from "../src/index.ts";

declare const location: { href: string };

ort.env.wasm.wasmPaths = { wasm: new URL("/wasm/ort-wasm-simd-threaded.wasm", location.href).href };
ort.env.wasm.numThreads = 1;

interface Start {
  seed: string;
  sample: boolean;
  instruction_choice: "argmax" | "sample" | "common" | null;
  first_step: number;
}

async function play(): Promise<unknown[][]> {
  const episodes = (await (await fetch("/vectors/episodes.json")).json()) as {
    agent: string;
    start: Start;
    steps: { step: number; observation: number[]; action_mask?: boolean[] }[];
  }[];
  const bundle = await Bundle.open(filesBelow(new URL("/vectors/bundle", location.href)));
  const played = [];
  for (const { agent: id, start, steps } of episodes) {
    const agent = await LocalAgent.open(bundle, id, ort);
    const { seed, sample, instruction_choice: instructionChoice, first_step: firstStep } = start;
    await agent.reset({ seed: BigInt(seed), sample, instructionChoice, firstStep });
    const actions = [];
    for (const row of steps) {
      const { action } = await agent.act(Float32Array.from(row.observation), row.action_mask, row.step);
      actions.push(typeof action === "number" ? action : [...action]);
    }
    played.push(actions);
    await agent.close();
  }
  return played;
}

Object.assign(globalThis, { played: play() });
