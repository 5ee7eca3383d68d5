/** The TypeScript client, held to the vectors that clients in all languages are held to. */
import assert from "node:assert/strict";
import { readFileSync } from "node:fs";
import { after, before, test } from "node:test";

import * as grpc from "@grpc/grpc-js";
import * as ort from "onnxruntime-node";

import * as messages from "../src/generated/hmarl/agent/v1/agent.ts";
import { AgentClient, AgentError, Bundle, filesIn, hash64, hold, LocalAgent, NoiseSource, philox, sha256Hex, zero } from "../src/node.ts";
import { AgentProcess, BUNDLE } from "./agent_process.ts";
import { type ActionVector, asPlayed, type EpisodeVector, type ErrorVectors, near, type NoiseVector, type Row, vectors } from "./vectors.ts";

const EPISODES = vectors<EpisodeVector[]>("episodes");
const ERRORS = vectors<ErrorVectors>("errors");
const served: Record<string, AgentProcess> = {};

before(async () => {
  for (const agent of ["discrete", "branches", "continuous"]) served[agent] = await new AgentProcess(agent).start();
});
after(async () => {
  for (const agent of Object.values(served)) await agent.kill();
});

test("hashes", async () => {
  const hashes = vectors<{ bundle_sha256: string; files: Record<string, string>; blake2b_64: { text: string; hash: string }[] }>("hashes");
  const bundle = await Bundle.open(filesIn(BUNDLE));
  assert.equal(bundle.sha256, hashes.bundle_sha256);
  for (const [name, hash] of Object.entries(hashes.files)) {
    assert.equal(sha256Hex(readFileSync(`${BUNDLE}/${name}`)), hash, name);
  }
  for (const { text, hash } of hashes.blake2b_64) assert.equal(hash64(text), BigInt(hash), text);
});

test("a changed bundle is refused", async () => {
  const read = filesIn(BUNDLE);
  const changed = (which: string) => async (name: string) => {
    const content = await read(name);
    if (name === which) content[100]! ^= 1;
    return content;
  };
  await assert.rejects(Bundle.open(changed("manifest.json")), /manifest.json: got SHA-256/);
  const bundle = await Bundle.open(changed("agents/discrete.onnx"));
  await assert.rejects(LocalAgent.open(bundle, "discrete", ort), /agents\/discrete.onnx: got SHA-256/);
  await assert.rejects(Bundle.open(read, "0".repeat(64)), /expected 000/);
});

test("noise", () => {
  for (const each of vectors<NoiseVector[]>("noise")) {
    const [key, counter, words] = [each.key, each.counter, each.words].map((part) => part.map(BigInt)) as bigint[][];
    const { name, distribution, stream } = each;
    const source = new NoiseSource({ name, distribution, stream, shape: [each.values.length], purpose: "action" }, each.agent);
    assert.deepEqual(source.keyOf(BigInt(each.seed)), key);
    assert.deepEqual(source.counterOf(BigInt(each.step)), counter);
    assert.deepEqual(philox(key as never, counter as never, words!.length), words);
    const drawn = source.draw(BigInt(each.seed), BigInt(each.step));
    if (distribution === "uniform") assert.deepEqual([...drawn], each.values);
    else drawn.forEach((number, index) => assert.ok(Math.abs(number - each.values[index]!) <= 2.4e-7 * Math.abs(number)));
  }
});

test("messages", () => {
  for (const { name, type, json, hex } of vectors<{ name: string; type: string; json: unknown; hex: string }[]>("messages")) {
    const codec = messages[type as "ActRequest"] as unknown as {
      encode(message: unknown): { finish(): Uint8Array };
      decode(bytes: Uint8Array): unknown;
      fromJSON(json: unknown): unknown;
    };
    const bytes = Buffer.from(hex, "hex");
    const message = codec.fromJSON(json);
    assert.equal(Buffer.from(codec.encode(message).finish()).toString("hex"), hex, name);
    assert.deepEqual(plain(codec.decode(bytes)), plain(message), name);
  }
});

/** Without the difference between Buffer and Uint8Array. */
function plain(message: unknown): unknown {
  return JSON.parse(JSON.stringify(message, (_, value: unknown) => (typeof value === "bigint" ? `${value}` : value instanceof Uint8Array ? [...value] : isBuffer(value) ? value.data : value)));
}

function isBuffer(value: unknown): value is { data: number[] } {
  return typeof value === "object" && value !== null && (value as { type?: unknown }).type === "Buffer";
}

function checkRow(name: string, row: Row, action: { action: unknown; step: number; diagnostics: Record<string, unknown> }): void {
  const where = `${name}, step ${row.step}`;
  assert.equal(action.step, row.step, where);
  assert.ok(near(action.action, row.action), `${where}: ${String(action.action)} is not ${String(row.action)}`);
  for (const [output, expected] of Object.entries(row.diagnostics)) {
    assert.ok(near(action.diagnostics[output], expected), `${where}: ${output}`);
  }
}

const startOf = ({ start }: EpisodeVector) => ({
  seed: BigInt(start.seed), sample: start.sample, instructionChoice: start.instruction_choice, firstStep: start.first_step,
});

for (const episode of EPISODES) {
  test(`episode in process: ${episode.name}`, async () => {
    const agent = await LocalAgent.open(await Bundle.open(filesIn(BUNDLE)), episode.agent, ort);
    await agent.reset(startOf(episode));
    for (const row of episode.steps) {
      if (!row.replayed) {
        for (const [name, numbers] of Object.entries(row.states)) assert.ok(near(agent.states[name], numbers), name);
      }
      const action = await agent.act(Float32Array.from(row.observation), row.action_mask, row.step);
      assert.deepEqual([action.missedSteps, action.replayed, action.fresh], [row.missed_steps, row.replayed, true]);
      checkRow(episode.name, row, action);
    }
    await agent.close();
  });

  for (const stream of [false, true]) {
    test(`episode over gRPC${stream ? ", streamed" : ""}: ${episode.name}`, async () => {
      const agent = await AgentClient.connect(served[episode.agent]!.address, { stream, diagnostics: true, timeoutMs: 10_000 });
      await agent.reset(startOf(episode));
      for (const row of asPlayed(episode)) {
        const action = await agent.act(Float32Array.from(row.observation), row.action_mask);
        assert.deepEqual([action.missedSteps, action.replayed, action.fresh], [0, false, true]);
        checkRow(episode.name, row, action);
      }
      await agent.close();
    });
  }
}

for (const refused of ERRORS.refused) {
  test(`refused: ${refused.name}`, async () => {
    const client = new grpc.Client(served[ERRORS.agent]!.address, grpc.credentials.createInsecure());
    const same = (bytes: Buffer) => bytes;
    const send = (method: string, body: Buffer) =>
      new Promise<Buffer>((resolve, reject) => {
        client.makeUnaryRequest(`/hmarl.agent.v1.AgentService/${method}`, same, same, body, (error, reply) => {
          if (error) reject(error);
          else resolve(reply!);
        });
      });
    const started = messages.StartEpisodeResponse.decode(await send("StartEpisode", Buffer.from(ERRORS.before.start, "hex")));
    const own = (hex: string) =>
      Buffer.from(Buffer.from(hex, "hex").toString("latin1").replaceAll(ERRORS.placeholder, started.sessionId), "latin1");
    await send("Act", own(ERRORS.before.act));
    const message = refused.message.replaceAll(ERRORS.placeholder, started.sessionId);
    await assert.rejects(send(refused.method, own(refused.hex)), { code: refused.number, details: message });
    assert.equal(grpc.status[refused.number], refused.code);
    if (refused.method === "Act" && refused.text !== undefined) {
      const stubs = new messages.AgentServiceClient(served[ERRORS.agent]!.address, grpc.credentials.createInsecure());
      const call = stubs.streamAct();
      call.on("error", () => undefined); // is cancelled below
      const reply = new Promise<messages.StreamActResponse>((resolve) => call.once("data", resolve));
      call.write({ act: messages.ActRequest.decode(own(refused.hex)), metadata: {} });
      const { result } = await reply;
      assert.ok(result?.$case === "error");
      assert.deepEqual([result.value.code, result.value.message], [refused.number, message]);
      call.cancel();
      stubs.close();
    }
    client.close();
  });
}

for (const each of vectors<ActionVector[]>("actions")) {
  test(`an action that is answered: ${each.name}`, async (context) => {
    const manifest = JSON.parse(readFileSync(`${BUNDLE}/manifest.json`, "utf8")) as { agents: { id: string }[] };
    const [agentId, bundleSha256] = [each.agent, "some"];
    const described = { agentId, bundleSha256, agentManifestJson: JSON.stringify(manifest.agents.find(({ id }) => id === agentId)) };
    const server = new grpc.Server();
    const unasked = () => assert.fail("was not to be asked");
    server.addService(messages.AgentServiceService, {
      getAgentInfo: (_: unknown, answer: grpc.sendUnaryData<unknown>) => answer(null, messages.GetAgentInfoResponse.fromPartial(described)),
      startEpisode: (_: unknown, answer: grpc.sendUnaryData<unknown>) =>
        answer(null, messages.StartEpisodeResponse.fromPartial({ sessionId: "one", agentId, bundleSha256 })),
      act: (_: unknown, answer: grpc.sendUnaryData<unknown>) => answer(null, messages.ActResponse.decode(Buffer.from(each.hex, "hex"))),
      streamAct: unasked,
      endEpisode: (_: unknown, answer: grpc.sendUnaryData<unknown>) => answer(null, messages.EndEpisodeResponse.fromPartial({})),
    });
    const port = await new Promise<number>((resolve, reject) =>
      server.bindAsync("127.0.0.1:0", grpc.ServerCredentials.createInsecure(), (error, bound) => (error ? reject(error) : resolve(bound))));
    const client = await AgentClient.connect(`127.0.0.1:${port}`, { fallback: hold({ expiresAfterSteps: 9, then: zero() }), timeoutMs: 10_000 });
    context.after(() => server.forceShutdown());
    await client.reset({ seed: 1 });
    const act = client.act(new Float32Array(6), each.action_mask);
    if (each.action === undefined) await assert.rejects(act, AgentError);
    else {
      const { action, fresh } = await act;
      assert.deepEqual([typeof action === "number" ? action : [...action], fresh], [each.action, true]);
    }
    assert.equal(client.statistics.fresh, each.action === undefined ? 0 : 1);
    await client.close();
  });
}
