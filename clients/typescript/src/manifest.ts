/** The parts of a bundle's manifest that acting needs; docs/bundle.md describes them. */

export type ActionSpace =
  | { type: "discrete"; n: number }
  | { type: "multi_discrete"; n: number[] }
  | { type: "box"; low: number[]; high: number[] };

export type InstructionChoice = "argmax" | "sample" | "common";

/** One tensor of a graph, without the batch dimension. */
export interface TensorModel {
  name: string;
  shape: number[];
  dtype: "float32" | "int64" | "bool" | "uint8";
}

/** Recurrent state: fed in as `input`, read back from `output`. */
export interface StateModel {
  input: string;
  output: string;
  shape: number[];
  dtype: "float32" | "int64" | "bool";
  reset: number[];
}

export interface NoiseModel {
  name: string;
  shape: number[];
  distribution: "uniform" | "normal";
  stream: "private" | "common";
  purpose: "action" | "instruction";
}

export interface AgentModel {
  id: string;
  file: string;
  action_space: ActionSpace;
  observation: TensorModel;
  action_mask?: TensorModel | null;
  step?: TensorModel | null;
  states?: StateModel[];
  noises?: NoiseModel[];
  instruction_choice?: InstructionChoice | null;
  action: TensorModel;
  diagnostics?: TensorModel[];
  interchangeable?: boolean;
}

export interface Manifest {
  schema_version: number;
  name: string;
  agents: AgentModel[];
  files: Record<string, string>;
}

export const SCHEMA_VERSION = 1;

export function product(shape: readonly number[]): number {
  return shape.reduce((size, each) => size * each, 1);
}

/** The number of choices in each branch of an action; none for continuous actions. */
export function branchSizes(space: ActionSpace): number[] {
  if (space.type === "box") return [];
  return space.type === "discrete" ? [space.n] : space.n;
}
