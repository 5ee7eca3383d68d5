/** One agent, served by another process over gRPC: deadlines, fallbacks, retries, joining episodes again. */
import { type ChannelCredentials, credentials as grpcCredentials, status } from "@grpc/grpc-js";

import { type Action, type ActionMask, type ActionValue, type Agent, type AgentSpec } from "./agent.ts";
import { agentSpec, checkedEpisode, checkedInput, type Diagnostics, type Episode } from "./agent.ts";
import { CallFailed, Connection, staysOnThisMachine } from "./connection.ts";
import { AgentError, MisuseError, ObservationError, OtherBundleError, UsageError } from "./errors.ts";
import { fail, type Fallback, type Situation } from "./fallback.ts";
import {
  type ActRequest, type ActResponse, type GetAgentInfoResponse, InstructionChoice, type StartEpisodeRequest,
  type StartEpisodeResponse,
} from "./generated/hmarl/agent/v1/agent.ts";
import { type AgentModel } from "./manifest.ts";
import { actionOf, content, floatTensor, maskTensor } from "./tensors.ts";

export interface ClientOptions {
  /** Milliseconds that an act may take, all retries included. */
  timeoutMs?: number;
  /** Decides when no fresh action arrives in time. */
  fallback?: Fallback;
  /** How long to wait for an agent that is still starting. */
  connectTimeoutMs?: number;
  /** Acts over one stream an episode, which is quicker than unary calls. */
  stream?: boolean;
  /** Whether to ask for the policy's further outputs. */
  diagnostics?: boolean;
  /** Whether to start the episode again, at the current step, when the agent has forgotten the session. */
  rejoin?: boolean;
  /** Whether the agent may come back with another bundle. */
  allowBundleChange?: boolean;
  /** `credentials.createSsl(...)` of @grpc/grpc-js for TLS; plaintext unless given. */
  credentials?: ChannelCredentials;
  /** A bearer token. */
  token?: string;
}

type Options = Required<Omit<ClientOptions, "token">> & { token: string | undefined };

/** Counters since the client was made. */
export class Statistics {
  acts = 0;
  fresh = 0;
  fallbacks = 0;
  lateReplies = 0;
  missedSteps = 0;
  rejoins = 0;
  stateResets = 0;
  reconnects = 0;
  /** Fallbacks by what kept a fresh action: the name of a gRPC status code, or LATE_REPLY. */
  fallbackReasons: Record<string, number> = {};
}

const END_TIMEOUT_MS = 300;
const RETRY_PAUSE_MS = 10;
const START_PAUSE_MS = 20;
const LEAST_PATIENCE_MS = 500;
const MOST_PATIENCE_MS = 8000;
// No answer of the agent: it is gone or going. Repeating a step never advances the state twice.
const LOST: readonly status[] = [status.UNAVAILABLE, status.UNKNOWN];
// The request itself is wrong: a fallback would hide a mistake of the program.
const CALLERS_FAULT: readonly status[] = [
  status.FAILED_PRECONDITION, status.UNIMPLEMENTED, status.UNAUTHENTICATED, status.PERMISSION_DENIED,
];
const CHOICES = {
  argmax: InstructionChoice.INSTRUCTION_CHOICE_ARGMAX,
  sample: InstructionChoice.INSTRUCTION_CHOICE_SAMPLE,
  common: InstructionChoice.INSTRUCTION_CHOICE_COMMON,
} as const;

/** What kept a fresh action: a kind, to be counted, and the reason in words. */
interface Nothing {
  kind: string;
  reason: string;
}

export class AgentClient implements Agent {
  readonly address: string;
  readonly spec: AgentSpec;
  readonly statistics = new Statistics();
  readonly #options: Options;
  #connection: Connection;
  #bundle: string;
  #request: StartEpisodeRequest | undefined;
  #sessionId: string | undefined;
  #nextStep = 0;
  #last: { action: ActionValue; step: number; atMs: number } | undefined;
  #lost: Nothing | undefined;
  #silentMs = 0;
  #patienceMs = LEAST_PATIENCE_MS;
  #slowestMs = 0;
  #busy = false;
  #closed = false;

  private constructor(address: string, options: Options, connection: Connection, info: GetAgentInfoResponse) {
    this.address = address;
    this.#options = options;
    this.#connection = connection;
    this.#bundle = info.bundleSha256;
    this.spec = agentSpec(JSON.parse(info.agentManifestJson) as AgentModel);
  }

  /** Connect to the agent at `HOST:PORT` or `unix:PATH`; waits for one that is still starting. */
  static async connect(address: string, given: ClientOptions = {}): Promise<AgentClient> {
    const options = {
      timeoutMs: 1000, fallback: fail(), connectTimeoutMs: 10_000, stream: false, diagnostics: false, rejoin: true,
      allowBundleChange: false, token: undefined, credentials: grpcCredentials.createInsecure(), ...given,
    };
    if (!(options.timeoutMs > 0)) throw new UsageError(`timeoutMs: got ${options.timeoutMs}, expected more than 0`);
    if (options.token !== undefined && given.credentials === undefined && !staysOnThisMachine(address)) {
      throw new UsageError(`${address}: token: without TLS it would travel readable: give credentials, too`);
    }
    const connection = new Connection(address, options.credentials, options.token);
    try {
      const deadline = performance.now() + options.connectTimeoutMs;
      const info = await untilThere(deadline, (left) => connection.getAgentInfo("", left));
      return new AgentClient(address, options, connection, info);
    } catch (error) {
      connection.close();
      if (!(error instanceof CallFailed)) throw error;
      throw new AgentError(`${address}: connecting: ${status[error.code]}: ${error.message}`, { cause: error });
    }
  }

  /** Start an episode; the one before it, if any, is ended. */
  async reset(episode: Episode): Promise<void> {
    const { seed, sample, instructionChoice, firstStep } = checkedEpisode(episode);
    await this.#alone("reset", async () => {
      await this.#end();
      const request: StartEpisodeRequest = {
        seed, sample, firstStep: BigInt(firstStep), diagnostics: this.#options.diagnostics, bundleSha256: "",
        instructionChoice: instructionChoice ? CHOICES[instructionChoice] : InstructionChoice.INSTRUCTION_CHOICE_UNSPECIFIED,
      };
      const deadline = performance.now() + this.#options.connectTimeoutMs;
      try {
        await untilThere(deadline, (left) => this.#start(request, left));
      } catch (error) {
        if (!(error instanceof CallFailed)) throw error;
        throw new AgentError(`${this.#name}: starting an episode: ${status[error.code]}: ${error.message}`);
      }
      this.#nextStep = firstStep;
      this.#last = this.#lost = undefined;
    });
  }

  /** The action for the next step: the policy's if it arrives in time, else the fallback's. */
  async act(observation: Float32Array, actionMask?: ActionMask): Promise<Action> {
    const begin = performance.now();
    return await this.#alone("act", async () => {
      if (this.#request === undefined) throw new AgentError(`${this.#name}: no episode: call reset first`);
      const mask = checkedInput(this.spec, observation, actionMask);
      const step = this.#nextStep;
      this.#nextStep = step + 1; // used up before anything is sent, so that it is never sent with other content
      this.statistics.acts++;
      const deadline = begin + this.#options.timeoutMs;
      let nothing: Nothing = { kind: "DEADLINE_EXCEEDED", reason: "the time allowed is over" };
      try {
        const outcome = await this.#attempts(observation, mask, step, deadline);
        if ("kind" in outcome) nothing = outcome;
        else {
          const action = this.#accept(outcome, step, mask, begin, deadline);
          if (action !== undefined) return action;
          nothing = { kind: "LATE_REPLY", reason: "the reply was taken after the time allowed was over" };
        }
      } catch (error) {
        if (error instanceof ObservationError) this.#nextStep = step;
        throw error;
      }
      return this.#standIn(this.#situation(step, mask, nothing.reason), nothing.kind, begin);
    });
  }

  /** End the episode and disconnect; a second call does nothing. */
  async close(): Promise<void> {
    if (this.#closed) return;
    await this.#alone("close", async () => {
      this.#closed = true;
      await this.#end();
      this.#connection.close();
    });
  }

  get #name(): string {
    return `agent '${this.spec.id}' at ${this.address}`;
  }

  async #alone<T>(doing: string, work: () => Promise<T>): Promise<T> {
    if (this.#closed) throw new MisuseError(`${this.#name}: it is closed: make a new one`);
    if (this.#busy) throw new MisuseError(`${this.#name}: ${doing} during another call: one call at a time`);
    this.#busy = true;
    try {
      return await work();
    } finally {
      this.#busy = false;
    }
  }

  /** Ask until a fresh reply arrives or the time is over; then what kept it. */
  async #attempts(
    observation: Float32Array, mask: Uint8Array | undefined, step: number, deadline: number,
  ): Promise<ActResponse | Nothing> {
    const request: ActRequest = {
      sessionId: this.#sessionId ?? "", step: BigInt(step), observation: floatTensor(observation),
      actionMask: mask && maskTensor(mask),
    };
    let nothing = this.#lost ?? { kind: "DEADLINE_EXCEEDED", reason: "the time allowed is over" };
    for (let tries = 0; performance.now() < deadline; tries++) {
      try {
        if (this.#lost !== undefined) {
          const situation = this.#situation(step, mask, this.#lost.reason);
          if (!this.#options.rejoin || !this.#options.fallback.mayRejoin(situation)) return this.#lost;
          await this.#joinAgain(step, deadline);
        }
        request.sessionId = this.#sessionId!;
        return await this.#ask((left) =>
          this.#options.stream ? this.#connection.streamedAct(request, left) : this.#connection.act(request, left), deadline);
      } catch (error) {
        if (!(error instanceof CallFailed)) throw error;
        nothing = { kind: status[error.code], reason: `${this.#name}: ${status[error.code]}: ${error.message}` };
        if (this.#isFinal(error, nothing, step)) return nothing;
        if (tries > 0) await pause(Math.min(RETRY_PAUSE_MS, Math.max(deadline - performance.now(), 0)));
      }
    }
    return nothing;
  }

  /** Whether the fallback has to decide, whatever time is left; throws where the program is wrong. */
  #isFinal(error: CallFailed, nothing: Nothing, step: number): boolean {
    if (error.code === status.DEADLINE_EXCEEDED || LOST.includes(error.code)) return false;
    if (error.code === status.INVALID_ARGUMENT) throw new ObservationError(error.message);
    if (CALLERS_FAULT.includes(error.code)) {
      throw new AgentError(`${nothing.reason}; the next act goes on with step ${step + 1}`);
    }
    if (error.code !== status.NOT_FOUND) return true;
    this.#lost = nothing;
    this.#connection.endStream();
    return false;
  }

  /** One request. A connection over which nothing is answered for a while is left, and another one made. */
  async #ask<T>(send: (leftMs: number) => Promise<T>, deadline: number): Promise<T> {
    const begin = performance.now();
    const allowed = Math.min(deadline - begin, this.#patienceMs - this.#silentMs);
    try {
      const answer = await send(allowed);
      this.#slowestMs = Math.max(performance.now() - begin, 0.7 * this.#slowestMs);
      this.#patienceMs = Math.max(4 * this.#slowestMs, LEAST_PATIENCE_MS);
      this.#silentMs = 0;
      return answer;
    } catch (error) {
      if (error instanceof CallFailed && error.code === status.DEADLINE_EXCEEDED) {
        this.#silentMs += Math.min(performance.now() - begin, allowed);
        if (this.#silentMs >= this.#patienceMs - 1) this.#reconnect();
      }
      throw error;
    }
  }

  #reconnect(): void {
    this.#connection.close();
    this.#connection = new Connection(this.address, this.#options.credentials, this.#options.token);
    this.#patienceMs = Math.min(2 * this.#patienceMs, MOST_PATIENCE_MS);
    this.#silentMs = 0;
    this.statistics.reconnects++;
  }

  /** The episode in a new session, from this step on: the agent has forgotten the old one. */
  async #joinAgain(step: number, deadline: number): Promise<void> {
    const request = { ...this.#request!, firstStep: BigInt(step) };
    const response = await this.#ask((left) => this.#start(request, left), deadline);
    this.#lost = undefined;
    this.statistics.rejoins++;
    if (response.stateResetMidEpisode) this.statistics.stateResets++;
  }

  /** A new session, of the agent and bundle that this client is for. */
  async #start(request: StartEpisodeRequest, timeoutMs: number): Promise<StartEpisodeResponse> {
    const response = await this.#connection.startEpisode(request, timeoutMs);
    const { agentId, bundleSha256, sessionId } = response;
    const otherBundle = bundleSha256 !== this.#bundle && !this.#options.allowBundleChange;
    if (agentId !== this.spec.id || otherBundle) {
      await this.#connection.endEpisode(sessionId, END_TIMEOUT_MS).catch(() => undefined);
      if (agentId !== this.spec.id) {
        throw new AgentError(`${this.address}: got agent '${agentId}', expected '${this.spec.id}': its actions are not taken`);
      }
      throw new OtherBundleError(`${this.#name}: got bundle ${bundleSha256}, expected ${this.#bundle}: make a new client`);
    }
    if (bundleSha256 !== this.#bundle) await this.#takeOver(bundleSha256, timeoutMs);
    this.#request = request;
    this.#sessionId = sessionId;
    return response;
  }

  /** Go on with another bundle, whose spaces have to be the same. */
  async #takeOver(bundleSha256: string, timeoutMs: number): Promise<void> {
    const info = await this.#connection.getAgentInfo(bundleSha256, timeoutMs);
    const spec = agentSpec(JSON.parse(info.agentManifestJson) as AgentModel);
    if (JSON.stringify(spec) !== JSON.stringify(this.spec)) {
      throw new AgentError(`${this.#name}: bundle ${bundleSha256} has other spaces: make a new client`);
    }
    this.#bundle = bundleSha256;
  }

  #accept(
    reply: ActResponse, step: number, mask: Uint8Array | undefined, begin: number, deadline: number,
  ): Action | undefined {
    if (reply.step !== BigInt(step)) throw new AgentError(`${this.#name}: got a reply to step ${reply.step}, expected ${step}`);
    const action = actionOf(reply.action, this.spec.actionSpace, mask);
    const missedSteps = Number(reply.missedSteps);
    this.statistics.missedSteps += missedSteps;
    const now = performance.now();
    if (now > deadline) {
      this.statistics.lateReplies++;
      return undefined;
    }
    const diagnostics: Diagnostics = {};
    for (const [name, tensor] of Object.entries(reply.diagnostics)) diagnostics[name] = content(tensor, name);
    this.#last = { action, step, atMs: now };
    this.statistics.fresh++;
    return { action, step, fresh: true, missedSteps, replayed: reply.replayed, diagnostics, latencyMs: now - begin };
  }

  #standIn(situation: Situation, kind: string, begin: number): Action {
    this.statistics.fallbacks++;
    this.statistics.fallbackReasons[kind] = (this.statistics.fallbackReasons[kind] ?? 0) + 1;
    const decided = this.#options.fallback.decide(situation);
    const action = typeof decided === "number" ? decided : decided.slice();
    const { step } = situation;
    const latencyMs = performance.now() - begin;
    return { action, step, fresh: false, missedSteps: 0, replayed: false, diagnostics: {}, latencyMs };
  }

  #situation(step: number, actionMask: Uint8Array | undefined, reason: string): Situation {
    const last = this.#last;
    return {
      step, actionMask, reason, actionSpace: this.spec.actionSpace, lastAction: last?.action,
      ageMs: last ? performance.now() - last.atMs : Infinity, ageSteps: last ? step - last.step : Infinity,
    };
  }

  /** Tell the agent that the episode is over; if it does not hear it, it forgets the session by itself. */
  async #end(): Promise<void> {
    const sessionId = this.#sessionId;
    this.#request = this.#sessionId = undefined;
    this.#connection.endStream();
    if (sessionId !== undefined) await this.#connection.endEpisode(sessionId, END_TIMEOUT_MS).catch(() => undefined);
  }
}

/** Ask again while the agent is not there yet. */
async function untilThere<T>(deadline: number, ask: (leftMs: number) => Promise<T>): Promise<T> {
  for (;;) {
    try {
      return await ask(deadline - performance.now());
    } catch (error) {
      const there = !(error instanceof CallFailed) || error.code !== status.UNAVAILABLE;
      if (there || performance.now() + START_PAUSE_MS >= deadline) throw error;
      await pause(START_PAUSE_MS);
    }
  }
}

function pause(milliseconds: number): Promise<void> {
  return new Promise((resolve) => setTimeout(resolve, milliseconds));
}
