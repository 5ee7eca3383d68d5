/** Steal the jewels: three guards, whose policies hmarl trained and exported, play against the mouse, all in this page. */
import * as ort from "onnxruntime-web/wasm";

import { Bundle, filesBelow, LocalAgent } from "../../clients/typescript/src/index.ts";
import { advance, distance, GUARD_RADIUS, minus, observation, type Point, TIME_STEP_S, type World } from "./world.ts";

const [THIEF_SPEED, THIEF_RADIUS, JEWEL_RADIUS, STUNNED_S, LIVES, HOP_STEPS] = [1.7, 0.06, 0.06, 1.5, 3, 20];
const COLOURS = ["#e4572e", "#2e86ab", "#5b8e3e"];
ort.env.wasm.wasmPaths = { wasm: new URL("dist/ort-wasm-simd-threaded.wasm", document.baseURI).href };
ort.env.wasm.numThreads = 1;

const canvas = document.querySelector("canvas")!;
const context = canvas.getContext("2d")!;
const scale = canvas.width / 2.4;
const toScreen = ([x, y]: Point): Point => [(x + 1.2) * scale, (1.2 - y) * scale];

class Game {
  readonly world: World;
  readonly thief: Point = [0, -1.05];
  mouse: Point = [0, -1.05];
  score = 0;
  lives = LIVES;
  steps = 0;
  stunned = 0;
  readonly #guards: LocalAgent[];
  #random: number;
  #before: Point[];

  constructor(guards: LocalAgent[], seed: number) {
    this.#guards = guards;
    this.#random = seed >>> 0;
    this.world = { guards: this.#points(), velocities: [[0, 0], [0, 0], [0, 0]], jewels: this.#points() };
    this.#before = structuredClone(this.world.guards);
  }

  /** A jewel can be taken where no guard stands on it. */
  free(jewel: Point): boolean {
    return this.world.guards.every((guard) => distance(guard, jewel) > GUARD_RADIUS + JEWEL_RADIUS);
  }

  /** Each guard sees for itself and decides for itself; then all move. */
  async step(): Promise<void> {
    const acts = await Promise.all(this.#guards.map((guard, i) => guard.act(observation(this.world, i))));
    this.#before = structuredClone(this.world.guards);
    advance(this.world, acts.map(({ action }) => action as number));
    if (++this.steps % HOP_STEPS === 0) this.world.jewels[(this.steps / HOP_STEPS) % 3] = this.#point(); // one in turn
  }

  /** The thief goes to the mouse, takes free jewels and is caught by guards; called for each picture. */
  steal(seconds: number, part: number): void {
    this.stunned = Math.max(this.stunned - seconds, 0);
    if (this.lives === 0 || this.stunned > 0) return;
    const [x, y] = minus(this.mouse, this.thief);
    const share = Math.min(1, (THIEF_SPEED * seconds) / Math.max(Math.hypot(x, y), 1e-9));
    this.thief[0] += x * share;
    this.thief[1] += y * share;
    for (const [i, jewel] of this.world.jewels.entries()) {
      if (distance(jewel, this.thief) < THIEF_RADIUS + JEWEL_RADIUS && this.free(jewel)) {
        this.score++;
        this.world.jewels[i] = this.#point();
      }
    }
    if (this.guardsAt(part).some((guard) => distance(guard, this.thief) < GUARD_RADIUS + THIEF_RADIUS)) {
      this.lives--;
      this.stunned = STUNNED_S;
      this.thief.splice(0, 2, 0, -1.05);
    }
  }

  /** Where the guards are drawn, between two of their steps. */
  guardsAt(part: number): Point[] {
    return this.world.guards.map((guard, i) => {
      const before = this.#before[i]!;
      return [before[0] + part * (guard[0] - before[0]), before[1] + part * (guard[1] - before[1])];
    });
  }

  /** In [-0.9, 0.9], as follows from the seed: ?seed=7 puts the same jewels into the same places again. */
  #number = (): number => {
    this.#random = (Math.imul(this.#random, 1664525) + 1013904223) >>> 0;
    return 0.9 * (this.#random / 2 ** 31 - 1);
  };
  #point = (): Point => [this.#number(), this.#number()];
  #points = (): Point[] => [this.#point(), this.#point(), this.#point()];
}

function disc(at: Point, radius: number, colour: string): void {
  context.beginPath();
  context.arc(...toScreen(at), radius * scale, 0, 2 * Math.PI);
  context.fillStyle = colour;
  context.fill();
}

function draw(game: Game, part: number): void {
  context.clearRect(0, 0, canvas.width, canvas.height);
  for (const jewel of game.world.jewels) disc(jewel, JEWEL_RADIUS, game.free(jewel) ? "#f2b705" : "#b9a15c");
  context.globalAlpha = 0.8;
  for (const [i, guard] of game.guardsAt(part).entries()) disc(guard, GUARD_RADIUS, COLOURS[i]!);
  context.globalAlpha = game.stunned > 0 ? 0.3 : 1;
  disc(game.thief, THIEF_RADIUS, "#222");
  context.globalAlpha = 1;
  const over = game.lives === 0 ? ": click to play again" : "";
  document.querySelector("#said")!.textContent = `jewels ${game.score}, lives ${game.lives}${over}`;
}

async function main(): Promise<void> {
  const bundle = await Bundle.open(filesBelow(new URL("bundle", document.baseURI)));
  const guards = await Promise.all(bundle.manifest.agents.map(({ id }) => LocalAgent.open(bundle, id, ort)));
  const seed = Number(new URLSearchParams(location.search).get("seed") ?? Date.now());
  for (const guard of guards) await guard.reset({ seed });
  let game = new Game(guards, seed);
  canvas.addEventListener("pointermove", (event) => {
    const box = canvas.getBoundingClientRect();
    game.mouse = [(2.4 * (event.clientX - box.left)) / box.width - 1.2, 1.2 - (2.4 * (event.clientY - box.top)) / box.height];
  });
  canvas.addEventListener("click", () => {
    if (game.lives === 0) game = new Game(guards, seed + 1);
  });
  Object.defineProperty(globalThis, "game", { get: () => game }); // for the browser's console, and for tests
  let [stepped, drawn, busy] = [performance.now(), performance.now(), false];
  const frame = (now: number): void => {
    if (!busy && now - stepped >= 1000 * TIME_STEP_S) {
      stepped = now;
      busy = true;
      void game.step().finally(() => (busy = false));
    }
    const part = Math.min((now - stepped) / (1000 * TIME_STEP_S), 1);
    game.steal(Math.min(Math.max(now - drawn, 0) / 1000, 0.1), part);
    drawn = now;
    draw(game, part);
    requestAnimationFrame(frame);
  };
  requestAnimationFrame(frame);
}

main().catch((error: unknown) => (document.querySelector("#said")!.textContent = String(error)));
