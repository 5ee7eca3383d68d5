/** One agent's policy as a program uses it: what `LocalAgent` and `AgentClient` share. */
import { ObservationError, UsageError } from "./errors.ts";
import { type ActionSpace, type AgentModel, branchSizes, type InstructionChoice, product } from "./manifest.ts";

/** Discrete: a number. Several branches: one number each. Continuous: float32 in the environment's own units. */
export type ActionValue = number | number[] | Float32Array;
/** True, or 1, where an action is legal. */
export type ActionMask = ArrayLike<boolean | number>;
export type Diagnostics = Record<string, Float32Array | number[] | number | boolean[] | boolean>;

export interface Action {
  action: ActionValue;
  step: number;
  /** False when the fallback chose it, because the policy's own action did not arrive in time. */
  fresh: boolean;
  /** Steps between the observation that the policy saw last and this one that it never received. */
  missedSteps: number;
  /** True when this is the recorded reply of a request that was sent again. */
  replayed: boolean;
  diagnostics: Diagnostics;
  latencyMs: number;
}

export interface Episode {
  /** In [0, 2^64), the same for all agents of a team. */
  seed: bigint | number;
  /** False for argmax or mean, true to draw actions. */
  sample?: boolean;
  /** How a policy with instructions chooses them; by default as its bundle says. */
  instructionChoice?: InstructionChoice | null;
  /** The step of the first observation, above 0 when an episode is joined in the middle. */
  firstStep?: number;
}

export interface AgentSpec {
  id: string;
  observationSize: number;
  actionSpace: ActionSpace;
  /** Length of the action mask; 0 for a policy without one. */
  maskSize: number;
}

export interface Agent {
  readonly spec: AgentSpec;
  reset(episode: Episode): Promise<void>;
  act(observation: Float32Array, actionMask?: ActionMask): Promise<Action>;
  close(): Promise<void>;
}

export function agentSpec(model: AgentModel): AgentSpec {
  const { shape, dtype } = model.observation;
  if (shape.length !== 1 || dtype !== "float32") {
    throw new UsageError(
      `agent '${model.id}': it observes ${dtype} [${shape}]; this client takes vectors of float32 only: ` +
        "use the one in Python",
    );
  }
  return {
    id: model.id,
    observationSize: product(model.observation.shape),
    actionSpace: model.action_space,
    maskSize: model.action_mask ? product(model.action_mask.shape) : 0,
  };
}

/** An episode with its defaults, checked. */
export function checkedEpisode(episode: Episode): Required<Episode> & { seed: bigint } {
  const { seed, sample = false, instructionChoice = null, firstStep = 0 } = episode;
  if (typeof seed === "number" && !Number.isSafeInteger(seed)) {
    throw new UsageError(`seed: got ${seed}, expected an integer; write larger ones as a bigint, ${"1n"}`);
  }
  const word = BigInt(seed);
  if (word < 0n || word >= 1n << 64n) throw new UsageError(`seed: got ${word}, expected 0 <= seed < 2^64`);
  if (!Number.isSafeInteger(firstStep) || firstStep < 0) {
    throw new UsageError(`firstStep: got ${firstStep}, expected an integer of at least 0`);
  }
  if (instructionChoice !== null && !["argmax", "sample", "common"].includes(instructionChoice)) {
    throw new UsageError(`instructionChoice: got ${instructionChoice}, expected argmax, sample or common`);
  }
  return { seed: word, sample, instructionChoice, firstStep };
}

/** The mask as one byte an action; undefined for a policy without one. */
export function checkedInput(
  spec: AgentSpec, observation: Float32Array, mask: ActionMask | undefined,
): Uint8Array<ArrayBuffer> | undefined {
  if (!(observation instanceof Float32Array) || observation.length !== spec.observationSize) {
    const got = observation instanceof Float32Array ? `${observation.length} numbers` : "no Float32Array";
    throw new ObservationError(`observation: got ${got}, expected a Float32Array of ${spec.observationSize}`);
  }
  const wrong = observation.findIndex((number) => !Number.isFinite(number));
  if (wrong >= 0) {
    throw new ObservationError(`observation[${wrong}]: got ${observation[wrong]}, expected finite numbers`);
  }
  if (spec.maskSize === 0) {
    if (mask !== undefined) {
      throw new ObservationError("actionMask: got one, but this policy has no mask input: leave it out");
    }
    return undefined;
  }
  if (mask === undefined || mask.length !== spec.maskSize) {
    throw new ObservationError(`actionMask: got ${mask?.length ?? "nothing"}, expected ${spec.maskSize} booleans`);
  }
  const legal = Uint8Array.from(mask, (each) => (each ? 1 : 0));
  for (const [branch, part] of branches(spec.actionSpace, legal).entries()) {
    if (!part.includes(1)) {
      throw new ObservationError(`actionMask: got no legal action in branch ${branch}, expected at least one`);
    }
  }
  return legal;
}

/** Why this is no action of the space, or an illegal one; undefined if it is one. Numbers may lie past their bounds. */
export function actionProblem(space: ActionSpace, action: ActionValue, mask: Uint8Array | undefined): string | undefined {
  const numbers = typeof action === "number" ? [action] : Array.from(action);
  const sizes = branchSizes(space);
  const length = space.type === "box" ? space.low.length : sizes.length;
  if (numbers.length !== length) return `action: got ${numbers.length} numbers, expected ${length}`;
  if (space.type === "box") {
    const wrong = numbers.findIndex((number) => !Number.isFinite(number));
    return wrong < 0 ? undefined : `action[${wrong}]: got ${numbers[wrong]}, expected finite numbers`;
  }
  const parts = mask && branches(space, mask);
  for (const [branch, choice] of numbers.entries()) {
    const name = space.type === "discrete" ? "action" : `action[${branch}]`;
    const size = sizes[branch]!;
    if (!(Number.isInteger(choice) && choice >= 0 && choice < size)) {
      return `${name}: got ${choice}, expected a choice from 0 to ${size - 1}`;
    }
    if (parts && parts[branch]![choice] !== 1) return `${name}: got ${choice}, expected a choice that the action mask allows`;
  }
  return undefined;
}

/** The part of a mask that belongs to each branch of the action. */
export function branches(space: ActionSpace, mask: Uint8Array): Uint8Array[] {
  let start = 0;
  return branchSizes(space).map((size) => mask.subarray(start, (start += size)));
}
