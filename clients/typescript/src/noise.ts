/**
 * Random numbers of deployed policies: a pure function of (seed, agent, step, noise input), the same in all languages.
 * proto/conformance/README.md specifies them.
 */
import { hash64 } from "./hashes.ts";
import { type AgentModel, type InstructionChoice, type NoiseModel, product } from "./manifest.ts";

const MASK = (1n << 64n) - 1n;
const MULTIPLIER = [0xd2e7470ee14c6c93n, 0xca5a826395121157n] as const;
const WEYL = [0x9e3779b97f4a7c15n, 0xbb67ae8584caa73bn] as const;
const ROUNDS = 10;

export type Key = readonly [bigint, bigint];
export type Counter = readonly [bigint, bigint, bigint, bigint];

/** Philox4x64-10. Word 0 of the counter is raised before each block of four words; it never overflows here. */
export function philox(key: Key, counter: Counter, count: number): bigint[] {
  const words: bigint[] = [];
  for (let block = counter[0] + 1n; words.length < count; block++) {
    let [c0, c1, c2, c3] = [block, counter[1], counter[2], counter[3]];
    let [k0, k1] = key;
    for (let round = 0; round < ROUNDS; round++) {
      const first = MULTIPLIER[0] * c0;
      const second = MULTIPLIER[1] * c2;
      [c0, c1, c2, c3] = [(second >> 64n) ^ c1 ^ k0, second & MASK, (first >> 64n) ^ c3 ^ k1, first & MASK];
      k0 = (k0 + WEYL[0]) & MASK;
      k1 = (k1 + WEYL[1]) & MASK;
    }
    words.push(c0, c1, c2, c3);
  }
  words.length = count;
  return words;
}

/** Uniform in the open interval (0, 1), exact in float32. */
export function uniform(words: readonly bigint[]): Float32Array {
  return Float32Array.from(words, (word) => (Number(word >> 41n) + 0.5) * 2 ** -23);
}

/** Standard normal by Box and Muller, computed in float64: two words a number. */
export function normal(words: readonly bigint[]): Float32Array {
  const size = words.length / 2;
  return Float32Array.from({ length: size }, (_, index) => {
    const radius = (Number(words[index]! >> 11n) + 0.5) * 2 ** -53;
    const angle = Number(words[size + index]! >> 11n) * (2 * Math.PI * 2 ** -53);
    return Math.sqrt(-2 * Math.log(radius)) * Math.cos(angle);
  });
}

/** Draws one noise input of one agent. */
export class NoiseSource {
  readonly noise: NoiseModel;
  readonly #size: number;
  readonly #stream: bigint;
  readonly #name: bigint;

  /** `stream`: the one that the manifest names unless given. */
  constructor(noise: NoiseModel, agentId: string, stream: "private" | "common" = noise.stream) {
    this.noise = noise;
    this.#size = product(noise.shape);
    this.#stream = hash64(stream === "common" ? "common" : `private:${agentId}`);
    this.#name = hash64(noise.name);
  }

  keyOf(seed: bigint): Key {
    return [seed, this.#stream];
  }

  counterOf(step: bigint): Counter {
    return [0n, this.#name, step, 0n];
  }

  /** The numbers of one step. */
  draw(seed: bigint, step: bigint): Float32Array {
    const isNormal = this.noise.distribution === "normal";
    const words = philox(this.keyOf(seed), this.counterOf(step), isNormal ? 2 * this.#size : this.#size);
    return isNormal ? normal(words) : uniform(words);
  }
}

const STREAMS = { argmax: null, sample: "private", common: "common" } as const;

/** The noise inputs that are drawn, each with its stream; the others stay zero, which means argmax or mean. */
export function drawnNoises(agent: AgentModel, sample: boolean, choice: InstructionChoice | null): NoiseSource[] {
  const effective = choice ?? agent.instruction_choice ?? (sample ? "common" : "argmax");
  const stream = STREAMS[effective];
  const sources: NoiseSource[] = [];
  for (const noise of agent.noises ?? []) {
    if (noise.purpose === "instruction" && stream !== null) sources.push(new NoiseSource(noise, agent.id, stream));
    if (noise.purpose === "action" && sample) sources.push(new NoiseSource(noise, agent.id));
  }
  return sources;
}
