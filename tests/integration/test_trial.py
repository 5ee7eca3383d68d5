"""Graphs of allowed operators that would fill the memory or never end: a process of its own finds it out."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from hmarl.runtime import trial
from hmarl.runtime.bundle import Bundle, BundleError, HmarlError, load_bundle
from hmarl.runtime.trial import Trial, try_graphs
from raw_bundle import (
    GRAPH,
    manifest_bytes,
    plain_agent,
    plain_graph,
    raw_graph,
    refusal,
    refusal_of_process,
    run_module,
    write_raw,
)
from toy_bundle import write_toy_bundle

Node = helper.make_node


def added(*nodes: onnx.NodeProto, **constants: list[int]) -> bytes:
    """The toy graph, whose action also depends on ``y`` of further nodes, by something that is always zero."""
    model = onnx.load_from_string(plain_graph())
    graph = model.graph
    graph.initializer.extend(
        numpy_helper.from_array(np.array(value, np.int64), name) for name, value in constants.items()
    )
    graph.initializer.append(numpy_helper.from_array(np.array([1e-30], np.float32), "tiny"))
    # A sum over the observation keeps ONNX Runtime from computing the rest beforehand, and from leaving it out.
    first = [Node("ReduceMax", ["observation"], ["seen"], keepdims=0), Node("Mul", ["seen", "tiny"], ["nothing"])]
    last = graph.node[-1]
    last.output[0] = "chosen"
    after = [
        Node("ReduceMax", ["y"], ["largest"], keepdims=0),
        Node("Mul", ["largest", "tiny"], ["small"]),
        Node("Cast", ["small"], ["whole"], to=TensorProto.INT64),
        Node("Add", ["chosen", "whole"], ["action"]),
    ]
    old = list(graph.node)
    del graph.node[:]
    graph.node.extend([*first, *nodes, *old, *after])
    return bytes(model.SerializeToString())


def huge_result() -> bytes:
    """4 GiB of numbers in a file of a few kilobytes."""
    return added(Node("Expand", ["nothing", "sizes"], ["y"]), sizes=[2**20, 2**10])


def huge_constant() -> bytes:
    """1 GiB, which ONNX Runtime computes when it opens the graph."""
    value = helper.make_tensor("value", TensorProto.FLOAT, [1], [0.0])
    return added(
        Node("ConstantOfShape", ["sizes"], ["large"], value=value),
        Node("Add", ["large", "nothing"], ["y"]),
        sizes=[2**28],
    )


def long_computation() -> bytes:
    """Products of large matrices, one after the other."""
    nodes = [Node("Expand", ["nothing", "sizes"], ["m0"])]
    nodes += [Node("MatMul", ["m0", f"m{index}"], [f"m{index + 1}"]) for index in range(500)]
    return added(*nodes, Node("Identity", ["m500"], ["y"]), sizes=[1024, 1024])


def test_a_good_bundle_passes(toy_bundle: Bundle) -> None:
    try_graphs(toy_bundle, rows=(1, 17))


def test_the_added_nodes_do_no_harm(tmp_path: Path) -> None:
    graph = added(Node("Expand", ["nothing", "sizes"], ["y"]), sizes=[10, 10])
    try_graphs(load_bundle(raw_graph(tmp_path / "b", graph)))


@pytest.mark.parametrize("make", [huge_result, huge_constant])
def test_a_graph_that_fills_the_memory_is_refused(tmp_path: Path, make: Callable[[], bytes]) -> None:
    line = refusal_of_process(raw_graph(tmp_path / "b", make()))
    assert "agents/a.onnx: opening and running it takes more than 192 MiB" in line


def test_an_agent_that_fills_the_memory_is_not_served(tmp_path: Path) -> None:
    path = raw_graph(tmp_path / "b", huge_constant())
    done = run_module("agent", path, "--agent", "a", "--listen", "127.0.0.1:0")
    assert (done.code, done.output) == (3, "")
    assert "agents/a.onnx: opening and running it takes more than 192 MiB" in done.errors
    assert done.peak_mib < 250


def test_a_graph_that_takes_too_long_is_refused(tmp_path: Path) -> None:
    bundle = load_bundle(raw_graph(tmp_path / "b", long_computation()))
    with (
        Trial(bundle, processor_s=1) as running,
        pytest.raises(BundleError, match=r"agents/a\.onnx: took more processor time than it may when it was opened"),
    ):
        running.result()


def test_a_trial_that_stands_still_is_ended(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    bundle = load_bundle(raw_graph(tmp_path / "b", long_computation()))
    monkeypatch.setattr(trial, "START_LIMIT_S", -trial.WALL_LIMIT_S + 0.5)
    with Trial(bundle) as running, pytest.raises(HmarlError, match="took too long"):
        running.result()


def test_an_agent_that_is_stopped_during_its_trial_stops_and_leaves_no_process(tmp_path: Path) -> None:
    path = raw_graph(tmp_path / "b", long_computation())
    command = [
        sys.executable,
        "-m",
        "hmarl.runtime.commands.agent",
        str(path),
        "--agent",
        "a",
        "--listen",
        "127.0.0.1:0",
    ]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as agent:
        children = Path(f"/proc/{agent.pid}/task/{agent.pid}/children")
        while not (trials := children.read_text().split()):
            assert agent.poll() is None
            time.sleep(0.01)
        agent.terminate()
        assert agent.wait(60) == 0  # 3 if the trial had gone on to its limit
    deadline = time.monotonic() + 5.0  # the processor time that the trial would otherwise have taken is twice that
    while any(Path(f"/proc/{trial_id}").exists() for trial_id in trials):
        assert time.monotonic() < deadline
        time.sleep(0.01)


def test_a_bundle_that_was_replaced_meanwhile_is_refused(tmp_path: Path) -> None:
    bundle = load_bundle(raw_graph(tmp_path / "b", plain_graph()))
    manifest = manifest_bytes({GRAPH: plain_graph()}, plain_agent(), name="another")
    raw_graph(tmp_path / "b", plain_graph(), plain_agent(kind="another"))
    assert manifest != (tmp_path / "b" / "manifest.json").read_bytes()
    with pytest.raises(BundleError, match="it was replaced while it was being opened"):
        try_graphs(bundle)


def test_a_graph_for_single_rows_only_is_found(tmp_path: Path) -> None:
    graph = added(Node("Reshape", ["observation", "sizes"], ["y"]), sizes=[1, 6])
    bundle = load_bundle(raw_graph(tmp_path / "b", graph))
    try_graphs(bundle)
    assert "agents/a.onnx: the graph does not run" in refusal(tmp_path / "b")


def test_every_graph_is_tried_and_the_bad_one_is_named(tmp_path: Path) -> None:
    write_toy_bundle(tmp_path / "b", agents=("one", "two", "three"), plain=True)
    bundle = load_bundle(tmp_path / "b")
    graphs = {agent.file: bundle.read(agent.file) for agent in bundle.manifest.agents}
    graphs["agents/two.onnx"] = huge_result()
    agents = [plain_agent(name, file=f"agents/{name}.onnx") for name in ("one", "two", "three")]
    for file, content in graphs.items():
        (tmp_path / "b" / file).write_bytes(content)
    (tmp_path / "b" / "README.md").unlink()
    manifest = manifest_bytes(graphs, *agents)
    write_raw(tmp_path / "b", graphs, manifest)
    done = run_module("verify", tmp_path / "b")
    assert done.code == 3
    lines = done.output.splitlines()
    assert [line.split(";")[0] for line in lines[1:]] == ["one: ok", "two: wrong", "three: ok"]
    assert "agent 'two': agents/two.onnx: opening and running it takes more than" in done.errors


@pytest.mark.skipif(not os.path.exists("/proc/self/status"), reason="limits are Linux's")
def test_the_limits_are_far_above_what_policies_take(tmp_path: Path) -> None:
    bundle = write_toy_bundle(tmp_path / "b", observation_size=20_000, sizes=(256, 256), agents=("a",))
    try_graphs(bundle, rows=(1, 17))
