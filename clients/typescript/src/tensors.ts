/** `Tensor` of hmarl.agent.v1 to arrays and back: row-major, little-endian, one byte a bool. */
import { actionProblem, type ActionValue, type Diagnostics } from "./agent.ts";
import { AgentError } from "./errors.ts";
import { DataType, type Tensor } from "./generated/hmarl/agent/v1/agent.ts";
import { type ActionSpace, product } from "./manifest.ts";

export function floatTensor(numbers: Float32Array): Tensor {
  const data = new Uint8Array(4 * numbers.length);
  const view = new DataView(data.buffer);
  numbers.forEach((number, index) => view.setFloat32(4 * index, number, true));
  return { dataType: DataType.DATA_TYPE_FLOAT32, shape: [BigInt(numbers.length)], data };
}

export function maskTensor(mask: Uint8Array): Tensor {
  return { dataType: DataType.DATA_TYPE_BOOL, shape: [BigInt(mask.length)], data: mask };
}

const ITEM_BYTES: Partial<Record<DataType, number>> = {
  [DataType.DATA_TYPE_FLOAT32]: 4,
  [DataType.DATA_TYPE_INT64]: 8,
  [DataType.DATA_TYPE_BOOL]: 1,
  [DataType.DATA_TYPE_UINT8]: 1,
};

/** The content of a tensor; a number or bool where it has no shape. */
export function content(tensor: Tensor | undefined, name: string): Diagnostics[string] {
  const item = tensor && ITEM_BYTES[tensor.dataType];
  const size = tensor && product(tensor.shape.map(Number));
  if (!tensor || !item || tensor.data.length !== item * size!) {
    throw new AgentError(`${name}: got ${tensor?.data.length ?? "no"} bytes, expected a tensor that fits its own shape`);
  }
  const view = new DataView(tensor.data.buffer, tensor.data.byteOffset, tensor.data.byteLength);
  const scalar = tensor.shape.length === 0;
  if (tensor.dataType === DataType.DATA_TYPE_FLOAT32) {
    const numbers = Float32Array.from({ length: size! }, (_, index) => view.getFloat32(4 * index, true));
    return scalar ? numbers[0]! : numbers;
  }
  if (tensor.dataType === DataType.DATA_TYPE_INT64) {
    const integers = Array.from({ length: size! }, (_, index) => Number(view.getBigInt64(8 * index, true)));
    return scalar ? integers[0]! : integers;
  }
  if (tensor.dataType === DataType.DATA_TYPE_UINT8) {
    const numbers = Array.from(tensor.data);
    return scalar ? numbers[0]! : numbers;
  }
  const flags = Array.from(tensor.data, Boolean);
  return scalar ? flags[0]! : flags;
}

/** The action of a reply, if it is one of the space and legal. */
export function actionOf(tensor: Tensor | undefined, space: ActionSpace, mask: Uint8Array | undefined): ActionValue {
  const value = content(tensor, "action");
  const fits =
    space.type === "discrete"
      ? typeof value === "number" && tensor!.dataType === DataType.DATA_TYPE_INT64
      : space.type === "box"
        ? value instanceof Float32Array
        : Array.isArray(value) && tensor!.dataType === DataType.DATA_TYPE_INT64;
  if (!fits) throw new AgentError(`action: got ${String(value)}, expected one of a ${space.type} space`);
  const problem = actionProblem(space, value as ActionValue, mask);
  if (problem !== undefined) throw new AgentError(problem);
  return value as ActionValue;
}
