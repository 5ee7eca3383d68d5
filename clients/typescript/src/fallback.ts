/** What a client does when no fresh action arrives in time. */
import { actionProblem, type ActionValue, branches } from "./agent.ts";
import { StaleActionError, UsageError } from "./errors.ts";
import type { ActionSpace } from "./manifest.ts";

export interface Situation {
  step: number;
  actionSpace: ActionSpace;
  /** One byte an action; undefined where all are legal. */
  actionMask: Uint8Array | undefined;
  /** The last fresh action of this episode, if there was one, and its age. */
  lastAction: ActionValue | undefined;
  ageMs: number;
  ageSteps: number;
  reason: string;
}

export interface Fallback {
  /** The action to take instead, legal under the mask; throws `StaleActionError` where nothing may stand in. */
  decide(situation: Situation): ActionValue;
  /** Whether the client may join the episode again by itself. */
  mayRejoin(situation: Situation): boolean;
}

/** Throw at once: the default. */
export function fail(): Fallback {
  return {
    decide(situation) {
      const age = situation.lastAction === undefined ? "missing" : `${situation.ageMs.toFixed(0)} ms old`;
      throw new StaleActionError(`step ${situation.step}: ${situation.reason}; the last fresh action is ${age}`);
    },
    mayRejoin: () => true,
  };
}

/** The zero action, or the point of a continuous space nearest to it; where 0 is illegal the first legal one. */
export function zero(): Fallback {
  return { decide: (situation) => nearestLegal(zeroOf(situation.actionSpace), situation), mayRejoin: () => true };
}

/** A fixed action, e.g. the environment's own no-op; where it is illegal the first legal one. */
export function fixed(action: ActionValue): Fallback {
  return { decide: (situation) => nearestLegal(action, situation), mayRejoin: () => true };
}

/** The application's own rule. */
export function call(rule: (situation: Situation) => ActionValue): Fallback {
  return {
    decide(situation) {
      const action = rule(situation);
      if (isLegal(action, situation)) return action;
      throw new StaleActionError(`step ${situation.step}: the rule answered ${action}, which is no action, or an illegal one`);
    },
    mayRejoin: () => true,
  };
}

export interface HoldLimits {
  expiresAfterMs?: number;
  expiresAfterSteps?: number;
  /** What decides afterwards, and where there is nothing to hold; `fail()` unless given. */
  then?: Fallback;
}

/** Repeat the last fresh action until it expires, or until the mask excludes it. */
export function hold({ expiresAfterMs = Infinity, expiresAfterSteps = Infinity, then }: HoldLimits): Fallback {
  if (!(expiresAfterMs > 0) || !(expiresAfterSteps > 0) || (expiresAfterMs === Infinity && expiresAfterSteps === Infinity)) {
    throw new UsageError("hold: expected expiresAfterMs or expiresAfterSteps above 0; a held action must expire");
  }
  const next = then ?? fail();
  const expired = (situation: Situation): boolean =>
    situation.lastAction === undefined || situation.ageMs > expiresAfterMs || situation.ageSteps > expiresAfterSteps;
  return {
    decide(situation) {
      const { lastAction } = situation;
      if (lastAction === undefined || expired(situation) || !isLegal(lastAction, situation)) return next.decide(situation);
      return lastAction;
    },
    // Once a held action has expired into an error, only an explicit reset goes on.
    mayRejoin(situation) {
      if (situation.lastAction === undefined || !expired(situation)) return true;
      return then !== undefined && next.mayRejoin(situation);
    },
  };
}

function zeroOf(space: ActionSpace): ActionValue {
  if (space.type === "discrete") return 0;
  if (space.type === "multi_discrete") return space.n.map(() => 0);
  return Float32Array.from(space.low, (low, index) => Math.min(Math.max(0, low), space.high[index]!));
}

function choices(action: ActionValue): number[] {
  return typeof action === "number" ? [action] : [...action];
}

function isLegal(action: ActionValue, { actionSpace, actionMask }: Situation): boolean {
  return actionProblem(actionSpace, action, actionMask) === undefined;
}

function nearestLegal(action: ActionValue, { actionSpace, actionMask }: Situation): ActionValue {
  if (actionMask === undefined || actionSpace.type === "box") return action;
  const parts = branches(actionSpace, actionMask);
  const legal = choices(action).map((choice, branch) => (parts[branch]![choice] === 1 ? choice : parts[branch]!.indexOf(1)));
  return typeof action === "number" ? legal[0]! : legal;
}
