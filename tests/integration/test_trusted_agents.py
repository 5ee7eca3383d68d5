"""Agents, fleets and commands that take signed bundles alone, as real processes."""

from __future__ import annotations

import json
import os
import shutil
import signal
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from agent_process import AgentProcess
from command_lines import run_in_pipes
from hmarl.runtime import fleet_member
from hmarl.runtime.bundle import SIGNATURE, Bundle, load_bundle
from hmarl.runtime.commands import sign as sign_module
from hmarl.runtime.fleet import Fleet
from hmarl.runtime.fleet_member import FleetError
from hmarl.sdk.clients.client import AgentClient
from processes import children, fleet_process, wait_for
from raw_bundle import run_module
from toy_bundle import write_toy_bundle

LEGAL = np.ones(5, np.bool_)


@pytest.fixture
def team(tmp_path: Path) -> Path:
    """A folder with a signed bundle, ``bundle``, and two pairs of keys, ``team`` and ``other``."""
    write_toy_bundle(tmp_path / "bundle")
    for name in ("team", "other"):
        assert sign_module.main(["--new-key", str(tmp_path / f"{name}.pem")]) == 0
    assert sign_module.main([str(tmp_path / "bundle"), "--key", str(tmp_path / "team.pem")]) == 0
    return tmp_path


def failed(fleet: Fleet) -> bool:
    try:
        fleet.check()
    except FleetError as error:
        return "agent 'agent_0' keeps failing: exit code 3" in str(error)
    return False


def test_signing_by_the_command_line(toy_bundle: Bundle, tmp_path: Path) -> None:
    (tmp_path / "secret").touch(0o600)
    (tmp_path / "secret").write_text("the passphrase\n")
    key = tmp_path / "k.pem"
    code, output, error = run_in_pipes(
        "hmarl-sign", "--new-key", key, "--passphrase-file", tmp_path / "secret", "--json"
    )
    assert (code, error) == (0, "")
    made = json.loads(output)
    assert made["public_key"] == str(tmp_path / "k.pub.pem")
    bundle = tmp_path / "b"
    shutil.copytree(toy_bundle.path, bundle)
    code, output, error = run_in_pipes("hmarl-sign", bundle, "--key", key)
    assert (code, output) == (2, "")
    assert "got an encrypted key without its passphrase" in error
    code, output, error = run_in_pipes(
        "hmarl-sign", bundle, "--key", key, "--json", HMARL_SIGNING_PASSPHRASE="the passphrase"
    )
    assert (code, error) == (0, "")
    assert json.loads(output) == {
        "bundle": str(bundle),
        "bundle_sha256": toy_bundle.sha256,
        "signed_by": f"key {made['fingerprint']}",
    }
    code, output, error = run_in_pipes("hmarl-verify", bundle, "--trust", made["public_key"])
    assert (code, error) == (0, "")
    assert f"signed by key {made['fingerprint']}" in output.splitlines()
    (bundle / "agents" / "agent_0.onnx").open("ab").write(b"x")
    code, output, error = run_in_pipes("hmarl-verify", bundle, "--trust", made["public_key"])
    assert (code, output) == (3, "")
    assert error.count("\n") == 1
    assert "file 'agents/agent_0.onnx' is not what key" in error


def test_a_bundle_that_is_damaged_is_not_signed(toy_bundle: Bundle, team: Path) -> None:
    damaged = team / "damaged"
    shutil.copytree(toy_bundle.path, damaged)
    (damaged / "agents" / "agent_0.onnx").unlink()
    done = run_module("sign", damaged, "--key", team / "team.pem")
    assert done.code == 3
    assert "file 'agents/agent_0.onnx' is missing" in done.errors
    assert not (damaged / SIGNATURE).exists()


@pytest.mark.parametrize("program", ["agent", "fleet"])
def test_agents_and_fleets_refuse_what_is_not_signed_by_a_trusted_key(team: Path, program: str) -> None:
    agent = ["--agent", "agent_0", "--listen", "127.0.0.1:0"] if program == "agent" else []
    unsigned = team / "unsigned"
    shutil.copytree(team / "bundle", unsigned)
    (unsigned / SIGNATURE).unlink()
    for bundle, key, words in (
        (unsigned, "team", "it is unsigned, there is no 'model.sig' in it"),
        (team / "bundle", "other", "got a signature by key "),
    ):
        done = run_module(program, bundle, *agent, "--trust", team / f"{key}.pub.pem")
        assert done.code == 3
        assert words in done.errors
        assert done.errors.startswith(f"hmarl-{program}: bundle {bundle}: ")
        assert done.errors.count("\n") == 1


def test_a_trusted_agent_serves_and_the_environment_may_name_several_keys(
    team: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HMARL_TRUST", os.pathsep.join(str(team / f"{name}.pub.pem") for name in ("other", "team")))
    with AgentProcess(team / "bundle", "agent_0", log=team / "log") as served, AgentClient(served.address) as client:
        client.reset(seed=1)
        assert client.act(np.zeros(6, np.float32), LEGAL).fresh
        wait_for(lambda: "is signed by key " in served.log, "the log")


def unsign(bundle: Path) -> None:
    (bundle / SIGNATURE).unlink()


def sign_by_another(bundle: Path) -> None:
    assert sign_module.main([str(bundle), "--key", str(bundle.parent / "other.pem")]) == 0


def change_a_graph(bundle: Path) -> None:
    with (bundle / "agents" / "agent_0.onnx").open("ab") as graph:
        graph.write(b"x")


def add_a_file(bundle: Path) -> None:
    (bundle / "added").write_text("x")


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="copies in memory are Linux's")
@pytest.mark.parametrize(
    ("tamper", "words"),
    [
        (unsign, "it is unsigned"),
        (sign_by_another, "got a signature by key"),
        (change_a_graph, "file 'agents/agent_0.onnx' is not what"),
        (add_a_file, "file 'added' was not signed"),
    ],
)
def test_a_fleet_survives_what_is_done_to_its_bundle(
    team: Path, tamper: Callable[[Path], None], words: str, capfd: pytest.CaptureFixture[str]
) -> None:
    """The manifest, by which fleets know bundles, is the same: a member refuses what lies there, and gets the copy."""
    trust = team / "team.pub.pem"
    bundle = load_bundle(team / "bundle", trust)
    with Fleet(bundle, options=[f"--trust={trust}"]) as fleet:
        tamper(bundle.path)
        os.kill(fleet.process_ids["agent_0"], signal.SIGKILL)
        wait_for(lambda: not fleet.serving, "noticing the crash")
        wait_for(lambda: fleet.serving or fleet.check(), "the restart of a member from the fleet's copy")
    assert words in capfd.readouterr().err


def test_a_member_that_is_started_again_checks_again(
    team: Path, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A copy is not trusted more than what was copied: here the key is trusted no longer."""
    monkeypatch.setattr(fleet_member, "MAX_FAILURES", 2)
    trust = team / "team.pub.pem"
    with Fleet(load_bundle(team / "bundle", trust), options=[f"--trust={trust}"]) as fleet:
        shutil.copyfile(team / "other.pub.pem", trust)
        os.kill(fleet.process_ids["agent_0"], signal.SIGKILL)
        wait_for(lambda: failed(fleet), "the end of the fleet")
    assert "got a signature by key" in capfd.readouterr().err


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="as a service manager starts it")
def test_a_fleet_passes_on_whom_it_trusts(team: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Also where the path is relative."""
    monkeypatch.chdir(team)
    bundle = load_bundle(team / "bundle")
    with fleet_process(bundle, team / "endpoints.json", "--trust", "team.pub.pem") as process:
        assert process.stdout is not None
        assert json.loads(process.stdout.readline())["bundle_sha256"] == bundle.sha256
        for member in children(process.pid):
            words = Path(f"/proc/{member}/cmdline").read_bytes().decode().split("\0")
            assert f"--trust={team}/team.pub.pem" in words


def test_an_evaluation_takes_signed_bundles_alone(team: Path) -> None:
    code, _, error = run_in_pipes("hmarl-eval", "--bundle", team / "bundle", "--trust", team / "other.pub.pem")
    assert code == 3
    assert "got a signature by key" in error
    code, _, error = run_in_pipes("hmarl-eval", "--endpoints", team / "none", "--trust", team / "other.pub.pem")
    assert code == 2
    assert "--trust: got it with --endpoints, expected it with --bundle" in error


def test_a_reload_takes_what_a_trusted_key_signed_alone(team: Path) -> None:
    bundle, out = load_bundle(team / "bundle"), team / "endpoints.json"
    retrained = write_toy_bundle(team / "retrained", sizes=(9,))
    with fleet_process(bundle, out, "--trust", team / "team.pub.pem") as process:
        assert process.stdout is not None
        process.stdout.readline()
        for signed, words in (
            ([], "it is unsigned, there is no 'model.sig' in it"),
            ([str(retrained.path), "--key", str(team / "other.pem")], "got a signature by key "),
        ):
            assert not signed or sign_module.main(signed) == 0
            done = run_module("fleet", "reload", out, retrained.path)
            assert done.code == 3
            assert "nothing has changed: " in done.errors
            assert words in done.errors
            assert json.loads(out.read_text())["bundle_sha256"] == bundle.sha256
        assert sign_module.main([str(retrained.path), "--key", str(team / "team.pem")]) == 0
        done = run_module("fleet", "reload", out, retrained.path)
        assert (done.code, done.errors) == (0, "")
        assert json.loads(out.read_text())["bundle_sha256"] == retrained.sha256


def test_an_agent_that_reloads_by_a_signal_checks_too(team: Path) -> None:
    link, retrained = team / "link", write_toy_bundle(team / "retrained", sizes=(9,))
    link.symlink_to(team / "bundle")
    options = ["--trust", str(team / "team.pub.pem")]
    with AgentProcess(link, "agent_0", options=options, log=team / "log") as served:
        link.unlink()
        link.symlink_to(retrained.path)
        served.process.send_signal(signal.SIGHUP)
        wait_for(lambda: "it is unsigned" in served.log, "the refusal")
        assert sign_module.main([str(retrained.path), "--key", str(team / "team.pem")]) == 0
        served.process.send_signal(signal.SIGHUP)
        wait_for(lambda: f"({retrained.sha256}) is served to new episodes" in served.log, "the reload")
