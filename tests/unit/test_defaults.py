"""Each default has one source: what the commands say and do is what the functions and settings below them do."""

from __future__ import annotations

import inspect
import os
import re
import subprocess
import sys
from collections.abc import Callable
from typing import Any

import click
import pytest

from hmarl.runtime.fleet import MORE_THAN_GRACE_S, Fleet
from hmarl.runtime.recording.settings import RecordSettings
from hmarl.runtime.session import Policy
from hmarl.runtime.settings import PROVIDER, ServerSettings
from hmarl.runtime.verify import verify_agent, verify_bundle
from hmarl.sdk.clients.local_agent import LocalAgent
from hmarl.sdk.commands.check_environment import check
from hmarl.sdk.commands.evaluate import evaluate_command
from hmarl.sdk.environments import lbf, pettingzoo, rware, smac, smacv2
from hmarl.sdk.environments.conformance import check_environment
from hmarl.sdk.environments.workers.pool import CopySource
from hmarl.sdk.evaluation.deployed_teams import BundleTeam
from hmarl.trainer.commands.export import export
from hmarl.trainer.export.export import export_run
from hmarl.trainer.export.policy_source import load_team
from hmarl.trainer.runs.loaded_run import load_run

OWN = ServerSettings()


def default(function: Callable[..., Any], name: str) -> Any:
    if isinstance(function, click.Command):
        given = next(option.default for option in function.params if option.name == name)
        return given if isinstance(given, str | int | float) else None  # click has a mark of its own for none
    return inspect.signature(function).parameters[name].default


def said_defaults(command: str) -> dict[str, str]:
    """What a command's --help says by option."""
    environment = {name: value for name, value in os.environ.items() if not name.startswith("HMARL_")}
    words = [sys.executable, "-m", f"hmarl.runtime.commands.{command}", "--help"]
    text = subprocess.run(
        words, capture_output=True, text=True, check=True, timeout=120, env={**environment, "COLUMNS": "1000"}
    ).stdout
    entries = re.split(r"^ +(?=--)", text, flags=re.MULTILINE)
    found = (re.search(r"^(--[a-z-]+).*default:? ([^\s)\]]+)", entry, re.DOTALL) for entry in entries)
    return {match[1]: match[2] for match in found if match is not None}


@pytest.mark.parametrize(
    ("command", "expected"),
    [
        (
            "agent",
            {
                "--listen": OWN.listen,
                "--provider": PROVIDER,
                "--max-sessions": str(OWN.max_sessions),
                "--max-streams": str(OWN.max_streams),
                "--session-ttl-s": str(OWN.session_ttl_s),
                "--grace-s": str(OWN.grace_s),
                "--record-total-mb": str(RecordSettings.total_mb),
                "--record-file-mb": str(RecordSettings.file_mb),
                "--record-keep-s": str(RecordSettings.keep_s),
            },
        ),
        ("fleet", {"--provider": PROVIDER, "--grace-s": str(OWN.grace_s)}),
        ("verify", {"--provider": PROVIDER}),
    ],
)
def test_a_commands_defaults_are_those_of_the_settings(command: str, expected: dict[str, str]) -> None:
    said = said_defaults(command)
    assert {name: said.get(name) for name in expected} == expected


def test_what_stands_in_several_places_has_one_default() -> None:
    for function in (Policy, verify_bundle, verify_agent, LocalAgent, BundleTeam, evaluate_command):
        assert default(function, "provider") == PROVIDER, function
    assert default(Fleet, "grace_s") == OWN.grace_s + MORE_THAN_GRACE_S
    checkpoints = {default(function, "checkpoint") for function in (export, export_run, load_run, load_team)}
    assert checkpoints == {default(evaluate_command, "checkpoint")}
    for name in ("batch_size", "steps", "seed", "deterministic"):
        assert default(check, name) == default(check_environment, name), name


def test_environments_wait_for_their_workers_equally_long() -> None:
    for family in (lbf, pettingzoo, rware, smac, smacv2):
        assert default(family.make, "timeout_s") == CopySource.timeout_s, family.__name__
