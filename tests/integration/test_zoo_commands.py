"""hmarl-zoo as its users call it: list, fetch, serve, and what it says where something is wrong."""

from __future__ import annotations

import json
import signal
import subprocess
import time
from pathlib import Path

import pytest

from command_lines import command, run_in_pipes, surroundings
from hmarl.sdk import AgentClient, load_endpoints
from installed import ROOT
from zoos import Zoo, make_zoo, on_the_web


@pytest.fixture
def zoo(tmp_path: Path) -> Zoo:
    zoo = make_zoo(tmp_path)
    zoo.describe(zoo.add("toy"), zoo.add("another", agents=("a",)))
    return zoo


def test_the_zoo_that_ships_is_listed_and_verified(tmp_path: Path) -> None:
    code, output, error = run_in_pipes("hmarl-zoo", "list", "--json", XDG_CACHE_HOME=str(tmp_path))
    assert code == 0, error
    models = json.loads(output)["models"]
    assert models
    assert all(model["verified"] for model in models), models
    code, output, error = run_in_pipes("hmarl-zoo", "list", XDG_CACHE_HOME=str(tmp_path))
    assert code == 0, error
    assert all(model["name"] in output and model["task"] in output for model in models)


def test_a_list_tells_what_is_not_as_it_should_be(zoo: Zoo, tmp_path: Path) -> None:
    (zoo.folder / "toy" / "README.md").write_text("changed")
    words = ("list", "--index", zoo.index, "--trust", zoo.public, "--json")
    code, output, error = run_in_pipes("hmarl-zoo", *words, XDG_CACHE_HOME=str(tmp_path))
    assert code == 0, error
    states = {model["name"]: (model["verified"], model["state"]) for model in json.loads(output)["models"]}
    assert states["another"] == (True, "verified")
    assert states["toy"][0] is False
    assert "'README.md' is not what key" in states["toy"][1]


def test_one_is_fetched_over_the_web_and_verifies(zoo: Zoo, tmp_path: Path) -> None:
    out = tmp_path / "out"
    with on_the_web(zoo.folder) as address:
        words = ("fetch", "toy", "--out", out, "--index", f"{address}/index.json", "--trust", zoo.public, "--json")
        code, output, error = run_in_pipes("hmarl-zoo", *words)
    assert code == 0, error
    assert json.loads(output)["bundle"] == str(out)
    code, output, error = run_in_pipes("hmarl-verify", out, "--trust", zoo.public)
    assert code == 0, error


@pytest.mark.parametrize(
    ("words", "expected", "said"),
    [
        (("fetch", "toi", "--index", "{index}"), 2, "unknown model 'toi'; did you mean 'toy'?"),
        (("fetch", "toy", "--index", "{index}"), 3, "got a signature by key"),
        (("fetch", "toy", "--index", "{index}.no"), 2, "--index: got"),
        (
            ("fetch", "toy", "--index", "{index}", "--trust", "{key}", "--limit-mb", "0.001"),
            4,
            "--limit-mb allows more",
        ),
        (("fetch", "toy", "--index", "{index}", "--trust", "{key}", "--from", "{folder}/toy"), 3, "it is unsigned"),
        (("serve", "toy", "--index", "{index}"), 3, "got a signature by key"),
        (("push", "{folder}/toy", "me"), 2, "REPOSITORY: got 'me', expected OWNER/NAME"),
        (("--json", "list"), 2, "ACTION: got 'list' after an option, expected it first"),
    ],
)
def test_what_is_wrong_is_one_line_and_nothing_is_written(
    zoo: Zoo, tmp_path: Path, words: tuple[str, ...], expected: int, said: str
) -> None:
    cache = tmp_path / "cache"
    filled = [word.format(index=zoo.index, key=zoo.public, folder=zoo.folder) for word in words]
    out = ["--out", str(tmp_path / "out")] if words[0] == "fetch" else []
    code, output, error = run_in_pipes("hmarl-zoo", *filled, *out, XDG_CACHE_HOME=str(cache))
    assert (code, output, len(error.splitlines())) == (expected, "", 1), error
    assert said in error
    assert not (tmp_path / "out").exists()
    assert not cache.exists()


def serving(zoo: Zoo, cache: Path, endpoints: Path, *more: str) -> subprocess.Popen[bytes]:
    words = ["serve", "toy", "--index", str(zoo.index), "--trust", str(zoo.public), "--out", str(endpoints), *more]
    program = subprocess.Popen(
        command("hmarl-zoo", *words), env=surroundings(XDG_CACHE_HOME=str(cache)), stdout=subprocess.DEVNULL
    )
    deadline = time.monotonic() + 60.0
    while not endpoints.exists():
        assert program.poll() is None, "hmarl-zoo serve has ended"
        assert time.monotonic() < deadline, "hmarl-zoo serve is not serving"
        time.sleep(0.05)
    return program


def test_one_is_served_also_when_its_place_is_gone_and_its_kept_copy_is_verified_again(
    zoo: Zoo, tmp_path: Path
) -> None:
    cache, endpoints = tmp_path / "cache", tmp_path / "endpoints.json"
    program = serving(zoo, cache, endpoints)
    try:
        with AgentClient(load_endpoints(endpoints)["agent_0"]) as agent:
            assert agent.spec.id == "agent_0"
    finally:
        program.send_signal(signal.SIGINT)
        assert program.wait(60.0) == 0
    (zoo.folder / "toy").rename(tmp_path / "gone")
    (kept,) = (cache / "hmarl" / "zoo").iterdir()
    program = serving(zoo, cache, endpoints, "--", "--socket-dir", str(tmp_path / "s"))
    try:
        assert load_endpoints(endpoints)["agent_0"].startswith("unix:")
    finally:
        program.send_signal(signal.SIGINT)
        assert program.wait(60.0) == 0
    (kept / "README.md").write_text("changed on the disk")
    words = ("serve", "toy", "--index", zoo.index, "--trust", zoo.public)
    code, _, error = run_in_pipes("hmarl-zoo", *words, XDG_CACHE_HOME=str(cache))
    assert (code, "it is unsigned" in error) == (3, True), error


def test_a_checkout_needs_no_place(tmp_path: Path) -> None:
    code, _, error = run_in_pipes("hmarl-zoo", "fetch", "simple-spread-hcpo", "--out", tmp_path / "spread")
    assert code == 0, error
    assert (tmp_path / "spread" / "manifest.sha256").read_bytes() == (
        ROOT / "models" / "simple-spread-hcpo" / "manifest.sha256"
    ).read_bytes()
