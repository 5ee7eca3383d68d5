"""Steps of an update that a GPU repeats by itself, recorded once as a CUDA graph.

A step on a small network is hundreds of small kernels, and to start each of them takes the host longer than the GPU
needs for it. A graph starts them all at once. It repeats the very same operations on the very same memory, so

    first time    the step is made as ever, which prepares what a GPU prepares at first use
    second time   it is recorded, with copies of the step's tensors as its input
    from then on  the tensors are copied there, and the graph is started

A step is recorded anew for other numbers (a clipping range, δ) and other shapes. How far the optimisers go, by their
schedule and by how many steps they have taken, is told to the graph.

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

_PLAIN = (int, float, str, bool, type(None))  # what has no parts


@dataclass(frozen=True)
class _Recording:
    """A step as a graph.

    Attributes:
        graph: of it.
        inputs: where the tensors of a step are to lie.
        names: of the metrics.
        metrics: [m] where the graph leaves them.
        moved: the optimisers that it moves; the graph reads from their ``rates`` what the host alone knows of a step.
    """

    graph: torch.cuda.CUDAGraph
    inputs: list[Tensor]
    names: list[str]
    metrics: Tensor
    moved: list[FlatAdam]


class CapturedSteps:
    """Takes the steps of an update, as CUDA graphs where that is wanted and there is a GPU; else one by one.

    Args:
        optimisers: all that a step may move, each of them once.
        device: where it is taken.
        wanted: whether graphs are.
    """

    def __init__(self, optimisers: Sequence[FlatAdam], device: torch.device, wanted: bool) -> None:
        self._optimisers, self._device = optimisers, device
        self._stream = torch.cuda.Stream(device) if wanted and device.type == "cuda" else None
        if self._stream is not None:
            for optimiser in optimisers:
                optimiser.rates = torch.zeros(2, device=device)
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

        if self._stream is None:
            return taken
        if numbers != self._numbers:
            self._numbers, self._recordings = numbers, {}
        return partial(self._take, taken, schedule, self._stream)

    def _take(self, step: Callable[[T], Metrics], schedule: float, stream: torch.cuda.Stream, part: T) -> Metrics:
        kind, tensors = layout(part), list(tensors_of(part))
        if kind not in self._recordings:
            self._recordings[kind] = None
            return step(with_tensors(part, iter(tensors)))
        with torch.cuda.device(self._device):
            recording = self._recordings[kind]
            if recording is None:
                recording = self._recordings[kind] = self._record(step, stream, part, tensors)
            for there, tensor in zip(recording.inputs, tensors, strict=True):
                there.copy_(tensor)
            for optimiser in recording.moved:
                optimiser.repeat(schedule)
            recording.graph.replay()
            return dict(zip(recording.names, recording.metrics.clone().unbind(), strict=True))

    def _record(
        self, step: Callable[[T], Metrics], stream: torch.cuda.Stream, part: T, tensors: Sequence[Tensor]
    ) -> _Recording:
        """A step that has not been taken yet."""
        inputs = [torch.empty_like(tensor) for tensor in tensors]
        before = [optimiser.steps for optimiser in self._optimisers]
        moved = []
        graph = torch.cuda.CUDAGraph()
        try:
            with torch.cuda.graph(graph, stream=stream):
                found = step(with_tensors(part, iter(inputs)))
                metrics = torch.stack([value.float() for value in found.values()])
        finally:
            for optimiser, steps in zip(self._optimisers, before, strict=True):
                if optimiser.steps > steps:
                    assert optimiser.steps == steps + 1, "a step moves an optimiser once"
                    moved.append(optimiser)
                optimiser.steps = steps
        return _Recording(graph, inputs, list(found), metrics, moved)


def _parts(value: Any) -> list[Any]:
    """What a sequence or an object is made of.

    Raises:
        TypeError: it is of another kind, in which tensors could be overlooked.
    """
    if isinstance(value, (list, tuple)):
        return list(value)
    if hasattr(value, "__dict__"):
        return list(vars(value).values())
    raise TypeError(f"a recorded step learns from tensors, sequences and objects of them, got {type(value).__name__}")


def tensors_of(value: Any) -> Iterator[Tensor]:
    """All tensors of a value, and of its parts.

    Raises:
        TypeError: a part is of a kind in which tensors could be overlooked.
    """
    if isinstance(value, Tensor):
        yield value
    elif not isinstance(value, _PLAIN):
        for each in _parts(value):
            yield from tensors_of(each)


def layout(value: Any) -> Hashable:
    """Equal where values differ in what their tensors, numbers and words say alone."""
    if isinstance(value, Tensor):
        return value.shape, value.dtype
    if isinstance(value, _PLAIN):
        return type(value).__name__
    return type(value).__name__, tuple(map(layout, _parts(value)))


def with_tensors(value: T, tensors: Iterator[Tensor]) -> T:
    """A copy of a value with other tensors, in the order of ``tensors_of``."""
    found: Any = value
    if isinstance(value, Tensor):
        found = next(tensors)
    elif isinstance(value, (list, tuple)):
        found = type(value)([with_tensors(each, tensors) for each in value])
    elif not isinstance(value, _PLAIN):
        found = copy.copy(value)
        for name, each in list(vars(value).items()):
            vars(found)[name] = with_tensors(each, tensors)  # past a frozen dataclass, of which this is a new one
    return found
