"""SMAX, JaxMARL's battles in the style of StarCraft II, batched and compiled with JAX: ``smax/2s3z``.

The team fights JaxMARL's heuristic enemy (``HeuristicEnemySMAX``), whose rules and random numbers these are: battle b
equals JaxMARL's, started with ``stream, key = split(PRNGKey(seed_b))`` and ``reset(key)`` and stepped, auto-reset
included, with ``step(key, ...)`` for ``stream, key = split(stream)``. Each battle has a stream of its own.

A unit that has fallen is inactive. The step's one reward is shared out equally among the units that stood before it, so
that the team reward is the *sum*. An episode is terminated when a team has fallen, and truncated after
``max_steps`` + 1 steps, as JaxMARL counts; its success is that only the enemies have fallen.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterator, Mapping
from functools import cache
from typing import Any

import jax
import jax.dlpack
import jax.numpy as jnp
import numpy as np
import numpy.typing as npt
from gymnasium import spaces

from hmarl.sdk.environment import Array, CopyCost, Observation, StepResult
from hmarl.sdk.environments.authoring import (
    COUNT,
    FLAG,
    NUMBER,
    POSITIVE,
    Rule,
    at_least,
    checked_actions,
    checked_seeds,
    checked_state,
    not_begun,
    resolve_arguments,
)
from hmarl.sdk.environments.smax import drawing
from hmarl.sdk.environments.smax.battle import Battles, Sight, Simulator
from hmarl.sdk.environments.smax.package import SCENARIOS, Scenario
from hmarl.sdk.errors import UsageError, unknown_name
from hmarl.sdk.spaces import AgentSpec, EnvironmentSpec

_LOGGER = logging.getLogger(__name__)

_MARINE = 0
# Maps of ours beside JaxMARL's: like its 5m_vs_6m, with other numbers.
_OWN_SCENARIOS = {"8m_vs_9m": Scenario(np.full(17, _MARINE, np.uint8), 8, 9, False, False)}
_SCENARIOS = {**SCENARIOS, **_OWN_SCENARIOS}
TASKS = list(_SCENARIOS)
COPY_COST = CopyCost(compiles=True)

_DEFAULTS: dict[str, Any] = {
    "walls_cause_death": True,
    "see_enemy_actions": True,
    "enemy_shoots": True,
    "attack_mode": "closest",
    "won_battle_bonus": 1.0,
    "max_steps": 100,
    "map_width": 32,
    "map_height": 32,
    "world_steps_per_env_step": 8,
    "time_per_step": 1 / 16,
}


def make(
    task: str, batch_size: int = 1, *, device: str = "cpu", arrays: str = "numpy", **arguments: Any
) -> SmaxEnvironment:
    """Make B copies of a battle.

    Args:
        task: one of ``TASKS``.
        batch_size: B, at least 1.
        device: where JAX computes: ``cpu``, or e.g. ``gpu`` or ``gpu:1``.
        arrays: what is handed over: ``numpy``, or ``jax``: JAX's own arrays, which stay on the device and which torch
            takes by DLPack without a copy; actions may then be whatever lends its memory by DLPack.
        arguments: as in JaxMARL: ``walls_cause_death`` (True), ``see_enemy_actions`` (True; units see what the visible
            enemies last did), ``enemy_shoots`` (True), ``attack_mode`` ("closest" or "random"; whom the enemy shoots),
            ``won_battle_bonus`` (1.0), ``max_steps`` (100), ``map_width`` and ``map_height`` (32),
            ``world_steps_per_env_step`` (8) and ``time_per_step`` (1/16 s).

    Raises:
        UsageError: an unknown task, argument or device, or a value of the wrong type or out of range.
    """
    if task not in _SCENARIOS:
        raise UsageError(unknown_name("smax task", task, TASKS))
    resolved = resolve_arguments(f"smax/{task}", arguments, _DEFAULTS, _RULES, others=["device", "arrays"])
    if arrays not in ("numpy", "jax"):
        raise UsageError(f"arrays: got {arrays!r}, expected 'numpy' or 'jax'")
    told = {**resolved, "device": device} | ({} if arrays == "numpy" else {"arrays": arrays})
    return SmaxEnvironment(task, batch_size, _device(device), told)


@cache
def _simulator(task: str, arguments: tuple[tuple[str, Any], ...]) -> Simulator:
    """One for all instances with the same arguments, so that they are compiled once."""
    return Simulator(_SCENARIOS[task], dict(arguments))


class SmaxEnvironment:
    """B copies of one battle; a ``VectorEnvironment``. Each call returns new arrays that later calls never touch."""

    def __init__(self, task: str, batch_size: int, device: jax.Device, arguments: Mapping[str, Any]) -> None:
        self.batch_size = batch_size
        self._device = device
        self._lends = arguments.get("arrays") == "jax"
        rules = {name: value for name, value in arguments.items() if name not in ("device", "arrays")}
        self._simulator = _simulator(task, tuple(sorted(rules.items())))
        self.spec = _spec(f"smax/{task}", self._simulator, arguments)
        self._battles: Battles | None = None
        self._sight: Sight | None = None
        self._called: set[str] = set()

    def reset(self, seeds: npt.NDArray[np.int64]) -> Observation:
        """Start B new battles.

        Args:
            seeds: [B] integers, at least 0.

        Raises:
            UsageError: seeds of another shape, or negative.
        """
        checked = jax.device_put(checked_seeds(seeds, self.batch_size).astype(np.uint32), self._device)
        self._battles, self._sight = self._timed("start", self._simulator.start, checked)
        return self._observation(self._sight)

    def step(self, actions: tuple[npt.NDArray[Any], ...]) -> StepResult:
        """Advance every battle; those that have ended start anew.

        Args:
            actions: one int64 array [B, N]: four moves, stop, then one attack for each enemy. With ``arrays=jax`` also
                a tensor, whose numbers are not looked at.

        Raises:
            UsageError: before the first ``reset``, or actions of a wrong number, shape or kind or out of range; nothing
                has then changed.
        """
        battles, _ = self._started("step")
        chosen = self._chosen(actions)
        battles, sight, outcome, keys = self._timed("step", self._simulator.step, battles, chosen)
        ended, final = np.asarray(outcome.ended), None
        if ended.any():
            # The memory of what was seen last is used again by what begins.
            final = self._observation(jax.tree.map(jnp.copy, sight) if self._lends else sight)
            battles, sight = self._simulator.restart(battles, sight, ended, keys)
        self._battles, self._sight = battles, sight
        rewards, terminated, truncated, success = (
            self._handed(part) for part in (outcome.rewards, outcome.terminated, outcome.truncated, outcome.success)
        )
        return StepResult(self._observation(sight), rewards, terminated, truncated, final, success)

    def get_state(self) -> dict[str, npt.NDArray[Any]]:
        """Everything that determines the future, as new arrays with B leading.

        Returns:
            The units' positions, health and so on under the names of JaxMARL's ``State``; ``stream``, the random keys;
            ``enemy_memory_...`` of the enemy's policy; ``enemy_sight``; and what is seen now as ``sight_...``.

        Raises:
            UsageError: before the first ``reset``.
        """
        return {name: np.array(leaf) for name, leaf in _named(self._started("get_state")).items()}

    def set_state(self, state: Mapping[str, npt.NDArray[Any]]) -> Observation:
        """Continue, to the last bit, where ``get_state`` was called.

        Raises:
            UsageError: an array is missing, unknown, or of another shape or kind; nothing has then changed.
        """
        like = self._simulator.shapes(self.batch_size)
        saved = checked_state(state, {name: np.empty(leaf.shape, leaf.dtype) for name, leaf in _named(like).items()})
        leaves = jax.device_put([saved[name] for name in _named(like)], self._device)
        self._battles, self._sight = jax.tree.unflatten(jax.tree.structure(like), leaves)
        return self._observation(self._sight)

    def render(self, index: int = 0) -> npt.NDArray[np.uint8]:
        """A picture [400, 400, 3] of battle ``index``: allies blue, enemies orange, a bar for each unit's health."""
        return drawing.draw(self._simulator.rules, self._units("render", index))

    def agent_pixels(self, index: int = 0) -> npt.NDArray[np.float64]:
        """[N, 3] x, y and radius of the allies in the picture; see ``LocatesAgents``."""
        return drawing.agent_pixels(self._simulator.rules, self._units("agent_pixels", index))

    def close(self) -> None:
        """Nothing to free."""

    def _started(self, method: str) -> tuple[Battles, Sight]:
        if self._battles is None or self._sight is None:
            raise not_begun(method)
        return self._battles, self._sight

    def _chosen(self, actions: tuple[Array, ...]) -> Any:
        """int32 [B, N]; looked at where they are NumPy's."""
        if not self._lends or all(isinstance(each, np.ndarray) for each in actions):
            (checked,) = checked_actions(actions, self.spec.groups, self.batch_size)
            return checked.astype(np.int32)
        shapes = [tuple(each.shape) for each in actions]
        if shapes != [(self.batch_size, len(self.spec.agents))] or not hasattr(actions[0], "int"):
            raise UsageError(
                f"actions: got {shapes}, expected one int64 tensor {[self.batch_size, len(self.spec.agents)]}"
            )
        return jax.device_put(jax.dlpack.from_dlpack(actions[0].int().contiguous()), self._device)

    def _handed(self, array: jax.Array) -> Array:
        """JAX's own array, or a copy: torch warns of arrays that cannot be written, as JAX's own memory is."""
        return array if self._lends else np.array(array)

    def _observation(self, sight: Sight) -> Observation:
        return Observation(
            observations=(self._handed(sight.observations),),
            action_masks=(self._handed(sight.masks),),
            state=self._handed(sight.state),
            active=self._handed(sight.active),
        )

    def _units(self, method: str, index: int) -> Any:
        """JaxMARL's ``State`` of one battle, of NumPy arrays."""
        battles, _ = self._started(method)
        return jax.tree.map(lambda leaf: np.array(leaf[index]), battles.units)

    def _timed(self, what: str, function: Callable[..., Any], *arguments: Any) -> Any:
        """Call a function; the log says how long the first call took, most of which is compilation."""
        if what in self._called:
            return function(*arguments)
        start = time.perf_counter()
        result = jax.block_until_ready(function(*arguments))  # type: ignore[no-untyped-call]
        self._called.add(what)
        _LOGGER.info("%s: the first '%s' took %.1f s", self.spec.name, what, time.perf_counter() - start)
        return result


def _named(moment: Any) -> dict[str, Any]:
    """The arrays of (Battles, Sight) in the order of their leaves, each under a name of its own."""
    leaves, _ = jax.tree_util.tree_flatten_with_path(moment)
    return {_name(path): leaf for path, leaf in leaves}


def _name(path: tuple[Any, ...]) -> str:
    part, *rest = (str(getattr(key, "name", getattr(key, "idx", ""))) for key in path)
    if part == "1":
        return f"sight_{rest[0]}"
    if rest[0] == "units":
        return rest[1]
    return "_".join(rest)


def _own_layout(features: list[str]) -> Iterator[tuple[str, int]]:
    """A unit's own features, with the two that are its position under that name."""
    if features[1:3] == ["position_x", "position_y"]:
        yield f"own: {features[0]}", 1
        yield "position", 2
        features = features[3:]
    yield f"own: {', '.join(features)}", len(features)


def _spec(name: str, simulator: Simulator, arguments: Mapping[str, Any]) -> EnvironmentSpec:
    battle, rules = simulator.battle, simulator.rules
    units = rules.unit_features
    agents = tuple(
        AgentSpec(
            id=agent,
            observation_size=rules.obs_size,
            action_space=spaces.Discrete(rules.num_ally_actions),
            has_action_mask=True,
            observation_layout=(
                *((f"other ally {other}: {', '.join(units)}", len(units)) for other in range(battle.num_allies - 1)),
                *((f"enemy {enemy}: {', '.join(units)}", len(units)) for enemy in range(battle.num_enemies)),
                *_own_layout(list(rules.own_features)),
            ),
        )
        for agent in battle.agents
    )
    return EnvironmentSpec(
        name=name,
        agents=agents,
        state_size=rules.state_size,
        horizon=arguments["max_steps"] + 1,
        team_reward="sum",
        control_period_s=arguments["world_steps_per_env_step"] * arguments["time_per_step"],
        arguments=dict(arguments),
        has_success=True,
    )


def _device(device: str) -> jax.Device:
    platform, _, number = str(device).partition(":")
    try:
        return jax.devices(platform)[int(number or 0)]
    except (RuntimeError, IndexError, ValueError) as error:
        there = ", ".join(f"{found.platform}:{found.id}" for found in jax.devices())
        raise UsageError(f"device: got {device!r}, expected 'cpu' or one that JAX knows, here {there}") from error


# Teams start up to 2 away from a point a quarter of the width from the wall.
_SIZE = at_least(16)
_RULES = {
    "walls_cause_death": FLAG,
    "see_enemy_actions": FLAG,
    "enemy_shoots": FLAG,
    "attack_mode": Rule("'closest' or 'random'", lambda value: value in ("closest", "random")),
    "won_battle_bonus": NUMBER,
    "max_steps": COUNT,
    "map_width": _SIZE,
    "map_height": _SIZE,
    "world_steps_per_env_step": COUNT,
    "time_per_step": POSITIVE,
}
