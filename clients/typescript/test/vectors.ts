/** The vectors of proto/conformance, whose README says what each is. */
import { readFileSync } from "node:fs";

import type { InstructionChoice } from "../src/index.ts";
import { VECTORS } from "./agent_process.ts";

export interface Row {
  step: number;
  observation: number[];
  action_mask?: boolean[];
  states: Record<string, number[]>;
  noises: Record<string, number[]>;
  action: number | number[];
  next_states: Record<string, number[]>;
  diagnostics: Record<string, number | number[]>;
  missed_steps: number;
  replayed: boolean;
}

export interface EpisodeVector {
  name: string;
  agent: string;
  start: { seed: string; sample: boolean; instruction_choice: InstructionChoice | null; first_step: number };
  steps: Row[];
  end: { steps: number; missed_steps: number };
}

export interface NoiseVector {
  seed: string;
  step: string;
  agent: string;
  name: string;
  stream: "private" | "common";
  distribution: "uniform" | "normal";
  key: string[];
  counter: string[];
  words: string[];
  values: number[];
}

export interface ErrorVectors {
  agent: string;
  placeholder: string;
  before: { start: string; act: string };
  refused: { name: string; method: string; text?: string; hex: string; code: string; number: number; message: string }[];
}

export interface ActionVector {
  name: string;
  agent: string;
  hex: string;
  action?: number | number[];
  action_mask?: boolean[];
}

export function vectors<T>(name: string): T {
  return JSON.parse(readFileSync(`${VECTORS}${name}.json`, "utf8")) as T;
}

/** Whether numbers that a graph computed are the expected ones. */
export function near(got: unknown, expected: number | number[]): boolean {
  const numbers = typeof got === "number" ? [got] : Array.from(got as ArrayLike<number>);
  const wanted = typeof expected === "number" ? [expected] : expected;
  return (
    numbers.length === wanted.length &&
    numbers.every((number, index) => Math.abs(number - wanted[index]!) <= 1e-5 * Math.max(1, Math.abs(wanted[index]!)))
  );
}

/** As an agent plays an episode that counts its steps itself: nothing twice, and up to the first gap. */
export function asPlayed(episode: EpisodeVector): Row[] {
  const rows = episode.steps.filter((row) => !row.replayed);
  const gap = rows.findIndex((row) => row.missed_steps > 0);
  return gap < 0 ? rows : rows.slice(0, gap);
}
