"""Rollouts by workers, put together: the learner's parameters go out once an update, a share comes back from each.

What determines the next rollout stays with the learner: parameters, what the acting remembers, the state of all
environments. So a worker that is lost costs what it was collecting, and a checkpoint holds everything, wherever the
workers are.

With ``run.stale_updates=1`` a rollout is collected while the update before it goes on, by the parameters before that
update.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from hmarl.sdk.spaces import EnvironmentSpec
from hmarl.trainer.contract.acting import Outcome, environments_axis
from hmarl.trainer.contract.algorithm import Algorithm
from hmarl.trainer.experience.packing import (
    Arrays,
    byte_count,
    in_final_order,
    share_slices,
    to_tensor,
    to_tensors,
    unpack,
)
from hmarl.trainer.experience.rollout import EpisodeStatistics, Rollout
from hmarl.trainer.runs.config import RunConfig, device_of
from hmarl.trainer.runs.seeds import anew_seeds, derived_seeds
from hmarl.trainer.runs.workers.hands import MakeHands
from hmarl.trainer.runs.workers.worker import Collected, Order, Start, acting_weights

# More workers are told of by their mean and the slowest alone.
_SHOWN = 32


class Crew:
    """All workers of a run, as the source of its rollouts.

    Args:
        config: of the run.
        make_hands: where the workers are.
    """

    def __init__(self, config: RunConfig, make_hands: MakeHands) -> None:
        self._settings = settings = config.run_settings()
        self._slices = share_slices(settings.environments, settings.workers)
        self._update = 0
        self._acted = False
        self._rates: list[float] = []
        self._bytes_per_frame, self._weights_bytes = 0.0, 0
        self._outstanding: Arrays | None = None  # the parameters of what is being collected
        self._starts = self._begun(derived_seeds(settings.seed, 0, settings.environments))
        self._hands = make_hands(config)
        try:
            facts = self._hands.begin(self._starts)
            self._spec, self.saves, self.restarts = facts.spec, facts.saves, facts.restarts
            self.rollout = Rollout(facts.spec, settings.rollout_length, settings.environments, device_of(settings))
        except BaseException:
            self._hands.close()
            raise

    def _begun(self, seeds: np.ndarray) -> list[Start]:
        return [Start(seeds[each]) for each in self._slices]

    @property
    def spec(self) -> EnvironmentSpec:
        """See ``RolloutSource``."""
        return self._spec

    # --- a rollout --------------------------------------------------------------------------------------------------

    def collect(self, algorithm: Algorithm) -> EpisodeStatistics:
        """See ``RolloutSource``."""
        if self._outstanding is None:
            self._send(algorithm, acting_weights(algorithm.acting_components()))
        collected = self._hands.collected()
        self._outstanding = None
        unpack([each.rollout for each in collected], self.rollout)
        self._take_over(algorithm, collected)
        self._rates = [
            self._settings.rollout_length * (part.stop - part.start) / max(each.collected_s, 1e-9)
            for part, each in zip(self._slices, collected, strict=True)
        ]
        self._bytes_per_frame = sum(map(_sent_bytes, collected)) / (self.rollout.steps * self.rollout.batch_size)
        self._update += 1
        self._starts = [self._next_start(worker, each) for worker, each in enumerate(collected)]
        statistics = _joined([each.statistics for each in collected])
        if self._settings.stale_updates:
            weights = acting_weights(algorithm.acting_components())
            self._send(algorithm, {name: value.copy() for name, value in weights.items()})
        return statistics

    def _send(self, algorithm: Algorithm, weights: Arrays) -> None:
        """Have the next rollout collected with these parameters."""
        state = algorithm.acting_state() if self._acted else None
        orders = [Order(self._update, None if state is None else _share(state, part)) for part in self._slices]
        self._outstanding, self._weights_bytes = weights, byte_count(weights)
        self._hands.collect(orders, weights, self._starts)

    def _next_start(self, worker: int, collected: Collected) -> Start:
        """Where a worker stands; seeds of new episodes for one who has to take its place, where that cannot be had."""
        part = self._slices[worker]
        # Copied: what a worker has sent may lie in Ray's memory, which is not kept for longer than need be.
        state = None if collected.state is None else {name: value.copy() for name, value in collected.state.items()}
        return Start(anew_seeds(self._settings.seed, self._update, worker, part.stop - part.start), state)

    def _take_over(self, algorithm: Algorithm, collected: Sequence[Collected]) -> None:
        """The algorithm stands where it would if it had acted itself."""
        first, device = collected[0], self.rollout.device
        algorithm.load_acting_state(
            {
                name: _beside(name, [to_tensor(each.acting[name]) for each in collected]).to(device)
                for name in first.acting
            }
        )
        rollouts = [each.rollout for each in collected]
        ends = {name: in_final_order(rollouts, [each.at_ends[name] for each in collected]) for name in first.at_ends}
        alike = {name: tensor.clone() for name, tensor in to_tensors(first.alike).items()}
        algorithm.acting.take_over(Outcome(alike, {name: value.to(device) for name, value in ends.items()}))
        self._acted = True

    # --- beginning and going on -------------------------------------------------------------------------------------

    def restart(self, algorithm: Algorithm, update: int) -> None:
        """See ``RolloutSource``; what is being collected is collected again, with the same parameters."""
        self._starts = self._begun(derived_seeds(self._settings.seed, 1 + update, self._settings.environments))
        self._hands.begin(self._starts)
        if self._outstanding is not None:
            self._send(algorithm, self._outstanding)

    def tensors(self) -> dict[str, Tensor]:
        """See ``RolloutSource``: where all environments stand, and the parameters of what is being collected."""
        tensors = {
            f"{worker}.{key}": torch.as_tensor(value)
            for worker, start in enumerate(self._starts)
            for key, value in (start.state or {}).items()
        }
        outstanding = self._outstanding or {}
        return tensors | {f"weights.{name}": torch.as_tensor(value) for name, value in outstanding.items()}

    def load(self, algorithm: Algorithm, tensors: Mapping[str, Tensor], update: int) -> None:
        """See ``RolloutSource``."""
        # Workers go on with what the acting remembers, also where their environments begin anew: it holds more than
        # episodes, and of those that are gone each worker forgets.
        self._update, self._acted = update, update > 0
        weights = _under("weights.", tensors)
        self._outstanding = weights or None
        if not self.saves:
            self.restart(algorithm, update)
            return
        self._starts = [Start(start.seeds, _under(f"{worker}.", tensors)) for worker, start in enumerate(self._starts)]
        self._hands.begin(self._starts)
        if weights:
            self._send(algorithm, weights)

    # --- told -------------------------------------------------------------------------------------------------------

    def figures(self) -> dict[str, float]:
        """Rates of the workers; what a frame costs to send."""
        rates = self._rates
        figures = {"worker_steps_per_s": float(np.mean(rates)), "slowest_worker_steps_per_s": min(rates)}
        if len(rates) <= _SHOWN:
            figures |= {f"worker_steps_per_s/{worker}": rate for worker, rate in enumerate(rates)}
        if self._hands.remote:
            figures |= {"bytes_per_frame": self._bytes_per_frame, "weights_bytes": float(self._weights_bytes)}
        return figures | ({"replaced_workers": float(self._hands.replaced)} if self._hands.replaced else {})

    def summary(self) -> dict[str, Any]:
        """The newest rollout's figures."""
        sent = {"bytes_per_frame": self._bytes_per_frame, "weights_bytes": self._weights_bytes}
        return {
            "workers": len(self._slices),
            "where": self._hands.where,
            "steps_per_s": self._rates,
            **(sent if self._hands.remote else {}),
            "replaced": self._hands.replaced,
        }

    def close(self) -> None:
        """See ``RolloutSource``."""
        self._hands.close()


def _sent_bytes(collected: Collected) -> int:
    """Of a worker's share."""
    parts = (collected.rollout, collected.acting, collected.at_ends, collected.state or {})
    return sum(map(byte_count, parts))


def _share(state: Mapping[str, Tensor], part: slice) -> Arrays:
    """What an acting remembers of some of the environments."""
    shares: Arrays = {}
    for name, tensor in state.items():
        axis = environments_axis(name, tensor)
        share = tensor if axis is None else tensor.narrow(axis, part.start, part.stop - part.start)
        shares[name] = share.detach().cpu().numpy()
    return shares


def _beside(name: str, shares: Sequence[Tensor]) -> Tensor:
    """What is remembered of all environments."""
    axis = environments_axis(name, shares[0])
    return shares[0].clone() if axis is None else torch.cat(list(shares), dim=axis)


def _joined(each: Sequence[EpisodeStatistics]) -> EpisodeStatistics:
    """In the order of the workers."""
    return EpisodeStatistics(
        [value for one in each for value in one.returns],
        [value for one in each for value in one.lengths],
        [value for one in each for value in one.successes],
    )


def _under(prefix: str, tensors: Mapping[str, Tensor]) -> Arrays:
    """The tensors whose names begin with a prefix, without it, as arrays."""
    return {
        name.removeprefix(prefix): tensor.cpu().numpy() for name, tensor in tensors.items() if name.startswith(prefix)
    }
