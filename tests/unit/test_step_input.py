"""A graph that is told the episode's step, and an entry of the manifest that says how instructions are chosen."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from hmarl.runtime.bundle import Bundle, BundleError, write_bundle
from hmarl.runtime.choices import drawn_noises
from hmarl.runtime.session import Policy
from hmarl.runtime.verify import verify_bundle
from toy_bundle import toy_agent, toy_graph, toy_manifest

STEP = {"name": "step", "shape": [], "dtype": "int64", "meaning": "steps of the episode that lie behind"}
NOTHING = np.zeros(2, np.float32)


def counting_graph() -> bytes:
    """action = min(step, 4), whatever is observed."""
    zeros = numpy_helper.from_array(np.zeros((2, 1), np.float32), "zeros")
    last = numpy_helper.from_array(np.int64(4), "last")
    axis = numpy_helper.from_array(np.array([1], np.int64), "axis")
    nodes = [
        helper.make_node("MatMul", ["observation", "zeros"], ["nothing"]),
        helper.make_node("Squeeze", ["nothing", "axis"], ["flat"]),
        helper.make_node("Cast", ["flat"], ["whole"], to=TensorProto.INT64),
        helper.make_node("Min", ["step", "last"], ["bounded"]),
        helper.make_node("Add", ["bounded", "whole"], ["action"]),
    ]
    inputs = [
        helper.make_tensor_value_info("observation", TensorProto.FLOAT, ["batch", 2]),
        helper.make_tensor_value_info("step", TensorProto.INT64, ["batch"]),
    ]
    outputs = [helper.make_tensor_value_info("action", TensorProto.INT64, ["batch"])]
    graph = helper.make_graph(nodes, "counting", inputs, outputs, [zeros, last, axis])
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=10)
    onnx.checker.check_model(model)
    return bytes(model.SerializeToString())


def counting_bundle(path: Path, **step: Any) -> Bundle:
    entry = toy_agent("agent_0", observation_size=2, action="discrete", sizes=(8,), plain=True)
    entry["step"] = {**STEP, **step}
    return write_bundle(path, toy_manifest([entry]), {entry["file"]: counting_graph()})


def test_a_session_tells_the_graph_its_step(tmp_path: Path) -> None:
    policy = Policy(counting_bundle(tmp_path / "b"), "agent_0")
    session = policy.session()
    session.reset(1)
    assert [session.act(NOTHING).action for _ in range(3)] == [0, 1, 2]
    missed = session.act(NOTHING, step=4)
    assert (missed.action, missed.missed_steps) == (4, 1)  # where a count of the acts would say 3
    again = session.act(NOTHING, step=4)
    assert (again.action, again.replayed) == (4, True)
    session.reset(1, first_step=2)  # rejoined
    assert session.act(NOTHING).action == 2
    assert session.act(NOTHING, step=2**64 - 1).action == 4  # more than an int64 holds
    session.reset(1)
    assert session.act(NOTHING).action == 0


def test_rows_are_told_steps_of_their_own(tmp_path: Path) -> None:
    policy = Policy(counting_bundle(tmp_path / "b"), "agent_0")
    observation = np.zeros((3, 2), np.float32)
    acted = policy.run_batch({"observation": observation, "step": np.array([1, 0, 3])})["action"]
    np.testing.assert_array_equal(acted, [1, 0, 3])
    np.testing.assert_array_equal(policy.run_batch({"observation": observation})["action"], [0, 0, 0])
    assert not [problem for agent in verify_bundle(policy.bundle) for problem in agent.problems]


def test_a_step_that_is_no_whole_number_is_refused(tmp_path: Path) -> None:
    for given, message in (
        ({"dtype": "float32"}, "step.dtype: got float32, expected int64"),
        ({"shape": [1]}, r"step.shape: got \[1\], expected \[\]"),
    ):
        with pytest.raises(BundleError, match=message):
            Policy(counting_bundle(tmp_path / "b", **given), "agent_0")
    with pytest.raises(BundleError, match="got 'action' a second time"):
        counting_bundle(tmp_path / "b", name="action")


def choosing_bundle(path: Path, choice: str | None, plain: bool = False) -> Bundle:
    shape: dict[str, Any] = {"observation_size": 6, "action": "discrete", "sizes": (8,), "plain": plain}
    entry = toy_agent("agent_0", **shape) | {"instruction_choice": choice}
    return write_bundle(path, toy_manifest([entry]), {entry["file"]: toy_graph(**shape)})


def instructions(bundle: Bundle, **start: Any) -> list[int]:
    session = Policy(bundle, "agent_0").session()
    session.reset(5, **start)
    observation = np.full(6, 0.1, np.float32)
    legal = np.ones(5, np.bool_)
    return [int(session.act(observation, legal).diagnostics["instruction"]) for _ in range(20)]


def test_the_manifest_says_how_instructions_are_chosen(tmp_path: Path) -> None:
    silent, common = choosing_bundle(tmp_path / "a", None), choosing_bundle(tmp_path / "b", "common")
    drawn = instructions(silent, instruction_choice="common")
    assert drawn != instructions(silent)  # argmax without sampling
    assert instructions(common) == drawn
    assert instructions(common, instruction_choice="argmax") == instructions(silent)
    assert instructions(silent, sample=True) == instructions(common, sample=True)
    # Whoever plays without sessions draws the same numbers.
    for bundle, sample, streams in (
        (silent, False, []),
        (common, False, ["common"]),
        (silent, True, ["private", "common"]),
    ):
        noises = drawn_noises(bundle.manifest.agents[0], sample, None)
        assert [stream for _, stream in noises] == streams


def test_a_choice_without_instructions_is_refused(tmp_path: Path) -> None:
    with pytest.raises(BundleError, match="instruction_choice: got 'common', expected null without a noise"):
        choosing_bundle(tmp_path / "b", "common", plain=True)
