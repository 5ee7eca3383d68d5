"""Bundles go to the Hugging Face Hub and come back, by the Hub's own library, against a stand-in on this machine."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import pytest

from command_lines import run_in_pipes
from hmarl.runtime.bundle import load_bundle
from hub_stand_in import TOKEN, Hub, running_hub
from zoos import Zoo, make_zoo

pytest.importorskip("huggingface_hub", reason="needs the extra 'hub'")


@pytest.fixture
def hub() -> Iterator[Hub]:
    with running_hub() as hub:
        yield hub


@pytest.fixture
def zoo(tmp_path: Path) -> Zoo:
    zoo = make_zoo(tmp_path)
    zoo.describe(zoo.add("toy"))
    return zoo


def call(hub: Hub, home: Path, *words: object, token: str = TOKEN) -> tuple[int, str, str]:
    return run_in_pipes(
        "hmarl-zoo",
        *words,
        HF_ENDPOINT=hub.endpoint,
        HF_HOME=str(home / "hf"),
        HF_TOKEN=token,
        HF_HUB_DISABLE_TELEMETRY="1",
    )


def test_a_pushed_bundle_is_pulled_as_it_was(hub: Hub, zoo: Zoo, tmp_path: Path) -> None:
    toy, out = zoo.folder / "toy", tmp_path / "out"
    code, output, error = call(hub, tmp_path, "push", toy, "me/toy", "--trust", zoo.public, "--private", "--json")
    assert code == 0, error
    assert TOKEN not in output + error
    assert hub.private == {"me/toy"}
    code, output, error = call(hub, tmp_path, "pull", "me/toy", "--trust", zoo.public, "--out", out, "--json")
    assert code == 0, error
    assert json.loads(output)["bundle_sha256"] == load_bundle(toy).sha256
    assert load_bundle(out, zoo.public).signed_by is not None
    assert not [each for each in hub.asked if each.endswith(".gitattributes")]


def test_the_zoo_can_be_an_account_of_the_hub(hub: Hub, zoo: Zoo, tmp_path: Path) -> None:
    toy = zoo.folder / "toy"
    hub.commit("me/toy", {str(path.relative_to(toy)): path.read_bytes() for path in toy.rglob("*") if path.is_file()})
    words = ("fetch", "toy", "--index", zoo.index, "--from", "hf:me", "--trust", zoo.public, "--out", tmp_path / "out")
    code, _, error = call(hub, tmp_path, *words)
    assert code == 0, error
    assert load_bundle(tmp_path / "out").sha256 == load_bundle(toy).sha256


def test_what_was_changed_on_the_hub_is_refused_and_a_commit_can_be_pinned(hub: Hub, zoo: Zoo, tmp_path: Path) -> None:
    toy, out = zoo.folder / "toy", tmp_path / "out"
    assert call(hub, tmp_path, "push", toy, "me/toy", "--trust", zoo.public)[0] == 0
    good = hub.repositories["me/toy"][-1][0]
    hub.commit("me/toy", {"README.md": b"# Better\n"})
    pull = ("pull", "me/toy", "--trust", zoo.public, "--out", out)
    code, _, error = call(hub, tmp_path, *pull)
    assert (code, len(error.splitlines())) == (3, 1), error
    assert "'README.md' is not what key" in error
    assert not out.exists()
    code, _, error = call(hub, tmp_path, *pull, "--revision", good)
    assert code == 0, error


@pytest.mark.parametrize(
    ("words", "token", "expected", "said"),
    [
        (("pull", "me/none", "--trust", "{key}"), TOKEN, 4, "the Hub has no such repository"),
        (("pull", "me/empty", "--trust", "{key}"), TOKEN, 3, "it is unsigned"),
        (("pull", "me/empty", "--trust", "{key}", "--limit-mb", "0.00001"), TOKEN, 3, "it is unsigned"),
        (("push", "{toy}", "me/toy", "--trust", "{key}"), "hf_wrong", 4, "the Hub cannot be asked"),
        (("push", "{toy}", "me/toy", "--trust", "{key}", "--limit-mb", "0.001"), TOKEN, 4, "--limit-mb allows more"),
        (("push", "{toy}", "me/toy"), TOKEN, 3, "got a signature by key"),
        (("pull", "me", "--trust", "{key}"), TOKEN, 2, "REPOSITORY: got 'me', expected OWNER/NAME"),
    ],
)
def test_what_is_wrong_is_one_line(
    hub: Hub, zoo: Zoo, tmp_path: Path, words: tuple[str, ...], token: str, expected: int, said: str
) -> None:
    hub.commit("me/empty", {".gitattributes": b""})
    filled = [word.format(key=zoo.public, toy=zoo.folder / "toy") for word in words]
    out = ["--out", str(tmp_path / "out")] if words[0] == "pull" else []
    code, output, error = call(hub, tmp_path, *filled, *out, token=token)
    assert (code, output, len(error.splitlines())) == (expected, "", 1), error
    assert said in error
    assert token not in error
    assert not (tmp_path / "out").exists()


def test_a_hub_that_does_not_answer_is_named(hub: Hub, zoo: Zoo, tmp_path: Path) -> None:
    with running_hub() as gone:
        pass
    code, _, error = call(gone, tmp_path, "pull", "me/toy", "--trust", zoo.public, "--out", tmp_path / "out")
    assert (code, len(error.splitlines())) == (4, 1), error
