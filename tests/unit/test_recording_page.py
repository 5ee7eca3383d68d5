"""The page that shows an episode of a recording."""

from __future__ import annotations

import base64
import re
import shutil
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest

from hmarl.runtime.bundle import Bundle
from hmarl.runtime.errors import ObservationError
from hmarl.runtime.recording.reader import open_recording, read_recording
from hmarl.sdk.commands.replay import main
from hmarl.sdk.reports.recorded_episodes import collected, summaries
from recorded import inputs, recorded
from toy_bundle import write_toy_bundle


@pytest.fixture(scope="module")
def toy(tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    return write_toy_bundle(tmp_path_factory.mktemp("toy") / "bundle", action="box")


@pytest.fixture(scope="module")
def box(toy: Bundle, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two agents, two episodes; in one of them an observation was refused."""
    folder = tmp_path_factory.mktemp("box")
    for agent_id in ("agent_0", "agent_1"):
        with recorded(toy, folder, agent_id) as policy:
            generator = np.random.default_rng(0)
            for seed in (100, 200):
                session = policy.session()
                session.reset(seed, sample=True)
                for _ in range(12):
                    session.act(*inputs(policy, generator))
                if seed == 200:
                    with pytest.raises(ObservationError):
                        session.act(np.full(6, np.inf, np.float32))
                session.end()
    return folder


def sections(page: str) -> list[str]:
    return re.findall(r"<h2>(agent_\d), seed (\d+)</h2>", page)


def test_it_shows_the_episode_in_which_something_went_wrong(
    box: Path, toy: Bundle, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main([str(box), "--bundle", str(toy.path), "--html", str(tmp_path / "page.html")]) == 0
    assert f"wrote {tmp_path / 'page.html'}" in capsys.readouterr().out
    page = (tmp_path / "page.html").read_text()
    assert sections(page) == [("agent_0", "200"), ("agent_1", "200")]
    assert "the same" in page
    assert page.count("<td>step 12</td><td>ObservationError</td><td>observation[0]: got inf") == 2
    pictures = re.findall(r'src="data:image/png;base64,([^"]+)" alt="([\w ]+) of', page)
    assert {name for _, name in pictures} >= {"Actions", "Latency", "Observations", "Output instruction"}
    assert all(base64.b64decode(data).startswith(b"\x89PNG") for data, _ in pictures)
    assert not re.search(r'(?:src|href)="(?!data:)', page)  # nothing is fetched from elsewhere


def test_any_episode_can_be_shown_and_no_bundle_is_needed(box: Path, tmp_path: Path) -> None:
    assert main([str(box), "--html", str(tmp_path / "page.html"), "--seed", "100"]) == 0
    page = (tmp_path / "page.html").read_text()
    assert sections(page) == [("agent_0", "100"), ("agent_1", "100")]
    assert "give --bundle to run it again" in page


def test_what_differs_is_shown(box: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    other = write_toy_bundle(tmp_path / "other", action="box", sizes=(4, 8))
    code = main([str(box), "--bundle", str(other.path), "--any-bundle", "--html", str(tmp_path / "page.html")])
    assert code == 4
    said = capsys.readouterr()
    assert "acts differ, first agent 'agent_0', episode 1 (seed 100), step 0: action: got [" in said.err
    page = (tmp_path / "page.html").read_text()
    assert "<h2>What differs</h2>" in page
    assert sections(page)[0] == ("agent_0", "100")


def test_a_seed_of_no_episode_is_refused(box: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([str(box), "--html", str(tmp_path / "page.html"), "--seed", "7"]) == 2
    assert "--seed: got 7, expected one of an episode in the recording: 100, 200" in capsys.readouterr().err
    assert not (tmp_path / "page.html").exists()


@pytest.mark.parametrize("steps", [range(2**63, 2**63 + 5), [0, 1, 2**64 - 1]])
def test_steps_may_be_as_large_as_a_message_holds(toy: Bundle, tmp_path: Path, steps: Sequence[int]) -> None:
    with recorded(toy, tmp_path / "box") as policy:
        session, generator = policy.session(), np.random.default_rng(0)
        session.reset(1)
        for step in steps:
            session.act(*inputs(policy, generator), step=step)
    box, page = tmp_path / "box", tmp_path / "page.html"
    assert main([str(box), "--bundle", str(toy.path), "--html", str(page)]) == 0
    files = open_recording(box)
    (shown,) = collected(read_recording(files), list(summaries(read_recording(files)).values()))
    assert shown.steps.tolist() == [float(step - steps[0]) for step in steps]
    assert f"{steps[0]} to {steps[-1]}" in page.read_text()


def test_what_is_said_of_the_process_is_that_of_a_file_that_says_it(box: Path, tmp_path: Path) -> None:
    """Also where a power failure left nothing of the first one."""
    shutil.copytree(box, tmp_path / "box")
    (tmp_path / "box" / "agent_0" / "agent_0-20200101T000000-1-000001.mcap").touch()
    assert main([str(tmp_path / "box"), "--html", str(tmp_path / "page.html")]) == 0
    assert "onnxruntime_version" in (tmp_path / "page.html").read_text()
