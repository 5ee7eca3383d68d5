"""Whether ONNX Runtime computes what torch computes."""

from __future__ import annotations

import io
from dataclasses import dataclass, field
from pathlib import PurePosixPath

import numpy as np
import torch
from torch import Tensor

from hmarl.runtime.bundle import (
    BundleError,
)
from hmarl.runtime.session import Policy, compare_outputs
from hmarl.trainer.contract.deployable import DeployablePolicy
from hmarl.trainer.export.graphs import Graph

# The largest allowed difference in logits and means, per execution provider; GPUs sum in another order.
TOLERANCES = {"cpu": 1e-5, "cuda": 1e-4, "tensorrt": 1e-3}


class ParityError(BundleError):
    """ONNX Runtime does not compute what torch computes; nothing was written."""


@dataclass
class Parity:
    """What the comparison of one or more agents found.

    Attributes:
        max_error: largest difference of logits, means, states and continuous actions, see ``hmarl.runtime.parity``.
        near_ties: rows whose action or instruction differs because its two best scores are all but equal.
        samples: compared rows.
        batch_sizes: of the random batches.
        problems: differences beyond the tolerance.
    """

    max_error: float = 0.0
    near_ties: int = 0
    samples: int = 0
    batch_sizes: set[int] = field(default_factory=set)
    problems: list[str] = field(default_factory=list)


def interleaved(samples: list[dict[str, Tensor]]) -> dict[str, Tensor]:
    """What several agents saw, [M, ...] each, as one batch in which they take turns."""
    return {name: torch.stack([each[name] for each in samples], dim=1).flatten(0, 1) for name in samples[0]}


@torch.no_grad()
def compare(module: DeployablePolicy, policy: Policy, inputs: dict[str, Tensor], found: Parity) -> None:
    """Add one batch's differences between torch and ONNX Runtime to ``found``."""
    outputs = dict(zip(module.output_names, module(*inputs.values()), strict=True))
    expected = {name: value.numpy() for name, value in outputs.items()}
    feeds = {name: value.numpy() for name, value in inputs.items()}
    result = compare_outputs(policy.agent, feeds, policy.run_batch(feeds, finite=False), expected, TOLERANCES["cpu"])
    found.max_error = max(found.max_error, result.error)
    found.near_ties += result.near_ties
    found.samples += len(feeds["observation"])
    found.problems += [f"{policy.agent.file}: {problem}" for problem in result.problems]


@torch.no_grad()
def record(graph: Graph, inputs: dict[str, Tensor]) -> dict[str, bytes]:
    """Inputs and torch's outputs as plain .npy files."""
    module = graph.module
    outputs = dict(zip(module.output_names, module(*inputs.values()), strict=True))
    prefix = f"parity/{PurePosixPath(graph.file).stem}"
    arrays = {f"{prefix}.{name}.npy": value for name, value in inputs.items()}
    arrays |= {f"{prefix}.expected.{name}.npy": value for name, value in outputs.items()}
    files = {}
    for name, value in arrays.items():
        buffer = io.BytesIO()
        np.save(buffer, value.numpy(), allow_pickle=False)
        files[name] = buffer.getvalue()
    return files
