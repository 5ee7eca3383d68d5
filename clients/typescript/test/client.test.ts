/** What a robot relies on, with a real agent that is frozen, killed and started again. */
import assert from "node:assert/strict";
import { after, before, test } from "node:test";

import * as ort from "onnxruntime-node";

import {
  AgentClient, AgentError, Bundle, call, filesIn, fixed, hold, LocalAgent, MisuseError, ObservationError, StaleActionError,
  StepOrderError, UsageError, zero,
} from "../src/node.ts";
import { AgentProcess, BUNDLE } from "./agent_process.ts";

const SEEN = Float32Array.of(0, 0.25, -0.5, 1, -2, 0.75);
const LEGAL = [true, true, true, true, true];
let agent: AgentProcess;

before(async () => {
  agent = await new AgentProcess("discrete").start();
});
after(() => agent.kill());

async function until(what: () => Promise<boolean>): Promise<void> {
  const deadline = performance.now() + 30_000;
  while (!(await what())) {
    assert.ok(performance.now() < deadline, "it took too long");
    await new Promise((resolve) => setTimeout(resolve, 20));
  }
}

test("wrong inputs are refused before anything is sent, and use no step up", async () => {
  const client = await AgentClient.connect(agent.address);
  await assert.rejects(client.act(SEEN, LEGAL), AgentError); // no episode
  await client.reset({ seed: 1 });
  await assert.rejects(client.act(SEEN.slice(1), LEGAL), /got 5 numbers, expected a Float32Array of 6/);
  await assert.rejects(client.act(SEEN.with(3, NaN), LEGAL), /observation\[3\]: got NaN/);
  await assert.rejects(client.act(SEEN), /actionMask: got nothing, expected 5/);
  await assert.rejects(client.act(SEEN, [0, 0, 0, 0, 0]), ObservationError);
  await assert.rejects(client.reset({ seed: -1 }), UsageError);
  await assert.rejects(client.reset({ seed: 2 ** 60 }), UsageError);
  const action = await client.act(SEEN, LEGAL);
  assert.equal(action.step, 0);
  const both = [client.act(SEEN, LEGAL), client.act(SEEN, LEGAL)];
  await assert.rejects(both[1]!, MisuseError);
  assert.equal((await both[0]!).step, 1);
  await client.close();
  await client.close();
  await assert.rejects(client.act(SEEN, LEGAL), MisuseError);
});

for (const stream of [false, true]) {
  test(`a frozen agent: the fallback acts in time, and the policy again afterwards, stream ${stream}`, async () => {
    const fallback = hold({ expiresAfterSteps: 2, then: fixed(3) });
    const client = await AgentClient.connect(agent.address, { timeoutMs: 200, fallback, stream });
    await client.reset({ seed: 1, sample: true });
    const fresh = await client.act(SEEN, LEGAL);
    assert.ok(fresh.fresh);
    const masked = LEGAL.map((_, action) => action !== fresh.action && action !== 3);
    await agent.freeze();
    try {
      const held = await client.act(SEEN, LEGAL);
      assert.deepEqual([held.action, held.fresh, held.step], [fresh.action, false, 1]);
      assert.ok(held.latencyMs >= 190 && held.latencyMs < 5000, `${held.latencyMs} ms`);
      const illegal = await client.act(SEEN, masked);
      assert.equal(illegal.action, masked.indexOf(true)); // neither what is held nor 3
      assert.equal((await client.act(SEEN, LEGAL)).action, 3); // expired
    } finally {
      agent.thaw();
    }
    let [missed, step] = [0, 4];
    await until(async () => {
      const action = await client.act(SEEN.with(0, step), LEGAL);
      assert.equal(action.step, step++); // and no late reply to an earlier one
      missed += action.missedSteps;
      return action.fresh;
    });
    assert.equal(client.statistics.missedSteps, missed);
    assert.equal(client.statistics.rejoins, 0);
    assert.equal(client.statistics.fallbackReasons["DEADLINE_EXCEEDED"], client.statistics.fallbacks);
    await client.close();
  });

  test(`an agent that was killed is joined again at the current step, stream ${stream}`, async () => {
    const client = await AgentClient.connect(agent.address, { timeoutMs: 300, fallback: zero(), stream });
    await client.reset({ seed: 1, sample: true });
    for (let step = 0; step < 3; step++) await client.act(SEEN, LEGAL);
    await agent.kill();
    assert.deepEqual([(await client.act(SEEN, LEGAL)).fresh, client.statistics.fallbacks], [false, 1]);
    await agent.start();
    let action = await client.act(SEEN, LEGAL);
    await until(async () => (action = await client.act(SEEN, LEGAL)).fresh);
    assert.deepEqual([client.statistics.rejoins, client.statistics.stateResets], [1, 1]);
    // What a session draws that begins at this step
    const local = await LocalAgent.open(await Bundle.open(filesIn(BUNDLE)), "discrete", ort);
    await local.reset({ seed: 1, sample: true, firstStep: action.step });
    assert.equal((await local.act(SEEN, LEGAL)).action, action.action);
    await client.close();
  });
}

test("a held action that expired is no longer joined again by itself; a reset goes on", async () => {
  const client = await AgentClient.connect(agent.address, { timeoutMs: 300, fallback: hold({ expiresAfterMs: 100 }) });
  await client.reset({ seed: 1 });
  await client.act(SEEN, LEGAL);
  await agent.kill();
  await assert.rejects(client.act(SEEN, LEGAL), StaleActionError);
  await agent.start();
  for (let tries = 0; tries < 3; tries++) await assert.rejects(client.act(SEEN, LEGAL), StaleActionError);
  assert.equal(client.statistics.rejoins, 0);
  await client.reset({ seed: 1 });
  assert.ok((await client.act(SEEN, LEGAL)).fresh);
  await client.close();
});

test("another agent at the address is never obeyed", async () => {
  const client = await AgentClient.connect(agent.address, { timeoutMs: 2000, fallback: zero() });
  await client.reset({ seed: 1 });
  await agent.kill();
  const other = new AgentProcess("branches");
  other.address = agent.address;
  await other.start();
  try {
    await assert.rejects(client.act(SEEN, LEGAL), /got agent 'branches', expected 'discrete'/);
  } finally {
    await other.kill();
    await agent.start();
  }
  await client.close();
});

test("no agent: an error in the time allowed", async () => {
  const connecting = AgentClient.connect("127.0.0.1:1", { connectTimeoutMs: 500 });
  await assert.rejects(connecting, /127.0.0.1:1: connecting: (UNAVAILABLE|DEADLINE_EXCEEDED)/);
  await assert.rejects(AgentClient.connect("10.1.2.3:4", { token: "secret" }), /without TLS/);
});

test("fallbacks", () => {
  const box = { type: "box", low: [1, -1], high: [2, 1] } as const;
  const situation = {
    step: 1, actionSpace: { ...box, low: [...box.low], high: [...box.high] }, actionMask: undefined, lastAction: undefined,
    ageMs: Infinity, ageSteps: Infinity, reason: "no reply",
  };
  assert.deepEqual(zero().decide(situation), Float32Array.of(1, 0));
  assert.throws(() => hold({}), UsageError);
  assert.throws(() => hold({ expiresAfterMs: 5 }).decide(situation), /step 1: no reply; the last fresh action is missing/);
  const branches = { ...situation, actionSpace: { type: "multi_discrete" as const, n: [3, 2] }, actionMask: Uint8Array.of(0, 1, 1, 1, 0) };
  assert.deepEqual(zero().decide(branches), [1, 0]);
  assert.throws(() => call(() => [0, 0]).decide(branches), StaleActionError);
});

test("what no longer is an action is not held", () => {
  const situation = { step: 1, actionSpace: { type: "discrete" as const, n: 5 }, ageMs: 1, ageSteps: 1, reason: "" };
  for (const lastAction of [99, -1, 1.5, NaN]) {
    const decided = hold({ expiresAfterSteps: 9, then: fixed(3) }).decide({ ...situation, actionMask: undefined, lastAction });
    assert.equal(decided, 3);
  }
});

test("in process: steps and repetitions", async () => {
  const local = await LocalAgent.open(await Bundle.open(filesIn(BUNDLE)), "discrete", ort);
  await assert.rejects(local.act(SEEN, LEGAL), MisuseError);
  await local.reset({ seed: 2n ** 64n - 1n, sample: true });
  const first = await local.act(SEEN, LEGAL);
  const states = local.states;
  const again = await local.act(SEEN, LEGAL, 0);
  assert.deepEqual([again.action, again.replayed, local.states], [first.action, true, states]);
  await assert.rejects(local.act(SEEN.with(0, 1), LEGAL, 0), StepOrderError);
  assert.equal((await local.act(SEEN, LEGAL, 5)).missedSteps, 4);
  await assert.rejects(local.act(SEEN, LEGAL, 0), StepOrderError);
  await assert.rejects(LocalAgent.open(await Bundle.open(filesIn(BUNDLE)), "absent", ort), /got 'absent', expected one of discrete, /);
});
