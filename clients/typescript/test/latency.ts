/** For scripts/client_speed.py: for each number that it reads it acts so many times and prints how long each act took. */
import { createInterface } from "node:readline";

import { AgentClient } from "../src/node.ts";

const [door, address] = process.argv.slice(2);
const agent = await AgentClient.connect(address!, { stream: door === "stream", timeoutMs: 10_000 });
const observation = new Float32Array(agent.spec.observationSize).fill(0.5);
const mask = agent.spec.maskSize > 0 ? new Uint8Array(agent.spec.maskSize).fill(1) : undefined;
await agent.reset({ seed: 1 });
for await (const line of createInterface({ input: process.stdin })) {
  const took: number[] = [];
  for (let act = 0; act < Number(line); act++) took.push(1000 * (await agent.act(observation, mask)).latencyMs);
  console.log(JSON.stringify(took));
}
await agent.close();
