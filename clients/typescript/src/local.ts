/** An agent's policy in this process, by ONNX Runtime: onnxruntime-node, or onnxruntime-web in the browser. */
import type { InferenceSession, Tensor } from "onnxruntime-common";

import { type Action, type ActionMask, type ActionValue, type Agent, type AgentSpec } from "./agent.ts";
import { actionProblem, agentSpec, checkedEpisode, checkedInput, type Diagnostics, type Episode } from "./agent.ts";
import type { Bundle } from "./bundle.ts";
import { InferenceError, MisuseError, NonFiniteError, StepOrderError, UsageError } from "./errors.ts";
import { type AgentModel, product, type TensorModel } from "./manifest.ts";
import { drawnNoises, type NoiseSource } from "./noise.ts";

/** What is needed of onnxruntime-node or onnxruntime-web: hand the module in. */
export type Ort = Pick<typeof import("onnxruntime-common"), "InferenceSession" | "Tensor">;

const LAST_STEP = (1n << 63n) - 1n; // that an int64 holds

/** What one act computed. */
interface Outputs {
  action: ActionValue;
  diagnostics: Diagnostics;
}

/** What a repeated request is compared with and answered by. */
interface Recorded extends Outputs {
  step: number;
  missedSteps: number;
  observation: Float32Array;
  mask: Uint8Array | undefined;
}

export class LocalAgent implements Agent {
  readonly spec: AgentSpec;
  readonly #model: AgentModel;
  readonly #ort: Ort;
  readonly #session: InferenceSession;
  #states = new Map<string, Tensor>();
  #sources: NoiseSource[] = [];
  #seed: bigint | undefined;
  #nextStep = 0;
  #last: Recorded | undefined;
  #busy = false;
  #closed = false;

  private constructor(model: AgentModel, ort: Ort, session: InferenceSession) {
    this.spec = agentSpec(model);
    this.#model = model;
    this.#ort = ort;
    this.#session = session;
  }

  /** Open an agent of a bundle. `like`: for one that was not trained, the interchangeable one by whose graph it acts. */
  static async open(bundle: Bundle, agentId: string, ort: Ort, like?: string): Promise<LocalAgent> {
    const model = bundle.agent(agentId, like);
    const session = await ort.InferenceSession.create(await bundle.file(model.file));
    return new LocalAgent(model, ort, session);
  }

  /** The recurrent state that the next act starts from, by input name. */
  get states(): Record<string, number[]> {
    return Object.fromEntries([...this.#states].map(([name, tensor]) => [name, Array.from(tensor.data as Float32Array)]));
  }

  async reset(episode: Episode): Promise<void> {
    this.#checkUsable("reset");
    const { seed, sample, instructionChoice, firstStep } = checkedEpisode(episode);
    const noises = this.#model.noises ?? [];
    if (instructionChoice !== null && noises.every((noise) => noise.purpose !== "instruction")) {
      throw new UsageError(`instructionChoice: got ${instructionChoice}, but agent '${this.spec.id}' has no instructions`);
    }
    this.#sources = drawnNoises(this.#model, sample, instructionChoice);
    this.#states = new Map((this.#model.states ?? []).map((state) => [state.input, this.#tensor(state, state.reset)]));
    this.#seed = seed;
    this.#nextStep = firstStep;
    this.#last = undefined;
  }

  /** The action for a step, by default the one after the last; the last one again is answered by what was recorded. */
  async act(observation: Float32Array, actionMask?: ActionMask, step = this.#nextStep): Promise<Action> {
    const begin = performance.now();
    this.#checkUsable("act");
    if (this.#seed === undefined) throw new MisuseError(`agent '${this.spec.id}': no episode: call reset first`);
    const mask = checkedInput(this.spec, observation, actionMask);
    if (step < this.#nextStep) return this.#replay(step, observation, mask, begin);
    this.#busy = true;
    try {
      const outputs = await this.#run(this.#seed, observation, mask, step);
      const missedSteps = step - this.#nextStep;
      this.#nextStep = step + 1;
      this.#last = { ...outputs, step, missedSteps, observation: observation.slice(), mask };
      return answered(this.#last, false, begin);
    } finally {
      this.#busy = false;
    }
  }

  async close(): Promise<void> {
    if (this.#closed) return;
    this.#checkUsable("close");
    this.#closed = true;
    await this.#session.release();
  }

  #replay(step: number, observation: Float32Array, mask: Uint8Array | undefined, begin: number): Action {
    const last = this.#last;
    if (last === undefined || step !== last.step) {
      throw new StepOrderError(`step: got ${step}, expected ${this.#nextStep} or later (steps increase strictly)`);
    }
    if (!equal(observation, last.observation) || (mask && last.mask && !equal(mask, last.mask))) {
      throw new StepOrderError(`step: got ${step} again with other content; repeat it unchanged, or go on`);
    }
    return answered(last, true, begin);
  }

  async #run(seed: bigint, observation: Float32Array, mask: Uint8Array | undefined, step: number): Promise<Outputs> {
    const results = await this.#session.run(this.#feeds(seed, observation, mask, step));
    for (const [name, tensor] of Object.entries(results)) {
      if (tensor.type === "float32" && !(tensor.data as Float32Array).every(Number.isFinite)) {
        throw new NonFiniteError(`agent '${this.spec.id}': step ${step}: the policy computed ${name} that is not finite`);
      }
    }
    const action = valueOf(results[this.#model.action.name]!, this.#model.action.shape) as ActionValue;
    const problem = actionProblem(this.spec.actionSpace, action, mask);
    if (problem !== undefined) {
      throw new InferenceError(`agent '${this.spec.id}': step ${step}: the policy computed no action that it has: ${problem}`);
    }
    for (const state of this.#model.states ?? []) this.#states.set(state.input, results[state.output]!);
    return {
      action,
      diagnostics: Object.fromEntries(
        (this.#model.diagnostics ?? []).map(({ name, shape }) => [name, valueOf(results[name]!, shape)]),
      ),
    };
  }

  #feeds(seed: bigint, observation: Float32Array, mask: Uint8Array | undefined, step: number): Record<string, Tensor> {
    const { observation: seen, action_mask: masked, step: counted, noises = [] } = this.#model;
    const feeds: Record<string, Tensor> = { [seen.name]: this.#tensor(seen, observation) };
    if (masked && mask) feeds[masked.name] = this.#tensor(masked, mask);
    if (counted) {
      const number = BigInt(step);
      feeds[counted.name] = new this.#ort.Tensor("int64", [number < LAST_STEP ? number : LAST_STEP], [1]);
    }
    for (const noise of noises) {
      feeds[noise.name] = new this.#ort.Tensor("float32", new Float32Array(product(noise.shape)), [1, ...noise.shape]);
    }
    for (const source of this.#sources) {
      const { name, shape } = source.noise;
      feeds[name] = new this.#ort.Tensor("float32", source.draw(seed, BigInt(step)), [1, ...shape]);
    }
    for (const [name, tensor] of this.#states) feeds[name] = tensor;
    return feeds;
  }

  #tensor({ shape, dtype }: Pick<TensorModel, "shape" | "dtype">, numbers: ArrayLike<number>): Tensor {
    const size = [1, ...shape];
    if (dtype === "bool") return new this.#ort.Tensor("bool", Uint8Array.from(numbers), size);
    if (dtype === "int64") return new this.#ort.Tensor("int64", BigInt64Array.from(Array.from(numbers, BigInt)), size);
    return new this.#ort.Tensor("float32", Float32Array.from(numbers), size);
  }

  #checkUsable(doing: string): void {
    if (this.#closed) throw new MisuseError(`agent '${this.spec.id}': it is closed: make a new one`);
    if (this.#busy) throw new MisuseError(`agent '${this.spec.id}': ${doing} during an act: one call at a time`);
  }
}

function answered({ action, diagnostics, step, missedSteps }: Recorded, replayed: boolean, begin: number): Action {
  return { action, diagnostics, step, missedSteps, replayed, fresh: true, latencyMs: performance.now() - begin };
}

function equal(first: ArrayLike<number>, second: ArrayLike<number>): boolean {
  return first.length === second.length && Array.from(first).every((each, index) => Object.is(each, second[index]));
}

/** A row of an output: a number where it has no shape of its own. */
function valueOf(tensor: Tensor, shape: readonly number[]): Diagnostics[string] {
  if (tensor.type === "float32") {
    const numbers = (tensor.data as Float32Array).slice();
    return shape.length === 0 ? numbers[0]! : numbers;
  }
  if (tensor.type === "bool") {
    const flags = Array.from(tensor.data as Uint8Array, Boolean);
    return shape.length === 0 ? flags[0]! : flags;
  }
  const integers = Array.from(tensor.data as BigInt64Array, Number);
  return shape.length === 0 ? integers[0]! : integers;
}
