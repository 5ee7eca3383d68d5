"""Writes the conformance vectors, which clients in all languages are held to, or checks that they are up to date.

python proto/conformance/make_vectors.py            write the bundle and the vectors beside this file
python proto/conformance/make_vectors.py --check    exit 1 when a committed file differs from what would be written

What each file holds is specified in README.md beside this file.
"""

from __future__ import annotations

import json
import math
import sys
import tempfile
from collections.abc import Iterable, Iterator
from hashlib import blake2b
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from google.protobuf import json_format, text_format

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT / "tests"))  # whose toy graphs have every feature of a deployed policy

import vector_actions  # noqa: E402 - beside this file
import vector_errors  # noqa: E402
import vector_messages  # noqa: E402

from hmarl.runtime.bundle import Bundle, load_bundle, write_bundle  # noqa: E402
from hmarl.runtime.choices import drawn_noises  # noqa: E402
from hmarl.runtime.command_line import command, flag, run  # noqa: E402
from hmarl.runtime.manifest import AgentModel, NoiseModel  # noqa: E402
from hmarl.runtime.noise import NoiseSource  # noqa: E402
from hmarl.runtime.session import Policy, PolicySession  # noqa: E402
from toy_bundle import toy_agent, toy_graph, toy_manifest  # noqa: E402

HERE = Path(__file__).resolve().parent
BUNDLE = "bundle"
OBSERVATION_SIZE = 6
AGENTS: dict[str, Any] = {"discrete": 1, "branches": 2, "continuous": 3}  # agent id -> seed of its weights
ACTIONS: dict[str, Any] = {"discrete": "discrete", "branches": "multi_discrete", "continuous": "box"}
MASK_SIZE = 5
# Numbers that a graph computes may differ in their last bits from machine to machine.
TOLERANCE = 1e-5
COMPUTED = ("states", "next_states", "diagnostics", "action")


def main_bundle(path: Path) -> Bundle:
    """The tiny bundle: recurrent, counting steps, with instructions and noise; masks where actions are discrete."""
    entries, files = [], {"README.md": b"# Policies for conformance tests; they were never trained\n"}
    for agent_id, seed in AGENTS.items():
        shape: dict[str, Any] = {
            "observation_size": OBSERVATION_SIZE,
            "action": ACTIONS[agent_id],
            "sizes": (8,),
            "plain": False,
            "counts": True,
        }
        entry = toy_agent(agent_id, **shape)
        files[entry["file"]] = toy_graph(**shape, seed=seed)
        entries.append(entry)
    return write_bundle(path, {**toy_manifest(entries), "name": "conformance", "created_by": "make_vectors.py"}, files)


def hex64(word: int) -> str:
    """A 64-bit word as text: JSON's numbers are doubles in many languages."""
    return f"0x{word:016x}"


def hash64(text: str) -> int:
    """BLAKE2b of 8 bytes, little-endian."""
    return int.from_bytes(blake2b(text.encode(), digest_size=8).digest(), "little")


def hashes(bundle: Bundle) -> dict[str, Any]:
    """Of the bundle's files, and of texts."""
    texts = ["", "common", "private:agent_0", "private:дрон-1", "action_noise", "instruction_noise", "x" * 200]
    return {
        "bundle_sha256": bundle.sha256,
        "files": dict(sorted(bundle.digests.items())),
        "blake2b_64": [{"text": text, "hash": hex64(hash64(text))} for text in texts],
    }


def noise() -> list[dict[str, Any]]:
    """Raw words, and the numbers made of them."""
    cases = [
        (0, 0, "agent_0", "action_noise", 1, "uniform", "private"),
        (1, 0, "agent_0", "action_noise", 5, "uniform", "private"),
        (1, 0, "agent_1", "action_noise", 5, "uniform", "private"),
        (1, 0, "agent_1", "instruction_noise", 4, "uniform", "common"),
        (1, 1, "дрон-1", "action_noise", 11, "uniform", "private"),
        (2**53 + 1, 2**53 + 1, "agent_0", "action_noise", 3, "normal", "private"),
        (2**63, 2**32, "agent_0", "action_noise", 9, "normal", "common"),
        (2**64 - 1, 2**64 - 1, "agent_0", "action_noise", 8, "normal", "private"),
    ]
    return [_noise_case(*case) for case in cases]


def _noise_case(
    seed: int, step: int, agent: str, name: str, size: int, distribution: Any, stream: Any
) -> dict[str, Any]:
    model = NoiseModel(name=name, shape=[size], distribution=distribution, stream=stream, purpose="action")
    key = (seed, hash64("common" if stream == "common" else f"private:{agent}"))
    counter = (0, hash64(name), step, 0)
    generator = np.random.Philox(0)
    state: Any = dict(generator.state)
    state["state"] = {"key": np.array(key, np.uint64), "counter": np.array(counter, np.uint64)}
    generator.state = state
    words = generator.random_raw(2 * size if distribution == "normal" else size)
    return {
        "seed": hex64(seed),
        "step": hex64(step),
        "agent": agent,
        "name": name,
        "stream": stream,
        "distribution": distribution,
        "key": [hex64(word) for word in key],
        "counter": [hex64(word) for word in counter],
        "words": [hex64(int(word)) for word in words],
        "values": NoiseSource(model, agent).draw(seed, step).tolist(),
    }


def episodes(bundle: Bundle) -> list[dict[str, Any]]:
    """What sessions answer, step by step."""
    sampled = {"seed": 0x9E3779B97F4A7C15, "sample": True}
    gap = [*range(12), *range(13, 21)]
    return [
        _episode(bundle, "sampled", "discrete", sampled, gap, repeat=5),
        _episode(bundle, "argmax", "discrete", {"seed": 1}, range(5)),
        _episode(bundle, "own instructions", "discrete", {**sampled, "instruction_choice": "sample"}, range(5)),
        _episode(bundle, "common without sampling", "discrete", {"seed": 3, "instruction_choice": "common"}, range(5)),
        _episode(bundle, "joined again", "discrete", {**sampled, "first_step": 7}, range(7, 12)),
        _episode(bundle, "branches", "branches", sampled, range(8)),
        _episode(bundle, "continuous", "continuous", sampled, range(8)),
        _episode(bundle, "mean", "continuous", {"seed": 0}, range(3)),
    ]


def _episode(
    bundle: Bundle, name: str, agent_id: str, start: dict[str, Any], steps: Iterable[int], repeat: int | None = None
) -> dict[str, Any]:
    policy = Policy(bundle, agent_id)
    session = policy.session()
    session.reset(**start, next_states=True)
    started = {"seed": 0, "sample": False, "instruction_choice": None, "first_step": 0, **start}
    generator = np.random.default_rng(len(name))
    states: dict[str, Any] = {each.input: list(each.reset) for each in policy.agent.states}
    rows: list[dict[str, Any]] = []
    for step in steps:
        given = _given(generator, agent_id, step)
        noises = _noises(policy.agent, started, step)
        row = {**given, "states": states, "noises": noises, **_answer(session, given)}
        rows.append(row)
        if step == repeat:
            rows.append({**given, "states": states, "noises": noises, **_answer(session, given)})
        states = {each.input: row["next_states"][each.output] for each in policy.agent.states}
    end = {"steps": session.steps, "missed_steps": session.missed_steps}
    return {
        "name": name,
        "agent": agent_id,
        "start": {**started, "seed": hex64(start["seed"])},
        "steps": rows,
        "end": end,
    }


def _given(generator: np.random.Generator, agent_id: str, step: int) -> dict[str, Any]:
    """What an agent is given: numbers that are exact in binary."""
    observation = (generator.integers(-8, 9, OBSERVATION_SIZE) / 4).tolist()
    mask = _mask(generator, agent_id)
    return {"step": step, "observation": observation} | ({} if mask is None else {"action_mask": mask.tolist()})


def _noises(agent: AgentModel, start: dict[str, Any], step: int) -> dict[str, Any]:
    """What fills the noise inputs; zeros where nothing is drawn."""
    drawn = {noise.name: stream for noise, stream in drawn_noises(agent, start["sample"], start["instruction_choice"])}
    return {
        noise.name: NoiseSource(noise, agent.id, drawn[noise.name]).draw(start["seed"], step).tolist()
        if noise.name in drawn
        else [0.0] * math.prod(noise.shape)
        for noise in agent.noises
    }


def _answer(session: PolicySession, given: dict[str, Any]) -> dict[str, Any]:
    mask = given.get("action_mask")
    action = session.act(
        np.array(given["observation"], np.float32), None if mask is None else np.array(mask), step=given["step"]
    )
    outputs = {key: value.tolist() for key, value in action.diagnostics.items()}
    return {
        "action": np.asarray(action.action).tolist(),
        "next_states": {each.output: outputs.pop(each.output) for each in session.policy.agent.states},
        "diagnostics": outputs,
        "missed_steps": action.missed_steps,
        "replayed": action.replayed,
    }


def _mask(generator: np.random.Generator, agent_id: str) -> npt.NDArray[np.bool_] | None:
    if ACTIONS[agent_id] == "box":
        return None
    mask = generator.random(MASK_SIZE) < 0.5
    mask[[int(generator.integers(0, 3)), int(generator.integers(3, 5))]] = True  # a legal one in each branch
    return mask


def messages(bundle: Bundle) -> list[dict[str, Any]]:
    """Requests and replies of every method: as text, as JSON and as bytes."""
    return [
        {
            "name": name,
            "method": method,
            "type": type(message).__name__,
            "text": text_format.MessageToString(message, as_utf8=True),
            "json": json_format.MessageToDict(message, preserving_proto_field_name=True),
            "hex": message.SerializeToString(deterministic=True).hex(),
        }
        for name, method, message in vector_messages.messages(bundle)
    ]


def vectors(bundle: Bundle) -> dict[str, Any]:
    """File name -> content."""
    return {
        "hashes.json": hashes(bundle),
        "noise.json": noise(),
        "episodes.json": episodes(bundle),
        "messages.json": messages(bundle),
        "errors.json": vector_errors.errors(bundle),
        "actions.json": vector_actions.actions(),
    }


def to_text(content: Any) -> str:
    """JSON with short lists of numbers on one line each."""
    return "\n".join(_lines(content, "")) + "\n"


def _lines(content: Any, indent: str) -> Iterator[str]:
    flat = json.dumps(content, ensure_ascii=False)
    if len(indent) + len(flat) <= 118 or not isinstance(content, dict | list):
        yield indent + flat
        return
    inner, items = indent + "  ", list(content.items() if isinstance(content, dict) else enumerate(content))
    yield indent + ("{" if isinstance(content, dict) else "[")
    for index, (key, value) in enumerate(items):
        lines = list(_lines(value, inner))
        if isinstance(content, dict):
            lines[0] = f"{inner}{json.dumps(key, ensure_ascii=False)}: {lines[0].lstrip()}"
        lines[-1] += "," if index < len(items) - 1 else ""
        yield from lines
    yield indent + ("}" if isinstance(content, dict) else "]")


def alike(first: Any, second: Any, computed: bool = False) -> bool:
    """Whether two contents are the same, numbers that a graph computed within the tolerance."""
    if isinstance(first, dict) and isinstance(second, dict):
        return first.keys() == second.keys() and all(
            alike(first[key], second[key], computed or key in COMPUTED) for key in first
        )
    if isinstance(first, list) and isinstance(second, list):
        return len(first) == len(second) and all(alike(a, b, computed) for a, b in zip(first, second, strict=True))
    if computed and isinstance(first, float) and isinstance(second, float):
        return math.isclose(first, second, rel_tol=TOLERANCE, abs_tol=TOLERANCE)
    return bool(first == second)


def _bundle_files(path: Path) -> dict[str, bytes]:
    return {each.relative_to(path).as_posix(): each.read_bytes() for each in path.rglob("*") if each.is_file()}


def _drifted(expected: Bundle) -> list[str]:
    """The committed files that differ from what would be written."""
    here = HERE / BUNDLE
    made, present = _bundle_files(expected.path), _bundle_files(here)
    drifted = [f"{BUNDLE}/{name}" for name in made.keys() | present.keys() if made.get(name) != present.get(name)]
    for name, content in vectors(expected).items():
        path = HERE / name
        if not path.exists() or not alike(json.loads(path.read_text()), json.loads(json.dumps(content))):
            drifted.append(name)
    return sorted(drifted)


@command("proto/conformance/make_vectors.py", flag("--check", "write nothing; exit with 1 when a file is out of date"))
def main(check: bool) -> int:
    """Generate the conformance vectors and their bundle."""
    if check:
        with tempfile.TemporaryDirectory() as scratch:
            drifted = _drifted(main_bundle(Path(scratch) / BUNDLE))
        for name in drifted:
            print(f"proto/conformance/{name} is out of date: run '{sys.argv[0]}'", file=sys.stderr)
        return 1 if drifted else 0
    main_bundle(HERE / BUNDLE)
    for name, content in vectors(load_bundle(HERE / BUNDLE)).items():
        (HERE / name).write_text(to_text(content))
        print(f"wrote proto/conformance/{name}")
    return 0


if __name__ == "__main__":
    sys.exit(run(main))
