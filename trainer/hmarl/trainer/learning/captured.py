"""Steps of an update that a GPU repeats by itself, recorded once as a CUDA graph.

A step on a small network is hundreds of small kernels, and to start each of them takes the host longer than the GPU
needs for it. A graph starts them all at once. It repeats the very same operations on the very same memory, so

    first time    the step is made as ever, which prepares what a GPU prepares at first use
    second time   it is recorded, with copies of the step's tensors as its input
    from then on  the tensors are copied there, and the graph is started

Where what is not a tensor changes (a clipping range, a schedule) or a shape does, a step is recorded anew.

Source: NVIDIA's CUDA graphs, by ``torch.cuda.CUDAGraph``.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Hashable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, TypeVar

import torch
from torch import Tensor

from hmarl.trainer.networks.optimiser import FlatAdam

T = TypeVar("T")

Metrics = dict[str, Tensor]


@dataclass(frozen=True)
class _Recording:
    """A step as a graph.

    Attributes:
        graph: of it.
        inputs: where the tensors of a step are to lie.
        names: of the metrics.
        metrics: [m] where the graph leaves them.
        moved: the optimisers that it moves, each with [2] where the graph reads what the host alone knows of its step.
    """

    graph: torch.cuda.CUDAGraph
    inputs: list[Tensor]
    names: list[str]
    metrics: Tensor
    moved: list[tuple[FlatAdam, Tensor]]


class CapturedSteps:
    """Takes the steps of an update, as CUDA graphs where that is wanted and there is a GPU; else one by one.

    Args:
        optimisers: all that a step may move, each of them once.
        device: where it is taken.
        wanted: whether graphs are.
    """

    def __init__(self, optimisers: Sequence[FlatAdam], device: torch.device, wanted: bool) -> None:
        self._optimisers, self._device = optimisers, device
        self._records = wanted and device.type == "cuda"
        self._numbers: Hashable = None
        self._recordings: dict[Hashable, _Recording | None] = {}

    def of(self, step: Callable[..., Metrics], numbers: Hashable, schedule: float) -> Callable[[Any], Metrics]:
        """A step: what it learns from ↦ metrics, scalars.

        Args:
            step: what it learns from, numbers, schedule ↦ metrics. Of what it learns from the tensors alone differ
                from step to step. It may not wait for the device, nor draw, and moves optimisers by ``schedule`` alone.
            numbers: a recording is made for.
            schedule: factor on the step sizes.
        """

        def taken(part: T) -> Metrics:
            return step(part, numbers, schedule)

        if not self._records:
            return taken
        if numbers != self._numbers:
            self._numbers, self._recordings = numbers, {}
        return partial(self._take, taken, schedule)

    def _take(self, step: Callable[[T], Metrics], schedule: float, part: T) -> Metrics:
        tensors = list(tensors_of(part))
        kind = tuple((tensor.shape, tensor.dtype) for tensor in tensors)
        if kind not in self._recordings:
            self._recordings[kind] = None
            return step(with_tensors(part, iter(tensors)))
        recording = self._recordings[kind]
        if recording is None:
            recording = self._recordings[kind] = self._record(step, part, tensors)
        for there, tensor in zip(recording.inputs, tensors, strict=True):
            there.copy_(tensor)
        for optimiser, rates in recording.moved:
            optimiser.repeat(schedule, rates)
        recording.graph.replay()
        return dict(zip(recording.names, recording.metrics.clone().unbind(), strict=True))

    def _record(self, step: Callable[[T], Metrics], part: T, tensors: Sequence[Tensor]) -> _Recording:
        """A step that has not been taken yet."""
        inputs = [torch.empty_like(tensor) for tensor in tensors]
        before = [optimiser.steps for optimiser in self._optimisers]
        for optimiser in self._optimisers:
            optimiser.rates = torch.empty(2, device=self._device)
        moved = []
        graph = torch.cuda.CUDAGraph()
        try:
            with torch.cuda.graph(graph):
                found = step(with_tensors(part, iter(inputs)))
                metrics = torch.stack([value.float() for value in found.values()])
        finally:
            for optimiser, steps in zip(self._optimisers, before, strict=True):
                if optimiser.steps > steps and optimiser.rates is not None:
                    moved.append((optimiser, optimiser.rates))
                optimiser.steps, optimiser.rates = steps, None
        return _Recording(graph, inputs, list(found), metrics, moved)


def tensors_of(value: Any) -> Iterator[Tensor]:
    """All tensors of a value: of sequences, and of what has attributes, their parts'."""
    if isinstance(value, Tensor):
        yield value
    elif isinstance(value, (list, tuple)):
        for each in value:
            yield from tensors_of(each)
    elif hasattr(value, "__dict__"):
        for each in vars(value).values():
            yield from tensors_of(each)


def with_tensors(value: T, tensors: Iterator[Tensor]) -> T:
    """A copy of a value with other tensors, in the order of ``tensors_of``."""
    found: Any = value
    if isinstance(value, Tensor):
        found = next(tensors)
    elif isinstance(value, (list, tuple)):
        found = type(value)([with_tensors(each, tensors) for each in value])
    elif hasattr(value, "__dict__"):
        found = copy.copy(value)
        for name, each in list(vars(value).items()):
            vars(found)[name] = with_tensors(each, tensors)  # past a frozen dataclass, of which this is a new one
    return found
