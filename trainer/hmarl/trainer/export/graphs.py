"""The ONNX file of one graph: what it is called, how it is written, and how large it may be."""

from __future__ import annotations

import io
import logging
import re
import warnings
from collections.abc import Iterable
from dataclasses import dataclass
from importlib.metadata import version
from itertools import chain, count

import numpy as np
import onnx
import torch

from hmarl.runtime.bundle import AgentModel, to_json
from hmarl.trainer.contract.deployable import DeployablePolicy
from hmarl.trainer.export.samples import example_inputs

OPSET = 18
# IR 9 and later differ by types that no policy has and by metadata that is taken off.
_OF_LATER_IR = onnx.TensorProto.FLOAT8E4M3FN
# Not every disk takes all names: reserved by Windows, as is a dot at the end.
_PLAIN = re.compile(r"(?!(?:con|prn|aux|nul|com\d|lpt\d)(?:\.|$))\w(?:[\w.-]{0,62}[\w-])?", re.ASCII | re.IGNORECASE)


@dataclass(frozen=True)
class Graph:
    """One ONNX file to be.

    Attributes:
        file: its name in the bundle.
        module: what it computes.
        agents: who act by it, as positions in ``EnvironmentSpec.agents``.
        entries: what the manifest says of each of them.
    """

    file: str
    module: DeployablePolicy
    agents: tuple[int, ...]
    entries: tuple[AgentModel, ...]


def file_stems(names: Iterable[str]) -> list[str]:
    """A file name, less its ending, for each name; unlike on every disk, also where case does not count.

    A plain name (ASCII's letters and digits, ``_``, ``-`` and inner dots) is its own file's; any other one's file is
    called by its number and what is plain of the name, e.g. ``0-agent_2`` for ``agent:2``.
    """
    stems: list[str] = []
    taken: set[str] = set()
    for index, name in enumerate(names):
        cleaned = re.sub(r"[^A-Za-z0-9]+", "_", name).strip("_")[:40]
        numbered = f"{index}-{cleaned}" if cleaned else str(index)
        candidates = chain([name] * bool(_PLAIN.fullmatch(name)), [numbered], map(f"{numbered}-{{}}".format, count(2)))
        stem = next(each for each in candidates if each.casefold() not in taken)
        taken.add(stem.casefold())
        stems.append(stem)
    return stems


def onnx_bytes(graph: Graph) -> bytes:
    """The graph as an ONNX file with a dynamic batch dimension, weights inside, of the lowest IR version."""
    module = graph.module
    arguments = tuple(example_inputs(module, 2, np.random.default_rng(0)).values())
    batch = torch.export.Dim("batch", min=1, max=2**20)
    with warnings.catch_warnings(), _quiet():
        warnings.simplefilter("ignore")
        program = torch.onnx.export(
            module,
            arguments,
            dynamo=True,
            external_data=False,
            input_names=module.input_names,
            output_names=module.output_names,
            dynamic_shapes=(tuple({0: batch} for _ in arguments),),
            opset_version=OPSET,
            optimize=True,
            verbose=False,
        )
    assert program is not None
    model = program.model_proto
    metadata = {
        "hmarl_version": version("hmarl"),
        "agent": ",".join(entry.id for entry in graph.entries),
        "manifest": to_json(graph.entries[0]),
    }
    onnx.helper.set_model_props(model, metadata)
    lower_ir_version(model)
    onnx.checker.check_model(model, full_check=True)
    buffer = io.BytesIO()
    onnx.save(model, buffer)
    return buffer.getvalue()


def lower_ir_version(model: onnx.ModelProto) -> None:
    """Declare the lowest IR version that the model's opsets need, so that older ONNX Runtimes read it.

    Metadata of nodes, values and weights, which came with IR 10, says where the exporter had them from; it is taken
    off.
    """
    graph = model.graph
    for node in graph.node:
        node.ClearField("doc_string")
    for part in (graph, *graph.node, *graph.value_info, *graph.input, *graph.output, *graph.initializer):
        part.ClearField("metadata_props")
    tensors = [*graph.initializer, *(attribute.t for node in graph.node for attribute in node.attribute)]
    if all(tensor.data_type < _OF_LATER_IR for tensor in tensors) and not model.functions:
        model.ir_version = onnx.helper.find_min_ir_version_for(model.opset_import)


class _quiet:
    """Silences the exporter's progress lines; its errors are exceptions."""

    def __enter__(self) -> None:
        logging.disable(logging.WARNING)

    def __exit__(self, *_: object) -> None:
        logging.disable(logging.NOTSET)
