"""Manifests of the right types that say what cannot be shown or served: found when they are read, and named."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest

from hmarl.runtime.bundle import Bundle, BundleError, UsageError, load_bundle, write_bundle
from raw_bundle import GRAPH, manifest_bytes, plain_agent, plain_graph, refusal, write_raw
from toy_bundle import toy_agent, toy_manifest

LEGAL_IDS = [
    "agent_0",
    "agent:2",
    "агент:2",
    "team/blue 1",
    "a,b=c",
    "智能体①",
    "وكيل",
    "Ärger-ß.é",
    "e\u0301",
    "🤖",
    "..",
    "x" * 256,
    "'\"\\",
]
ILLEGAL_IDS = [
    "",
    "a\nb",
    "a\tb",
    "\x1b[31mred",
    "\0",
    "a\x7f",
    "a\u2028b",
    "a\u2029b",
    "\u202egnp.exe",
    "a\u200bb",
    "\u2066x",
    "\ufeffa",
    "a\u00a0b",
    "\ue000",
    "\U000e0001",
    "x" * 257,
]


def bundle_of(path: Path, **fields: Any) -> Path:
    return write_raw(path, {GRAPH: plain_graph()}, manifest_bytes({GRAPH: plain_graph()}, plain_agent(**fields)))


@pytest.mark.parametrize("agent_id", LEGAL_IDS)
def test_ids_of_any_alphabet_are_legal(tmp_path: Path, agent_id: str) -> None:
    assert load_bundle(bundle_of(tmp_path / "b", id=agent_id)).agent_ids == (agent_id,)


@pytest.mark.parametrize("agent_id", ILLEGAL_IDS)
def test_ids_that_are_not_printable_are_refused(tmp_path: Path, agent_id: str) -> None:
    line = refusal(bundle_of(tmp_path / "b", id=agent_id))
    assert "agents.0.id: got '" in line
    assert ascii(agent_id)[1:-1][:100] in line
    assert "expected 1 to 256 printable characters" in line


@pytest.mark.parametrize("agent_id", ILLEGAL_IDS)
def test_one_that_was_not_trained_has_a_printable_name_too(interchangeable_bundle: Bundle, agent_id: str) -> None:
    with pytest.raises(UsageError, match=r"printable characters|empty name"):
        interchangeable_bundle.agent(agent_id, "agent_0")


def test_ids_that_cannot_be_shown_are_not_written_either(tmp_path: Path) -> None:
    manifest = toy_manifest([plain_agent("a\nb")])
    with pytest.raises(BundleError, match=r"agents\.0\.id: got 'a\\nb'"):
        write_bundle(tmp_path / "b", manifest, {GRAPH: plain_graph()})
    assert list(tmp_path.iterdir()) == []


def shaped(*shape: int, name: str = "observation") -> dict[str, Any]:
    return {"name": name, "shape": list(shape), "dtype": "float32", "meaning": "numbers"}


def noise(**fields: Any) -> dict[str, Any]:
    return {"name": "n", "shape": [2], "distribution": "normal", "stream": "private", "purpose": "action", **fields}


def state(**fields: Any) -> dict[str, Any]:
    names = {"input": "i", "output": "o", "shape": [2], "dtype": "float32", "meaning": "memory"}
    return {**names, "reset": [0.0, 0.0], **fields}


BOX = {"type": "box", "low": [0.0], "high": [1.0]}


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"kind": "a\nb"}, "agents.0.kind: got 'a\\nb'"),
        ({"file": "b.onnx"}, "agents.0.file: 'b.onnx' of agent 'a' is not listed in files"),
        ({"observation": shaped(2**40)}, "observation.shape: got [1099511627776], expected at most 8 sizes from 1"),
        ({"observation": shaped(0)}, "observation.shape: got [0]"),
        ({"observation": shaped(-1)}, "observation.shape: got [-1]"),
        ({"observation": shaped(2, 3)}, "observation.shape: got [2, 3], expected [length]"),
        ({"observation": shaped()}, "observation.shape: got [], expected [length]"),
        ({"observation": shaped(2, name="x\ry")}, "observation.name: got 'x\\ry'"),
        ({"noises": [noise(shape=[2**40])]}, "noises.0.shape: got [1099511627776]"),
        ({"noises": [noise(shape=[2**12] * 3)]}, "have 68,719,476,7"),
        ({"noises": [noise(shape=[1] * 3000)]}, "noises.0.shape: got [1, 1, "),
        ({"noises": [noise(), noise()]}, "noises.1.name: got 'n' a second time"),
        ({"noises": [noise(name="observation")]}, "got 'observation' a second time"),
        ({"noises": [noise(name=f"n{i}", shape=[2**22]) for i in range(5)]}, "expected at most 16,777,216 in all"),
        ({"states": [state(shape=[2**62])]}, "states.0.shape: got [4611686018427387904]"),
        ({"states": [state(reset=[0.0, 1e39])]}, "states.0.reset: got 1e+39"),
        ({"states": [state(output="i")]}, "got 'i' a second time"),
        ({"diagnostics": [shaped(2**30, name="d")]}, "diagnostics.0.shape: got [1073741824]"),
        ({"action_mask": shaped(2**25, name="m")}, "action_mask.shape: got [33554432]"),
        ({"action_space": {"type": "discrete", "n": 10**9}}, "action_space.n: got 1000000000, expected 1 to"),
        ({"action_space": {"type": "multi_discrete", "n": [2, 0]}}, "action_space.n: got 0, expected 1 to"),
        ({"action_space": {**BOX, "high": [1e39]}}, "action_space.high: got 1e+39"),
        ({"action_space": {**BOX, "high": [-1.0]}}, "expected low <= high of one length"),
        ({"action_space": {**BOX, "high": [1.0, 1.0]}}, "expected low <= high of one length"),
        ({"action_space": {**BOX, "low": [], "high": []}}, "expected low <= high of one length"),
        ({"observation_layout": [["a\nb", 2]]}, "observation_layout: got 'a\\nb'"),
        ({"observation_layout": [["a", -2]]}, "observation_layout.a: got -2"),
    ],
)
def test_an_agent_that_cannot_be_served_is_refused(tmp_path: Path, fields: dict[str, Any], message: str) -> None:
    assert message in refusal(bundle_of(tmp_path / "b", **fields))


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"name": "a\x1b[2J"}, "name: got 'a\\x1b[2J'"),
        ({"environment": {"name": "", "team_reward": "sum"}}, "environment.name: got ''"),
        ({"environment": {"name": "x", "team_reward": "sum", "horizon": 0}}, "environment.horizon: got 0"),
        ({"environment": {"name": "x", "team_reward": "sum", "horizon": 2**70}}, "horizon: got 1180591620717411303424"),
        ({"environment": {"name": "x", "team_reward": "sum", "control_period_s": -1.0}}, "control_period_s: got -1.0"),
        ({"opset": -1}, "opset: got -1"),
        ({"files": {GRAPH: "x"}}, "files.'agents/a.onnx': got 'x', expected the 64 hexadecimal digits"),
        ({"files": {GRAPH: "0" * 64, "a\nb": "0" * 64}}, "file name 'a\\nb' is not a plain relative path"),
        ({"agents": [plain_agent(), plain_agent()]}, "agents: got the id 'a' more than once"),
        ({"agents": [plain_agent(str(index)) for index in range(4097)]}, "agents: got 4,097, expected at most 4,096"),
    ],
)
def test_a_manifest_that_cannot_be_served_is_refused(tmp_path: Path, fields: dict[str, Any], message: str) -> None:
    manifest = manifest_bytes({GRAPH: plain_graph()}, **fields)
    assert message in refusal(write_raw(tmp_path / "b", {GRAPH: plain_graph()}, manifest))


def test_what_is_inferred_from_shapes_is_limited_and_large_observations_are_not_refused(tmp_path: Path) -> None:
    agent = toy_agent("a", observation_size=2_000_000, action="discrete", sizes=(8,), plain=True)
    manifest = toy_manifest([{**agent, "file": GRAPH}])
    assert math.prod(write_bundle(tmp_path / "b", manifest, {GRAPH: b""}).agent("a").observation.shape) == 2_000_000
