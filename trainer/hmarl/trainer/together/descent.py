"""Minibatch Adam on a loss, for one vector of parameters or for several at once."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, Generic, Protocol, Self, TypeVar

import torch
from torch import Tensor

from hmarl.trainer.networks.optimiser import FlatAdam

# Of so many units in a minibatch the arithmetic outweighs what is spent around it, which is all that stacking saves.
STACKED_UNITS = 1024


class Samples(Protocol):
    """Samples of a loss, M rows."""

    @property
    def units(self) -> int:
        """How many ``take`` chooses from."""
        ...

    def take(self, units: Tensor, /) -> Self:
        """A part of them, ``units`` [u] int64."""
        ...


S = TypeVar("S", bound=Samples)


@dataclass(frozen=True)
class Descended:
    """What the steps of a descent came to.

    Attributes:
        losses: [k] before each of the k steps.
        norms: [k] of the gradients, before clipping.
    """

    losses: Tensor
    norms: Tensor


@dataclass(frozen=True)
class Descent(Generic[S]):
    """θ ← steps of Adam down L(θ; samples).

    Several of one kind are made together: their parameters [S, P] and their samples are stacked, and each step is one
    batched computation. All rows are independent of one another, so that each comes to what it would have come to
    alone, up to rounding. On the CPU those with large minibatches are made in turn.

    Attributes:
        optimiser: of θ [P].
        samples: all of them.
        parts: of every step, which units [u] make up its minibatch; None where that is everything.
        loss: θ [P] and samples ↦ scalar; a stack of θ [S, P] and of samples ↦ [S].
        schedule: factor on the step size.
        stacked: several samples ↦ a stack of them.
        kind: equal where loss and shapes are; None where they are not to be stacked.
    """

    optimiser: FlatAdam
    samples: S
    parts: Sequence[Tensor | None]
    loss: Callable[[Tensor, S], Tensor]
    schedule: float
    stacked: Callable[[Sequence[S]], S]
    kind: Hashable

    @property
    def of_all(self) -> bool:
        """No: see ``Request``."""
        return False

    def alike(self, other: Descent[S]) -> bool:
        """Of the same kind, and equally far."""
        mine, others = ((each.kind, each.schedule, each.optimiser.steps, len(each.parts)) for each in (self, other))
        return self.kind is not None and mine == others

    def together(self, requests: Sequence[Self]) -> list[Descended]:
        """Take all steps of several descents, this one the first of them."""
        if len(requests) == 1 or not self._worth_stacking:
            return [Descended(*each._descend(each.optimiser, each._batches())) for each in requests]
        optimisers = [each.optimiser for each in requests]
        joint = FlatAdam.stacked(optimisers)
        losses, norms = self._descend(joint, self._stacks(requests))
        joint.give_back(optimisers)
        return [Descended(losses[:, row], norms[:, row]) for row in range(len(requests))]

    @property
    def _worth_stacking(self) -> bool:
        """Whether a step of several at once takes less time than a step of each."""
        largest = max(self.samples.units if units is None else len(units) for units in self.parts)
        return self.optimiser.parameter.device.type != "cpu" or largest <= STACKED_UNITS

    def _descend(self, optimiser: FlatAdam, batches: Any) -> tuple[Tensor, Tensor]:
        """Losses and norms, [k] or [k, S], of a step on each batch."""
        losses, norms = [], []
        for samples in batches:
            loss = self.loss(optimiser.parameter, samples)
            norms.append(optimiser.step_rows(loss, self.schedule))
            losses.append(loss.detach())
        return torch.stack(losses), torch.stack(norms)

    def _batches(self) -> Any:
        """The samples of every step."""
        return (self._batch(number) for number in range(len(self.parts)))

    def _batch(self, number: int) -> S:
        """The samples of one step."""
        units = self.parts[number]
        return self.samples if units is None else self.samples.take(units)

    def _stacks(self, requests: Sequence[Self]) -> Any:
        """Stacks of the samples of every step; all samples are stacked once."""
        whole: S | None = None
        for number, units in enumerate(self.parts):
            if units is None and whole is not None:
                yield whole
                continue
            batch = self.stacked([each._batch(number) for each in requests])
            whole = batch if units is None else whole
            yield batch


def stack_of(tensors: Sequence[Tensor | None]) -> Tensor | None:
    """[S, ...] of tensors of one shape; None where there are none."""
    present = [tensor for tensor in tensors if tensor is not None]
    return torch.stack(present) if present else None


def shape_of(tensor: Tensor | None) -> Hashable:
    """A tensor's shape, or that there is none."""
    return None if tensor is None else tuple(tensor.shape)


def told_apart(function: Callable[..., Any]) -> Hashable:
    """What tells functions apart: of a partial one, what it is of and with which arguments."""
    if isinstance(function, partial):
        return (function.func, function.args, repr(sorted(function.keywords.items())))
    return function
