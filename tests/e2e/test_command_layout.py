"""What commands show fits a terminal of 80 columns, and is whole in a pipe and in every encoding."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest

from command_lines import run_in_pipes, run_in_terminal
from hmarl.trainer.algorithms import ALGORITHMS
from hmarl.trainer.runs.presets import PRESETS

TINY = (
    "--set",
    "run.environments=4",
    "--set",
    "run.rollout_length=12",
    "--set",
    "run.evaluation_episodes=4",
    "--set",
    "run.threads=1",
)


@pytest.mark.parametrize("columns", [80, pytest.param(120, marks=pytest.mark.slow)])
def test_the_live_line_keeps_bar_and_eta(columns: int, tmp_path: Path) -> None:
    """HCPO shows the most figures. Brackets and colons in what users name are no markup."""
    run = tmp_path / "[red]x[/] [/]:cat:"
    words = ("hcpo", "--env", "mpe/simple_spread", "--steps", "480", "--out", run, *TINY)
    code, lines = run_in_terminal(columns, "hmarl-train", *words)
    assert code == 0, lines
    assert f"next: hmarl-export {run}" in lines
    bars = [line.rstrip() for line in lines if "ETA" in line]
    assert any("100.0%" in line for line in bars), "the last state stays"
    for line in bars:
        assert len(line) <= columns, line
        assert line.startswith("hcpo · mpe/simple_spread"), line
        assert sum(map(line.count, "━╸╺")) >= 10, f"no bar: {line!r}"
        assert re.search(r"\d%+ ETA (-:--:--|\d+:\d\d:\d\d)$", line), line
    figures = [line.rstrip() for line in lines if " · " in line and "ETA" not in line]
    assert any(line.startswith("480 steps · ") for line in figures), figures
    assert all(len(line) <= columns for line in figures), figures
    for name in ("agent kl", "conductor kl", "instruction entropy", "explained variance"):
        whole = re.compile(rf"(^| · ){name} [-+.e0-9]+( · |$)")
        assert any(whole.search(line.rstrip()) for line in lines), f"'{name}' is cut or folded"
    assert not any("…" in line for line in bars + figures)


def _cells(line: str) -> list[str]:
    """The cells of a row, however they are separated."""
    return [cell.strip() for cell in line.replace("│", "  ").split("  ") if cell.strip()]


@pytest.mark.parametrize("arguments", [(), ("hcpo",), ("--presets",)])
def test_names_to_be_typed_are_whole(arguments: tuple[str, ...]) -> None:
    settings = ALGORITHMS["hcpo"].settings_class
    typed = {
        (): [[name] for name in ALGORITHMS],
        ("hcpo",): [[f"algorithm.{name}"] for name in settings.model_fields if name not in settings.without_effect],
        ("--presets",): [[each.algorithm, each.environment, each.name or "by itself"] for each in PRESETS],
    }[arguments]
    code, lines = run_in_terminal(80, "hmarl-algorithms", *arguments)
    assert code == 0, lines
    assert all(len(line.rstrip()) <= 80 for line in lines)
    for names in typed:
        assert any(_cells(line)[: len(names)] == names for line in lines), f"{names} cannot be typed from this"


@pytest.mark.parametrize("variables", [{}, {"COLUMNS": "40"}])
def test_in_a_pipe_every_row_is_one_line(variables: dict[str, str]) -> None:
    code, output, _ = run_in_pipes("hmarl-algorithms", "--presets", **variables)
    assert code == 0
    rows = [_cells(line) for line in output.splitlines()]
    for preset in PRESETS:
        assert [
            preset.algorithm,
            preset.environment,
            preset.name or "by itself",
            f"{preset.steps:,}",
            preset.about,
        ] in rows


def test_wrong_usage_is_one_line_in_a_pipe() -> None:
    long = "runs/" + "-".join(["a-long-directory"] * 12)
    for program, arguments, expected in (
        ("hmarl-train", ("happo", "--steps", long), "--steps: got '"),
        ("hmarl-eval", ("--run", long, "--episodes", "0"), "--episodes: got '0', expected an integer of at least 1"),
        ("hmarl-export", (long, "--nonsense"), "--nonsense: got an unknown option"),
        ("hmarl-envs", ("mpe", long), f"arguments: got '{long}' in excess, expected [FAMILY]"),
    ):
        code, output, error = run_in_pipes(program, *arguments)
        assert (code, output) == (2, ""), error
        (line,) = error.splitlines()
        assert line.startswith(f"{program}: {expected}"), line
        assert line.endswith(f"; see {program} --help")


def test_every_command_can_be_read_in_ascii(tmp_path: Path) -> None:
    """The settings' meanings have Greek letters, tables boxes, evaluations ±, progress lines ·, and paths anything."""

    def call(program: str, *arguments: object, code: int = 0) -> tuple[str, str]:
        found, output, error = run_in_pipes(program, *arguments, PYTHONIOENCODING="ascii")
        assert found == code, error
        return output, error

    run = tmp_path / "größe π"
    words = ("hcpo", "--env", "mpe/simple_spread", "--steps", "96", "--out", run, *TINY, "--json")
    output, error = call("hmarl-train", *words)
    assert json.loads(output.splitlines()[-1])["run"] == str(run), "JSON escapes what cannot be written"
    assert "100.0% | ETA 0 s | 96 steps" in error
    assert f"hmarl-export {tmp_path}/gro\\xdfe pi" in error.replace("gr\\xf6", "gro")
    call("hmarl-export", run)
    output, _ = call("hmarl-eval", "--bundle", run / "bundle", "--episodes", "3")
    assert "return, mean +- std" in output
    assert "lambda of the advantage estimate" in call("hmarl-algorithms", "hcpo")[0]
    assert "| v |" in call("hmarl-check-env", "mpe/simple_spread", "--steps", "30")[0]
    call("hmarl-envs")
    assert "pi/bundle" in call("hmarl-verify", run / "bundle")[0]
    assert "nothing - here" in call("hmarl-verify", tmp_path / "nothing – here", code=3)[1]
    for program, option in (("hmarl-agent", "--agent"), ("hmarl-fleet", "--count")):
        assert "nothing - here" in call(program, tmp_path / "nothing – here", option, 1, code=3)[1]


def test_latin_1_keeps_what_it_has() -> None:
    code, output, error = run_in_pipes("hmarl-algorithms", "himpo", PYTHONIOENCODING="latin-1")
    assert code == 0, error
    assert "λ" not in output
    code, output, error = run_in_pipes("hmarl-verify", "größe – π", PYTHONIOENCODING="latin-1")
    assert (code, output) == (3, "")
    assert "größe - pi" in error
