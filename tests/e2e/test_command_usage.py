"""All programs explain themselves and report wrong usage alike: one line, in one shape, with one exit code."""

from __future__ import annotations

import re
import subprocess
import sys
import time
import tomllib
from collections.abc import Callable
from importlib import import_module
from pathlib import Path

import pytest

from command_lines import run_in_pipes, run_in_terminal
from hmarl.runtime import __version__
from hmarl.runtime.command_line import Command, run

ROOT = Path(__file__).parents[2]
SCRIPTS = {
    program: place.partition(":")[0]
    for program, place in tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["scripts"].items()
}
PROGRAMS = sorted(SCRIPTS)
BUNDLE = ROOT / "models" / "simple-spread-hcpo"
# The line: the program, what is wrong, what was got, what was expected.
SHAPE = r"{}: [^:]+: got .+, expected .+"

MISSING = {
    "hmarl-agent": ((), "BUNDLE: got nothing, expected BUNDLE (bundle directory or zip)"),
    "hmarl-check-env": ((), "ENVIRONMENT: got nothing, expected ENVIRONMENT (FAMILY/TASK"),
    "hmarl-eval": ((), "team: got none, expected exactly one of --bundle, --endpoints and --run"),
    "hmarl-export": ((), "RUN: got nothing, expected RUN (run directory of hmarl-train)"),
    "hmarl-faults": (("127.0.0.1:0",), "TARGET: got nothing, expected TARGET (where they are passed on to"),
    "hmarl-fleet": ((), "BUNDLE: got nothing, expected BUNDLE"),
    "hmarl-gap": ((), "RUN: got nothing, expected hmarl-gap RUN, or hmarl-gap --bundle BUNDLE without its run"),
    "hmarl-keys": ((), "ACTION: got nothing, expected ACTION (init, issue, client, renew, revoke or list"),
    "hmarl-sign": ((), "BUNDLE: got nothing, expected BUNDLE (bundle directory or zip), or --new-key"),
    "hmarl-suite": ((), "SUITE: got nothing, expected SUITE (TOML file: algorithms, tasks, seeds, settings)"),
    "hmarl-train": ((), "ALGORITHM: got nothing, expected hmarl-train ALGORITHM --env FAMILY/TASK"),
    "hmarl-tune": ((), "ALGORITHM: got nothing, expected ALGORITHM (what to train with; see hmarl-algorithms)"),
    "hmarl-verify": ((), "BUNDLE: got nothing, expected BUNDLE"),
    "hmarl-zoo": ((), "ACTION: got nothing, expected ACTION (list, fetch, serve, push, pull)"),
}
WRONG_VALUE = {
    "hmarl-agent": ((BUNDLE, "--agent", "agent_0", "--log-level", "inof"), "--log-level: got 'inof', expected one of"),
    "hmarl-check-env": (("mpe/simple_spread", "--steps", "0"), "--steps: got '0', expected an integer of at least 1"),
    "hmarl-eval": (("--bundle", BUNDLE, "--episodes", "ten"), "--episodes: got 'ten', expected an integer"),
    "hmarl-export": (("run", "--checkpoint"), "--checkpoint: got nothing, expected WHICH (best, last or a number"),
    "hmarl-faults": (("127.0.0.1:0", "x:1", "--delay-s", "0"), "--delay-s: got '0', expected a number above 0"),
    "hmarl-fleet": ((BUNDLE, "--grace-s", "-1"), "--grace-s: got '-1', expected a number above 0"),
    "hmarl-gap": (("run", "--episodes", "1"), "--episodes: got '1', expected an integer of at least 2"),
    "hmarl-replay": (("r.mcap", "--seed", "x"), "--seed: got 'x', expected an integer"),
    "hmarl-keys": (("isue", "agent_0"), "ACTION: got 'isue', expected one of init, issue, client"),
    "hmarl-sign": ((BUNDLE, "--key"), "--key: got nothing, expected FILE (sign BUNDLE with this private key (PEM))"),
    "hmarl-suite": (("s.toml", "--jobs", "0"), "--jobs: got '0', expected an integer of at least 1"),
    "hmarl-train": (("happo", "--seed", "x"), "--seed: got 'x', expected an integer"),
    "hmarl-tune": (("happo", "--env", "mpe/simple_spread", "--pruner", "x"), "--pruner: got 'x', expected one of"),
    "hmarl-verify": ((BUNDLE, "--json=yes"), "--json: got a value, expected none"),
    "hmarl-zoo": (("fetsch", "toy"), "ACTION: got 'fetsch', expected one of list, fetch, serve, push, pull"),
    "hmarl-envs": (("mpe", "vmas"), "arguments: got 'vmas' in excess, expected [FAMILY] and options alone"),
    "hmarl-algorithms": (("hcpo", "mat"), "arguments: got 'mat' in excess, expected [ALGORITHM] and options alone"),
}


def loaded(program: str) -> Command:
    """What the program runs."""
    (found,) = [each for each in vars(import_module(SCRIPTS[program])).values() if isinstance(each, Command)]
    return found


def refused(program: str, code: int, output: str, error: str) -> str:
    """The line with which a program refuses a command line, without its own name."""
    assert (code, output) == (2, ""), error
    (line,) = error.splitlines()
    name, _, rest = line.partition(": ")
    assert name in (program, f"{program} reload", f"{program} check"), line
    return rest


Wrong = Callable[..., str]


@pytest.fixture
def wrong(capsys: pytest.CaptureFixture[str]) -> Wrong:
    """Gives a program a wrong command line, in this process, and returns its answer."""

    def call(program: str, *arguments: object) -> str:
        code = run(loaded(program), [str(each) for each in arguments])
        return refused(program, code, *capsys.readouterr())

    return call


@pytest.mark.parametrize("program", PROGRAMS)
def test_an_unknown_option_is_told_with_the_nearest(program: str, wrong: Wrong) -> None:
    line = wrong(program, "--jsno")
    assert line == f"--jsno: got an unknown option, expected a known one; did you mean '--json'?; see {program} --help"


@pytest.mark.parametrize("program", sorted(MISSING))
def test_what_is_missing_is_named(program: str, wrong: Wrong) -> None:
    arguments, expected = MISSING[program]
    assert wrong(program, *arguments).startswith(expected)


def test_a_required_option_is_missed(wrong: Wrong) -> None:
    assert wrong("hmarl-agent", BUNDLE).startswith("--agent: got nothing, expected ID (the agent to serve)")


@pytest.mark.parametrize("program", PROGRAMS)
def test_a_wrong_value_is_told_with_what_is_expected(program: str, wrong: Wrong) -> None:
    arguments, expected = WRONG_VALUE[program]
    line = wrong(program, *arguments)
    assert line.startswith(expected)
    assert re.fullmatch(SHAPE.format(program), f"{program}: {line}")
    assert line.endswith(f"; see {program} --help")


@pytest.mark.parametrize(
    ("program", "arguments", "code"),
    [
        ("hmarl-agent", ("nowhere", "--agent", "agent_0"), 3),
        ("hmarl-fleet", ("nowhere",), 3),
        ("hmarl-verify", ("nowhere",), 3),
        ("hmarl-verify", (BUNDLE, "--trust", "nowhere"), 2),
        ("hmarl-agent", (BUNDLE, "--agent", "agent_0", "--trust", "nowhere"), 2),
        ("hmarl-fleet", (BUNDLE, "--trust", "nowhere"), 2),
        ("hmarl-sign", (BUNDLE, "--key", "nowhere"), 2),
        ("hmarl-eval", ("--bundle", "nowhere"), 3),
        ("hmarl-eval", ("--endpoints", "nowhere"), 2),
        ("hmarl-check-env", ("nowhere:make",), 2),
        ("hmarl-suite", ("nowhere.toml",), 2),
        ("hmarl-gap", ("nowhere",), 3),
        ("hmarl-gap", ("--bundle", "nowhere"), 3),
    ],
)
def test_what_is_not_there_is_named(program: str, arguments: tuple[str, ...], code: int) -> None:
    """By real processes, at once: what takes long to load is not loaded for this."""
    found, output, error = run_in_pipes(program, *arguments)
    assert (found, output) == (code, "")
    *before, last = error.splitlines()
    assert re.fullmatch(rf"{program}: .*nowhere.*", last), error
    assert before in ([], ["checking nowhere:make"])


@pytest.mark.parametrize(
    "program", [*PROGRAMS, "hmarl-fleet reload", "hmarl-suite check", "hmarl-zoo fetch", "hmarl-zoo serve"]
)
def test_help_teaches_within_80_columns(program: str) -> None:
    begin = time.monotonic()
    code, lines = run_in_terminal(80, *program.split(), "--help")
    assert time.monotonic() - begin < 20.0, "it waits for something"  # a second on a machine that is quiet
    assert code == 0
    assert max(map(len, lines)) <= 80
    assert lines[0].startswith(f"Usage: {program} ")
    sections = [line.rstrip(":") for line in lines if re.fullmatch(r"\w[\w ]*:", line)]
    further = ["Further commands"] if program in ("hmarl-fleet", "hmarl-suite", "hmarl-zoo") else []
    assert [each for each in sections if each != "Arguments"] == ["Options", "Examples", *further, "Exit codes"]
    assert any(line.startswith(f"  {program}") for line in lines[lines.index("Examples:") :])
    assert not [line for line in lines if line.endswith("-")], "a word is broken at its hyphen"


def test_no_program_loads_what_takes_long_to_explain_itself() -> None:
    code = f"import sys, {', '.join(SCRIPTS.values())}; print({{'torch', 'jax', 'matplotlib'}} & set(sys.modules))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=120)
    assert done.stdout == "set()\n"


def test_help_tells_defaults_and_variables(capsys: pytest.CaptureFixture[str]) -> None:
    assert run(loaded("hmarl-agent"), ["--help"]) == 0
    shown = " ".join(capsys.readouterr().out.split())
    assert "HOST:PORT (port 0: a free one) or unix:PATH [env var: HMARL_LISTEN; default: 127.0.0.1:50051]" in shown


@pytest.mark.parametrize("program", PROGRAMS)
def test_all_have_a_version(program: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(loaded(program), ["--version"]) == 0
    assert capsys.readouterr() == (f"{program} {__version__}\n", "")


def test_a_program_that_a_word_stands_for_tells_what_is_wrong(wrong: Wrong) -> None:
    begins = {
        (): "ENDPOINTS: got nothing, expected ENDPOINTS (the endpoints file of the running fleet)",
        ("e.json",): "BUNDLE: got nothing, expected BUNDLE (bundle directory or zip, of the same agents and spaces)",
        ("e.json", "b", "c"): "arguments: got 'c' in excess, expected ENDPOINTS BUNDLE and options alone",
        ("e.json", "b", "--jsno"): "--jsno: got an unknown option, expected a known one; did you mean '--json'?",
        ("nowhere.json", "b"): "endpoints: 'nowhere.json': No such file or directory; take the file that hmarl-fleet",
        (BUNDLE / "manifest.json", "b"): f"endpoints: got '{BUNDLE / 'manifest.json'}', which no fleet wrote; take the",
    }
    for words, begin in begins.items():
        assert wrong("hmarl-fleet", "reload", *words).startswith(begin)


def test_a_wrong_variable_is_named_as_what_it_is() -> None:
    words = (BUNDLE, "--agent", "agent_0")
    line = refused("hmarl-agent", *run_in_pipes("hmarl-agent", *words, HMARL_MAX_SESSIONS="many"))
    assert line.startswith("HMARL_MAX_SESSIONS: got 'many', expected an integer of at least 1")


def test_options_that_exclude_one_another(wrong: Wrong) -> None:
    line = wrong("hmarl-fleet", BUNDLE, "--count", 2, "--agents", "agent_0")
    assert line == "--agents and --count: got both, expected at most one of them; see hmarl-fleet --help"
