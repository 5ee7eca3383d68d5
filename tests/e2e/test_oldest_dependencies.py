"""The oldest releases that pyproject.toml allows serve and evaluate.

    make test-slow PYTEST_ARGS=tests/e2e/test_oldest_dependencies.py

makes a virtual environment, and downloads what is not in the cache of pip.
"""

from __future__ import annotations

import json
import re
import sys
import time
import tomllib
from pathlib import Path

import pytest

from installed import ROOT, Installed
from toy_bundle import ACTION_SPACES, write_toy_bundle

pytestmark = [
    pytest.mark.slow,
    pytest.mark.timeout(900),
    pytest.mark.skipif(sys.version_info[:2] != (3, 11), reason="the oldest releases have wheels for Python 3.11"),
]


def oldest() -> dict[str, str]:
    """The lower bounds of the base install: version by package."""
    wanted = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["dependencies"]
    found = [re.fullmatch(r"([\w-]+)>=([\d.]+)", requirement) for requirement in wanted]
    return {match[1]: match[2] for match in found if match is not None}


@pytest.fixture(scope="module")
def installed(tmp_path_factory: pytest.TempPathFactory) -> Installed:
    place = tmp_path_factory.mktemp("oldest")
    bounds = place / "oldest.txt"
    bounds.write_text("".join(f"{name}=={version}\n" for name, version in oldest().items()))
    return Installed(place, bounds)


def same_release(version: str, bound: str) -> bool:
    """Whether 1.0.0 is what 1.0 asks for."""
    return version == bound or version.startswith(f"{bound}.")


def test_the_oldest_releases_are_installed(installed: Installed) -> None:
    listed = json.loads(installed.call("python", "-m", "pip", "list", "--format", "json").stdout)
    versions = {package["name"].lower(): package["version"] for package in listed}
    bounds = oldest()
    assert len(bounds) >= 10
    assert [name for name, bound in bounds.items() if not same_release(versions[name], bound)] == []


def test_the_shipped_bundles_verify(installed: Installed) -> None:
    for manifest in sorted((ROOT / "models").glob("*/manifest.json")):
        done = installed.call("hmarl-verify", manifest.parent)
        assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("action", ACTION_SPACES)
def test_every_kind_of_policy_verifies(installed: Installed, tmp_path: Path, action: str) -> None:
    done = installed.call("hmarl-verify", write_toy_bundle(tmp_path / "b", action=action).path)
    assert done.returncode == 0, done.stderr


def test_a_fleet_serves_the_shipped_bundle(installed: Installed, tmp_path: Path) -> None:
    bundle, endpoints = ROOT / "models" / "simple-spread-hcpo", tmp_path / "endpoints.json"
    fleet = installed.start("hmarl-fleet", bundle, "--out", endpoints)
    try:
        deadline = time.monotonic() + 60.0
        while not endpoints.exists():
            assert fleet.poll() is None, "hmarl-fleet has ended"
            assert time.monotonic() < deadline, "hmarl-fleet is not serving"
            time.sleep(0.05)
        returns = []
        for source in (("--endpoints", endpoints), ("--bundle", bundle)):
            done = installed.call("hmarl-eval", *source, "--env", "mpe/simple_spread", "--episodes", 5, "--json")
            assert done.returncode == 0, done.stderr
            returns.append(json.loads(done.stdout.splitlines()[-1])["return_mean"])
        assert returns[0] == pytest.approx(returns[1])
    finally:
        fleet.terminate()
        assert fleet.wait(30.0) == 0
