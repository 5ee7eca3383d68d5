import dataclasses
import json
import sys
import types

import pytest

from hmarl.runtime.command_line import command, run
from hmarl.runtime.errors import BundleError
from hmarl.sdk.commands._common import parse_settings, print_json
from hmarl.sdk.commands.check_environment import check
from hmarl.sdk.commands.environments import environments
from hmarl.sdk.environments import families, make, tasks
from hmarl.sdk.errors import UsageError


def exit_code(program, *arguments):
    return run(program, arguments)


# --- names -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("mpa/simple_spread", "unknown environment family 'mpa'; did you mean 'mpe'"),
        ("mpe", "got no task, expected 'mpe/TASK'; see 'hmarl-envs mpe'"),
        ("nowhere_at_all:make", "expected 'package.module:function'"),
        ("math:no_such_function", "expected 'package.module:function'"),
    ],
)
def test_wrong_names_are_explained(name, message):
    with pytest.raises(UsageError, match=message):
        make(name)


def test_a_batch_holds_at_least_one_environment():
    with pytest.raises(UsageError, match="batch_size: got 0, expected at least 1"):
        make("mpe/simple_spread", 0)


def test_an_environment_of_ones_own_is_called_by_its_import_path(monkeypatch):
    own = types.ModuleType("own_environments")
    own.arena = lambda batch_size, **arguments: (batch_size, arguments)
    monkeypatch.setitem(sys.modules, "own_environments", own)
    assert make("own_environments:arena", 3, walls=4) == (3, {"walls": 4})


def test_a_built_in_family_is_found_without_looking_through_all_installed_packages(monkeypatch):
    monkeypatch.setattr("hmarl.sdk.environments.entry_points", lambda **_: pytest.fail("looked through them"))
    make("mpe/simple_spread").close()


def test_every_built_in_family_lists_its_tasks():
    assert {"mpe", "coordsum", "pettingzoo", "vmas"} <= set(families())
    assert "simple_spread" in tasks("mpe")
    with pytest.raises(UsageError, match="unknown environment family 'chess'"):
        tasks("chess")


# --- settings and output ---------------------------------------------------------------------------------------------


def test_settings_are_read_as_json_where_possible_and_as_text_otherwise():
    pairs = [
        "env.N=5",
        "env.name=blue=sky",
        "run.fast=true",
        "env.list=[1, 2]",
        "env.N=6",
        "env.flag=False",
        "env.a.b=",
    ]
    assert parse_settings(pairs, ("algorithm", "env", "run")) == {
        "algorithm": {},
        "env": {"N": 6, "name": "blue=sky", "list": [1, 2], "flag": False, "a.b": ""},
        "run": {"fast": True},
    }
    assert parse_settings(None) == {"env": {}}


@pytest.mark.parametrize(
    ("pair", "message"),
    [
        ("env.N", "--set: got 'env.N', expected PREFIX.KEY=VALUE"),
        ("N=5", "--set: got 'N=5', expected PREFIX.KEY=VALUE"),
        ("env.=5", "expected PREFIX.KEY=VALUE"),
        ("evn.N=5", r"unknown prefix 'evn' in 'evn.N=5'; did you mean 'env.N'\? \(known: env.\*\)"),
    ],
)
def test_wrong_settings_are_explained(pair, message):
    with pytest.raises(UsageError, match=message):
        parse_settings([pair])


def test_json_is_one_line_without_nan(capsys):
    print_json({"a": float("nan"), "b": [1, (2, 3)]})
    assert capsys.readouterr().out == '{"a": null, "b": [1, [2, 3]]}\n'


@pytest.mark.parametrize(
    ("error", "code", "message"),
    [
        (UsageError("no such\nthing"), 2, "hmarl-toy: no such thing\n"),
        (BundleError("a byte has flipped"), 3, "hmarl-toy: a byte has flipped\n"),
        (ValueError("odd"), 4, "hmarl-toy: ValueError: odd (HMARL_DEBUG=1 shows where)\n"),
        (PermissionError(13, "Permission denied", "/run"), 4, "hmarl-toy: /run: Permission denied\n"),
        (KeyboardInterrupt(), 130, "hmarl-toy: interrupted\n"),
    ],
)
def test_errors_become_one_line_and_an_exit_code(error, code, message, capsys):
    @command("hmarl-toy")
    def fail():
        raise error

    assert exit_code(fail) == code
    assert capsys.readouterr().err == message


def test_debug_mode_shows_where_before_the_line_that_says_what(monkeypatch, capsys):
    @command("hmarl-toy")
    def fail():
        raise ValueError("odd")

    monkeypatch.setenv("HMARL_DEBUG", "1")
    assert exit_code(fail) == 4
    first, *_, last = capsys.readouterr().err.splitlines()
    assert first.startswith("Traceback")
    assert last.startswith("hmarl-toy: ValueError: odd")


def test_the_exit_code_of_a_function_is_the_programs():
    @command("hmarl-toy")
    def four():
        return 4

    assert exit_code(four) == 4


# --- hmarl-check-env and hmarl-envs ----------------------------------------------------------------------------------


def test_check_env_passes_mpe_and_says_so_in_json(capsys):
    assert exit_code(check, "mpe/simple_spread", "--set", "env.N=2", "--set", "env.max_cycles=4", "--json") == 0
    *table, last = capsys.readouterr().out.splitlines()
    report = json.loads(last)
    assert report["passed"] is True
    assert len(report["checks"]) == 17
    assert sum("✓" in line for line in table) == 17


def test_check_env_exits_with_4_when_a_check_fails(capsys, monkeypatch):
    def make_mislabelled(batch_size):
        environment = make("mpe/simple_spread", batch_size, max_cycles=4)
        environment.spec = dataclasses.replace(environment.spec, horizon=3)
        return environment

    own = types.ModuleType("own_environments")
    own.mislabelled = make_mislabelled
    monkeypatch.setitem(sys.modules, "own_environments", own)
    assert exit_code(check, "own_environments:mislabelled") == 4
    assert "✗" in capsys.readouterr().out


def test_check_env_takes_a_deterministic_task(capsys):
    assert exit_code(check, "coordsum/sum-to-10", "--deterministic") == 0


@pytest.mark.parametrize(
    "arguments", [["mpe/simple_sprad"], ["mpe/simple_spread", "--set", "run.x=1"], ["--batch-size"]]
)
def test_check_env_exits_with_2_on_wrong_usage(arguments, capsys):
    assert exit_code(check, *arguments) == 2
    assert capsys.readouterr().err


def test_envs_lists_families_and_tasks(capsys):
    assert exit_code(environments) == 0
    assert "coordsum" in capsys.readouterr().out
    assert exit_code(environments, "mpe") == 0
    assert "mpe/simple_spread\n" in capsys.readouterr().out
    assert exit_code(environments, "--json") == 0
    assert json.loads(capsys.readouterr().out)["families"]["mpe"] == {"installed": True, "extra": None}
    assert exit_code(environments, "chess") == 2
