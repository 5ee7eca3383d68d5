"""hmarl-export --leapp: each agent's graph is described as LEAPP's runtimes read it; tests/peers has one of them."""

from __future__ import annotations

import json
from collections.abc import Callable
from hashlib import sha256
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import onnx
import pytest
from safetensors.numpy import load

from hmarl.runtime.bundle import Bundle, TensorModel, load_bundle
from hmarl.runtime.verify import verify_bundle
from hmarl.trainer.export.leapp import leapp_files
from training_runs import tiny_config, train

Call = Callable[..., tuple[int, str, str]]


def described(bundle: Bundle, control_period_s: float | None = None) -> dict[str, bytes]:
    manifest = bundle.manifest
    graphs = {agent.file: bundle.read(agent.file) for agent in manifest.agents}
    return leapp_files(manifest.agents, graphs, control_period_s, manifest.opset, "hmarl")


def of_agent(files: dict[str, bytes], name: str) -> dict[str, Any]:
    document: dict[str, Any] = json.loads(files[f"leapp/{name}.yaml"])
    return document


def test_the_bundle_of_a_run_has_a_description_of_each_agent(call: Call, tmp_path: Path) -> None:
    run = tmp_path / "run"
    train(tiny_config("mappo", "toy_environments:masked_discrete", {"recurrent": True, "memory_size": 4}), run)
    hashes = []
    for name, more in (("plain", ()), ("described", ("--leapp",))):
        code, _, error = call("export", str(run), "--name", "same", "--out", str(tmp_path / name), *more)
        assert code == 0, error
        hashes.append(dict(load_bundle(tmp_path / name).manifest.files))
    agents = load_bundle(tmp_path / "described").manifest.agents
    names = {f"leapp/{agent.id}{ending}" for agent in agents for ending in (".yaml", "_initial_values.safetensors")}
    assert hashes[1].keys() - hashes[0].keys() == names
    assert {name: hashes[1][name] for name in hashes[0]} == hashes[0]
    assert [report.problems for report in verify_bundle(load_bundle(tmp_path / "described"))] == [[]] * len(agents)
    for agent in agents:
        document = json.loads((tmp_path / "described" / "leapp" / f"{agent.id}.yaml").read_text())
        parameters = document["models"][agent.id]["parameters"]
        graph = (tmp_path / "described" / "leapp" / parameters["model_path"]).read_bytes()
        assert parameters["sha256sum"] == sha256(graph).hexdigest()
        assert parameters["backend"] == "onnx"
        assert document["pipeline"]["feedback_flow"] == {f"{agent.id}/next_memory": [f"{agent.id}/memory"]}


def test_tensors_are_described_in_the_graphs_order(toy_bundle: Bundle) -> None:
    document = of_agent(described(toy_bundle), "agent_0")
    agent = toy_bundle.agent("agent_0")
    graph = onnx.load_model_from_string(toy_bundle.read(agent.file)).graph
    model = document["models"]["agent_0"]
    assert [each["name"] for each in model["inputs"]] == [each.name for each in graph.input]
    assert [each["name"] for each in model["outputs"]] == [each.name for each in graph.output]
    inputs = {each["name"]: (each["dtype"], each["shape"]) for each in model["inputs"]}
    assert inputs["observation"] == ("float32", [1, 6])
    assert inputs["action_mask"] == ("bool", [1, 5])
    assert inputs["state"] == ("float32", [1, 8])
    assert document["pipeline"]["feedback_flow"] == {"agent_0/next_state": ["agent_0/state"]}
    assert set(document["pipeline"]["inputs"]["agent_0"]) == inputs.keys() - {"state"}
    outputs = {each["name"]: (each["dtype"], each["shape"]) for each in model["outputs"]}
    assert outputs["action"] == ("int64", [1])
    assert set(document["pipeline"]["outputs"]["agent_0"]) == outputs.keys() - {"next_state"}


def test_the_numbers_of_a_picture_have_no_names(toy_bundle: Bundle) -> None:
    """A name for each axis, or none: LEAPP knows no others, and a picture has thousands of numbers."""
    agent = toy_bundle.agent("agent_0")
    picture = TensorModel(name="observation", shape=[2, 3, 1], dtype="uint8", meaning="a picture")
    seeing = msgspec.structs.replace(agent, observation=picture, observation_layout=[("observation", 6)])
    graphs = {agent.file: toy_bundle.read(agent.file)}
    for each, named in ((seeing, False), (msgspec.structs.replace(agent, observation_layout=[("speed", 6)]), True)):
        document = of_agent(leapp_files([each], graphs, None, toy_bundle.manifest.opset, "hmarl"), "agent_0")
        (seen,) = [one for one in document["models"]["agent_0"]["inputs"] if one["name"] == "observation"]
        assert ("element_names" in seen) is named
        assert seen["shape"] == [1, *each.observation.shape]


def test_state_begins_with_its_reset_values(toy_bundle: Bundle) -> None:
    files = described(toy_bundle)
    (state,) = toy_bundle.agent("agent_1").states
    values = load(files["leapp/" + of_agent(files, "agent_1")["pipeline"]["initial_values"]])
    assert values.keys() == {"agent_1/state"}
    np.testing.assert_array_equal(values["agent_1/state"], np.float32([state.reset]))


@pytest.mark.parametrize(("period_s", "configs"), [(0.05, {"frequency": 20.0}), (None, None)])
def test_the_control_period_is_told_as_a_frequency(
    toy_bundle: Bundle, period_s: float | None, configs: dict[str, float] | None
) -> None:
    assert of_agent(described(toy_bundle, period_s), "agent_0")["pipeline"].get("configs") == configs


def test_agents_who_share_a_graph_have_a_description_each(interchangeable_bundle: Bundle) -> None:
    files = described(interchangeable_bundle)
    paths = {
        of_agent(files, agent.id)["models"][agent.id]["parameters"]["model_path"]
        for agent in interchangeable_bundle.manifest.agents
    }
    assert len(interchangeable_bundle.manifest.agents) == 2
    assert len(paths) == 1


def test_names_that_are_no_file_names_become_some(toy_bundle: Bundle) -> None:
    """A slash divides a node from its tensor in LEAPP's names."""
    agent = toy_bundle.agent("agent_0")
    files = leapp_files([agent.named("a/1")], {agent.file: toy_bundle.read(agent.file)}, None, 18, "hmarl")
    document = of_agent(files, "0-a_1")
    assert document["models"]["0-a_1"]["parameters"]["agent"] == "a/1"
    assert document["pipeline"]["feedback_flow"] == {"0-a_1/next_state": ["0-a_1/state"]}
