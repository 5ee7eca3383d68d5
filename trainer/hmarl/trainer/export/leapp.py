"""What LEAPP's runtimes read: for each agent a description of its graph as a pipeline of one model.

LEAPP (https://nvidia-isaac.github.io/leapp/) describes a policy by a YAML file: the models, their inputs and outputs in
the graph's order, which outputs come back as inputs at the next step (``feedback_flow``), and a safetensors file with
what these are at first. The graphs are the bundle's own, named relative to the description. It is written as JSON,
which YAML contains.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from hashlib import md5, sha256
from typing import Any

import numpy as np
import onnx
from safetensors.numpy import save

from hmarl.runtime.bundle import AgentModel
from hmarl.trainer.export.graphs import file_stems

FOLDER = "leapp"
CONFIG_VERSION = "1.3"  # of the format; leapp 0.7 writes it


def leapp_files(
    agents: Sequence[AgentModel],
    graphs: Mapping[str, bytes],
    control_period_s: float | None,
    opset: int,
    created_by: str,
) -> dict[str, bytes]:
    """The descriptions of all agents.

    Args:
        agents: the manifest's entries.
        graphs: the ONNX files by their names in the bundle.
        control_period_s: seconds between two steps; None where the environment does not say.
        opset: of the graphs.
        created_by: name and version of what writes the bundle.

    Returns:
        ``leapp/<name>.yaml`` for each agent, and ``leapp/<name>_initial_values.safetensors`` for those with state.
    """
    files = {}
    for agent, node in zip(agents, file_stems(agent.id for agent in agents), strict=True):
        initial = f"{node}_initial_values.safetensors" if agent.states else None
        description = {
            "models": {node: _model(agent, graphs[agent.file], opset)},
            "pipeline": _pipeline(agent, node, control_period_s, initial),
            "system information": {"leapp config version": CONFIG_VERSION, "created by": created_by},
        }
        files[f"{FOLDER}/{node}.yaml"] = (json.dumps(description, indent=2, ensure_ascii=False) + "\n").encode()
        if initial is not None:
            files[f"{FOLDER}/{initial}"] = _initial_values(agent, node)
    return files


def _model(agent: AgentModel, content: bytes, opset: int) -> dict[str, Any]:
    """The graph: its tensors in its own order, by which LEAPP hands them over, and its file."""
    graph = onnx.load_model_from_string(content).graph
    return {
        "inputs": _described(_inputs(agent), (each.name for each in graph.input)),
        "outputs": _described(_outputs(agent), (each.name for each in graph.output)),
        "parameters": {
            "model_path": f"../{agent.file}",
            "md5sum": md5(content, usedforsecurity=False).hexdigest(),
            "sha256sum": sha256(content).hexdigest(),
            "backend": "onnx",
            "opset_version": opset,
            "agent": agent.id,
        },
    }


def _pipeline(agent: AgentModel, node: str, control_period_s: float | None, initial: str | None) -> dict[str, Any]:
    """What comes from outside, what goes there, and what comes back at the next step."""
    fed_back = {state.output: state.input for state in agent.states}
    pipeline: dict[str, Any] = {
        "data_flow": {},
        "feedback_flow": {f"{node}/{output}": [f"{node}/{input}"] for output, input in fed_back.items()},
        "inputs": {node: [name for name in _inputs(agent) if name not in fed_back.values()]},
        "outputs": {node: [name for name in _outputs(agent) if name not in fed_back]},
    }
    if control_period_s is not None:
        pipeline["configs"] = {"frequency": 1.0 / control_period_s}
    if initial is not None:
        pipeline["initial_values"] = initial
    return pipeline


def _inputs(agent: AgentModel) -> dict[str, dict[str, Any]]:
    """What LEAPP is told of each input, by its name."""
    observation = _tensor(agent.observation.shape, agent.observation.dtype, agent.observation.meaning)
    names = [f"{part}[{at}]" for part, length in agent.observation_layout for at in range(length)]
    if names and len(agent.observation.shape) == 1:  # a picture's numbers have no names
        observation["element_names"] = [None, names]
    found = {agent.observation.name: observation}
    for given in filter(None, (agent.action_mask, agent.step)):
        found[given.name] = _tensor(given.shape, given.dtype, given.meaning)
    for state in agent.states:
        found[state.input] = _tensor(state.shape, state.dtype, state.meaning)
    for noise in agent.noises:
        meaning = f"{noise.distribution} noise ({noise.stream}) for the {noise.purpose}; zeros: none"
        found[noise.name] = _tensor(noise.shape, "float32", meaning)
    return found


def _outputs(agent: AgentModel) -> dict[str, dict[str, Any]]:
    """What LEAPP is told of each output, by its name."""
    states = {state.output: _tensor(state.shape, state.dtype, state.meaning) for state in agent.states}
    given = (agent.action, *agent.diagnostics)
    return {each.name: _tensor(each.shape, each.dtype, each.meaning) for each in given} | states


def _tensor(shape: Iterable[int], dtype: str, meaning: str) -> dict[str, Any]:
    """One row: LEAPP asks one observation at a time."""
    return {"dtype": dtype, "shape": [1, *shape], "type": "tensor", "meaning": meaning}


def _described(tensors: Mapping[str, dict[str, Any]], order: Iterable[str]) -> list[dict[str, Any]]:
    return [{"name": name, **tensors[name]} for name in order]


def _initial_values(agent: AgentModel, node: str) -> bytes:
    """The states' reset values, as a safetensors file."""
    content: bytes = save(
        {f"{node}/{each.input}": np.asarray(each.reset, each.dtype).reshape(1, *each.shape) for each in agent.states}
    )
    return content
