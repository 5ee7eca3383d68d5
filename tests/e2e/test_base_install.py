"""The wheel alone in a fresh environment: serves and evaluates without torch, and names the extras that are missing."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from installed import ROOT, Installed
from toy_bundle import write_toy_bundle

# Builds a wheel and installs its dependencies, from pip's cache where `make install` has filled it.
pytestmark = pytest.mark.timeout(900)

SPREAD_AGENTS = ("agent_0", "agent_1", "agent_2")


@pytest.fixture(scope="module")
def installed(tmp_path_factory: pytest.TempPathFactory) -> Installed:
    return Installed(tmp_path_factory.mktemp("base"), ROOT / "constraints.txt")


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The reference bundle of simple_spread; a toy of the same shape where none has been trained yet."""
    for manifest in sorted((ROOT / "models").glob("*/manifest.json")):
        if json.loads(manifest.read_text())["environment"]["name"] == "mpe/simple_spread":
            return manifest.parent
    path = tmp_path_factory.mktemp("toy_spread") / "bundle"
    environment = {"name": "mpe/simple_spread", "team_reward": "sum"}
    return write_toy_bundle(path, agents=SPREAD_AGENTS, observation_size=18, plain=True, environment=environment).path


@pytest.fixture
def endpoints(installed: Installed, bundle: Path, tmp_path: Path) -> Iterator[Path]:
    path = tmp_path / "endpoints.json"
    fleet = installed.start("hmarl-fleet", bundle, "--out", path)
    try:
        deadline = time.monotonic() + 60.0
        while not path.exists():
            assert fleet.poll() is None, "hmarl-fleet has ended"
            assert time.monotonic() < deadline, "hmarl-fleet is not serving"
            time.sleep(0.05)
        yield path
    finally:
        fleet.terminate()
        assert fleet.wait(30.0) == 0


def test_there_is_no_torch(installed: Installed) -> None:
    listed = json.loads(installed.call("pip", "list", "--format", "json").stdout)
    names = {package["name"].lower() for package in listed}
    assert {"hmarl", "onnxruntime", "grpcio", "numpy"} <= names
    assert not names & {"torch", "onnx", "jax", "matplotlib", "vmas", "mpe2", "pettingzoo", "tensorboard"}


# Environment families that compute in a package of their own, and what the extra is called.
NEED_AN_EXTRA = {"vmas": "vmas", "mamujoco": "mujoco", "smax": "smax", "lbf": "lbf", "rware": "rware"}


# Modules that are imported only where an option asks for them, and what their extra is called.
MODULES_OF_EXTRAS = {
    "hmarl.runtime.metrics": "metrics",
    "hmarl.runtime.tracing": "otel",
    **{
        f"hmarl.runtime.recording.{name}": "record"
        for name in ("agent", "beside", "box_files", "library", "reader", "recorder", "replay")
    },
    "hmarl.sdk.clients.client_metrics": "metrics",
    "hmarl.sdk.clients.spans": "otel",
    **{
        f"hmarl.sdk.{name}": "record"
        for name in ("clients.recording", "reports.recorded_episodes", "reports.recording_page")
    },
}


def test_every_module_of_protocol_runtime_and_sdk_imports_alone_or_names_its_extra(installed: Installed) -> None:
    script = (
        "import importlib, json, pkgutil, hmarl.agent, hmarl.recording, hmarl.runtime, hmarl.sdk\n"
        "from hmarl.runtime.errors import MissingExtraError\n"
        "refused = {}\n"
        "for package in (hmarl.agent, hmarl.recording, hmarl.runtime, hmarl.sdk):\n"
        "    for module in pkgutil.walk_packages(package.__path__, package.__name__ + '.'):\n"
        f"        if not any(family in module.name for family in {[*NEED_AN_EXTRA, 'on_device']}):\n"
        "            try:\n"
        "                importlib.import_module(module.name)\n"
        "            except MissingExtraError as error:\n"
        "                refused[module.name] = str(error)\n"
        "print(json.dumps(refused))\n"
    )
    done = installed.call("python", "-c", script)
    assert done.returncode == 0, done.stderr
    refused = json.loads(done.stdout)
    assert refused.keys() == MODULES_OF_EXTRAS.keys()
    assert all(f"'hmarl[{MODULES_OF_EXTRAS[module]}]'" in message for module, message in refused.items())


def test_a_fleet_serves_the_reference_bundle(installed: Installed, bundle: Path, endpoints: Path) -> None:
    served = installed.call(
        "hmarl-eval", "--endpoints", endpoints, "--env", "mpe/simple_spread", "--episodes", 10, "--json"
    )
    assert served.returncode == 0, served.stderr
    local = installed.call("hmarl-eval", "--bundle", bundle, "--env", "mpe/simple_spread", "--episodes", 10, "--json")
    assert local.returncode == 0, local.stderr
    over_grpc, in_process = (json.loads(done.stdout.splitlines()[-1]) for done in (served, local))
    assert over_grpc["episodes"] == 10
    assert over_grpc["return_mean"] == pytest.approx(in_process["return_mean"])


def test_the_bundle_verifies(installed: Installed, bundle: Path) -> None:
    done = installed.call("hmarl-verify", bundle)
    assert done.returncode == 0, done.stderr


def test_results_are_written_without_the_eval_extra(installed: Installed, bundle: Path, tmp_path: Path) -> None:
    done = installed.call("hmarl-eval", "--bundle", bundle, "--episodes", 2, "--out", tmp_path / "out")
    assert done.returncode == 0, done.stderr
    assert "hmarl[eval]" in done.stdout
    assert (tmp_path / "out" / "evaluation.json").exists()


@pytest.mark.parametrize(
    ("command", "extra"),
    [
        (["hmarl-train", "hcpo", "--env", "mpe/simple_spread"], "train"),
        (["hmarl-export", "runs/none"], "train"),
        (["hmarl-algorithms"], "train"),
        (["hmarl-suite", "suite.toml"], "train"),
        (["hmarl-tune", "happo", "--env", "mpe/simple_spread"], "train"),
        (["hmarl-gap", "runs/none"], "train"),
        (["hmarl-sign", "--new-key", "team.pem"], "secure"),
        (["hmarl-verify", "bundle", "--trust", "team.pub.pem"], "secure"),
        (["hmarl-agent", "bundle", "--agent", "agent_0", "--record", "box"], "record"),
        (["hmarl-fleet", "bundle", "--record", "box"], "record"),
        (["hmarl-replay", "box", "--bundle", "bundle"], "record"),
        (["hmarl-zoo", "fetch", "simple-spread-hcpo", "--from", "."], "secure"),
        (["hmarl-zoo", "pull", "me/team"], "hub"),
        *((["hmarl-check-env", f"{family}/task"], extra) for family, extra in NEED_AN_EXTRA.items()),
        (["hmarl-check-env", "pettingzoo/mpe2.simple_spread_v3:parallel_env"], "mpe"),
    ],
)
def test_missing_extras_are_named(installed: Installed, command: list[str], extra: str) -> None:
    done = installed.call(*command)
    assert done.returncode == 2, done.stderr
    assert f"pip install 'hmarl[{extra}]'" in " ".join(done.stderr.split())
    assert "Traceback" not in done.stderr
