/** For Node: all of `hmarl-client`, bundles in folders, and agents that are served over gRPC. */
import { readFile } from "node:fs/promises";
import { join } from "node:path";

import type { ReadFile } from "./bundle.ts";

export * from "./client.ts";
export { CallFailed } from "./connection.ts";
export * from "./index.ts";

/** Reads the bundle that lies in a folder. */
export function filesIn(folder: string): ReadFile {
  return async (name) => new Uint8Array(await readFile(join(folder, name)));
}

/** The agents of a running fleet by their addresses, from its endpoints file. */
export async function loadEndpoints(path: string): Promise<Record<string, string>> {
  return (JSON.parse(await readFile(path, "utf8")) as { agents: Record<string, string> }).agents;
}
