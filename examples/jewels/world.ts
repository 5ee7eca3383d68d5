/** The physics and the observations of mpe/simple_spread: three guards, three jewels, in [-1, 1] x [-1, 1]. */
export type Point = [x: number, y: number];

export const TIME_STEP_S = 0.1;
export const GUARD_RADIUS = 0.15;
export const MOVES: readonly Point[] = [[0, 0], [-5, 0], [5, 0], [0, -5], [0, 5]];
const [DAMPING, CONTACT_FORCE, CONTACT_MARGIN] = [0.25, 100, 1e-3];

export type World = { guards: Point[]; velocities: Point[]; jewels: Point[] };

export const minus = (a: Point, b: Point): Point => [a[0] - b[0], a[1] - b[1]];
export const distance = (a: Point, b: Point): number => Math.hypot(...minus(a, b));

/** What guard `i` sees, as the policy was trained: 18 numbers. */
export function observation({ guards, velocities, jewels }: World, i: number): Float32Array {
  const own = guards[i]!;
  const others = guards.filter((_, j) => j !== i);
  const seen = [velocities[i]!, own, ...jewels.map((jewel) => minus(jewel, own)), ...others.map((other) => minus(other, own))];
  return Float32Array.from([...seen.flat(), 0, 0, 0, 0]); // the others' words: all are silent
}

/** One step of 0.1 s. */
export function advance({ guards, velocities }: World, moves: number[]): void {
  const forces = guards.map((own, i): Point => {
    let [x, y] = MOVES[moves[i]!]!;
    for (const [j, other] of guards.entries()) {
      if (j === i) continue;
      const apart = distance(own, other);
      const overlap = CONTACT_MARGIN * softplus((2 * GUARD_RADIUS - apart) / CONTACT_MARGIN);
      const push = (CONTACT_FORCE * overlap) / Math.max(apart, 1e-300);
      x += push * (own[0] - other[0]);
      y += push * (own[1] - other[1]);
    }
    return [x, y];
  });
  for (const [i, velocity] of velocities.entries()) {
    for (const axis of [0, 1] as const) {
      guards[i]![axis] += velocity[axis] * TIME_STEP_S;
      velocity[axis] = velocity[axis] * (1 - DAMPING) + forces[i]![axis] * TIME_STEP_S;
    }
  }
}

function softplus(x: number): number {
  return Math.max(x, 0) + Math.log1p(Math.exp(-Math.abs(x)));
}
