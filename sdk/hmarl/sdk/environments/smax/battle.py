"""Batches of SMAX battles as pure functions of JAX arrays: one compiled call for a step of all of them.

The rules, the random numbers and the enemy's policy are JaxMARL's: a battle equals one of its ``HeuristicEnemySMAX``,
stepped with ``key`` from ``stream, key = split(stream)`` at every step.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import numpy.typing as npt

from hmarl.sdk.environments.smax.package import HeuristicEnemySMAX

_Array = jax.Array

# Battles started anew in one call. A constant, so that starting compiles once for all batch sizes; small, because few
# of a batch end at the same step, and a new battle costs a third of a step.
_STARTED_TOGETHER = 8


class Battles(NamedTuple):
    """Everything that determines the future of B battles, with B leading.

    Attributes:
        stream: uint32 [B, 2], JAX's keys.
        units: JaxMARL's ``State``.
        enemy_memory: what the enemy's policy remembers.
        enemy_sight: [B, M, observation_size] float32, what the M enemies see; it costs as much as the allies', so it
            is computed once, with theirs.
    """

    stream: _Array
    units: Any
    enemy_memory: Any
    enemy_sight: _Array


class Sight(NamedTuple):
    """What the N allies see: observations [B, N, size], masks bool [B, N, A], state [B, S], active bool [B, N]."""

    observations: _Array
    masks: _Array
    state: _Array
    active: _Array


class Outcome(NamedTuple):
    """How a step went: rewards [B, N] float32; bool [B]: decided, cut off, either of these, won."""

    rewards: _Array
    terminated: _Array
    truncated: _Array
    ended: _Array
    success: _Array


class Simulator:
    """The compiled functions for one map and one set of arguments, for any number of battles.

    Args:
        scenario: JaxMARL's ``Scenario``.
        arguments: keyword arguments for ``HeuristicEnemySMAX``.
    """

    def __init__(self, scenario: Any, arguments: Mapping[str, Any]) -> None:
        self.battle: Any = HeuristicEnemySMAX(scenario=scenario, **arguments)
        self.rules: Any = self.battle._env
        # The old battles' memory is used for the new ones.
        self.step: Callable[..., Any] = jax.jit(jax.vmap(self._advance), donate_argnums=0)
        self._fresh_battles: Callable[..., Any] = jax.jit(jax.vmap(self._fresh_battle))

    def start(self, seeds: _Array) -> tuple[Battles, Sight]:
        """B new battles from the seeds, uint32 [B]."""
        pairs = _key_pairs(seeds)
        battles, sight = jax.tree.map(
            lambda leaf: jnp.zeros(leaf.shape, leaf.dtype, device=seeds.device), self.shapes(len(seeds))
        )
        return self.restart(battles._replace(stream=pairs[:, 0]), sight, np.ones(len(seeds), bool), pairs[:, 1])

    def restart(
        self, battles: Battles, sight: Sight, ended: npt.NDArray[np.bool_], keys: _Array
    ) -> tuple[Battles, Sight]:
        """Start those battles anew that have ended, from the keys [B, 2]; the arrays given cannot be used again."""
        rows, place = np.flatnonzero(ended), keys.sharding
        first_keys, streams = np.asarray(keys), np.array(battles.stream)
        for first in range(0, len(rows), _STARTED_TOGETHER):
            part = rows[first : first + _STARTED_TOGETHER]
            # Rows beyond the last are started too, and put nowhere.
            places = np.pad(part, (0, _STARTED_TOGETHER - len(part)), constant_values=len(ended))
            taken = np.minimum(places, len(ended) - 1)
            fresh = self._fresh_battles(*jax.device_put((streams[taken], first_keys[taken]), place))
            battles, sight = _put((battles, sight), fresh, places.astype(np.int32))
        return battles, sight

    def shapes(self, batch_size: int) -> tuple[Battles, Sight]:
        """Shape and dtype of every array of B battles."""
        keys = jnp.zeros((batch_size, 2), jnp.uint32)
        found: tuple[Battles, Sight] = jax.eval_shape(jax.vmap(self._fresh_battle), keys, keys)
        return found

    def _fresh_battle(self, stream: _Array, key: _Array) -> tuple[Battles, Sight]:
        seen, state = self.battle.reset(key)
        of_all = self.rules.get_obs(state.state)
        return self._seen(stream, state.state, state.enemy_policy_state, of_all, seen["world_state"])

    def _seen(
        self, stream: _Array, units: Any, memory: Any, of_all: Mapping[str, _Array], world_state: _Array
    ) -> tuple[Battles, Sight]:
        battle = self.battle
        legal = battle.get_avail_actions(_Wrapped(units))
        active = units.unit_alive[: battle.num_allies]
        sight = Sight(
            observations=jnp.stack([of_all[agent] for agent in battle.agents]),
            masks=jnp.stack([legal[agent] for agent in battle.agents]).astype(bool) | ~active[:, None],
            state=world_state,
            active=active,
        )
        enemy_sight = jnp.stack([of_all[agent] for agent in battle.enemy_agents])
        found: tuple[Battles, Sight] = _strong((Battles(stream, units, memory, enemy_sight), sight))
        return found

    def _advance(self, battles: Battles, actions: _Array) -> tuple[Battles, Sight, Outcome, _Array]:
        """One battle's step with the actions [N], JaxMARL's order of keys; last the key for a new start."""
        battle, rules, before = self.battle, self.rules, battles.units
        stream, key = jax.random.split(battles.stream)
        key, reset_key = jax.random.split(key)
        key, enemy_key = jax.random.split(key)
        enemy_actions, memory = battle.get_enemy_actions(enemy_key, battles.enemy_memory, battles.enemy_sight)
        active = before.unit_alive[: battle.num_allies]
        stop = rules.num_movement_actions - 1
        everyones = jnp.concatenate(
            [jnp.where(active, actions, stop), jnp.stack([enemy_actions[agent] for agent in battle.enemy_agents])]
        )
        decoded = rules._decode_discrete_actions(everyones)
        of_all, units, paid, _, _ = rules.step_env_no_decode(key, before, decoded)
        advanced, sight = self._seen(stream, units, memory, of_all, of_all["world_state"])
        lost, won = ~sight.active.any(), ~units.unit_alive[battle.num_allies :].any()
        decided = lost | won
        share = paid[battle.agents[0]] / jnp.maximum(active.sum(), 1)
        rewards = jnp.where(active, share, 0.0)
        outcome = Outcome(rewards, decided, units.done & ~decided, units.done, won & ~lost)
        return advanced, sight, outcome, reset_key


@jax.jit
def _key_pairs(seeds: _Array) -> _Array:
    """Each seed's stream and first key: [B, 2, 2] uint32."""
    return jax.vmap(lambda seed: jax.random.split(jax.random.PRNGKey(seed)))(seeds)


class _Wrapped(NamedTuple):
    """What ``HeuristicEnemySMAX`` keeps JaxMARL's ``State`` in."""

    state: Any


def _strong(tree: Any) -> Any:
    """The same without JAX's "weak" types, for which a step after a start and one after a step were compiled apart."""
    return jax.tree.map(lambda leaf: jax.lax.convert_element_type(leaf, leaf.dtype), tree)


@partial(jax.jit, donate_argnums=0)
def _put(moment: tuple[Battles, Sight], fresh: tuple[Battles, Sight], places: _Array) -> tuple[Battles, Sight]:
    """The moment with the fresh rows at their places; those placed beyond the last row are dropped."""
    merged: tuple[Battles, Sight] = jax.tree.map(lambda old, new: old.at[places].set(new, mode="drop"), moment, fresh)
    return merged
