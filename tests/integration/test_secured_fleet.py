"""A fleet behind TLS: it makes its certificates, renews them, and watches its members; its file says how to get in."""

from __future__ import annotations

import datetime
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import grpc
import numpy as np
import pytest

from command_lines import run_in_pipes
from hmarl.runtime.authority import Authority
from hmarl.runtime.bundle import Bundle, load_bundle
from hmarl.runtime.fleet import Fleet
from hmarl.runtime.settings import SecuritySettings
from hmarl.runtime.team_keys import LOCAL_CLIENT, TeamKeys
from hmarl.sdk import AgentClient, AgentError, load_endpoints, load_security
from processes import fleet_process, wait_for
from secured import bare, security, write_tokens
from serving import SHIPPED_BUNDLE

MASK = np.ones(5, np.bool_)


def act(address: str, **options: object) -> int:
    with AgentClient(address, connect_timeout_s=20.0, timeout_s=20.0, **options) as agent:  # type: ignore[arg-type]
        agent.reset(1)
        return agent.act(np.zeros(6, np.float32), MASK).step


def test_the_endpoints_file_names_all_that_a_client_needs(toy_bundle: Bundle, tmp_path: Path) -> None:
    out, keys = tmp_path / "endpoints.json", tmp_path / "keys"
    tokens = write_tokens(tmp_path / "tokens", "local the-correct-horse-battery")
    with fleet_process(toy_bundle, out, "--tls", str(keys), "--token-file", str(tokens)) as fleet:
        assert fleet.stdout is not None
        told = json.loads(fleet.stdout.readline())
        assert told["security"] == {
            "ca": f"{keys}/ca.pem",
            "cert": f"{keys}/clients/local.pem",
            "key": f"{keys}/clients/local.key",
            "token_file": str(tokens),
        }
        chosen, addresses = load_security(out), load_endpoints(out)
        assert set(addresses) == set(toy_bundle.agent_ids)
        for address in addresses.values():
            assert act(address, security=chosen) == 0
        with pytest.raises(AgentError, match="the agent speaks TLS, the client does not"):
            act(addresses["agent_0"])
        assert "the-correct-horse-battery" not in json.dumps(told)
    authority = Authority(keys)
    assert {(each.role, each.name) for each in authority.issued()} == {
        ("agent", "agent_0"),
        ("agent", "agent_1"),
        ("client", LOCAL_CLIENT),
    }


def test_hmarl_eval_just_works(tmp_path: Path) -> None:
    out, keys = tmp_path / "endpoints.json", tmp_path / "keys"
    with fleet_process(load_bundle(SHIPPED_BUNDLE), out, "--tls", str(keys)):
        wait_for(out.exists, "serving")
        words = ("--endpoints", out, "--episodes", 2, "--json")
        code, shown, error = run_in_pipes("hmarl-eval", *words)
        assert code == 0, error
        assert json.loads(shown.splitlines()[-1])["episodes"] == 2
        document = json.loads(out.read_text())
        del document["security"]
        (tmp_path / "plain.json").write_text(json.dumps(document))
        code, _, error = run_in_pipes("hmarl-eval", "--endpoints", tmp_path / "plain.json", "--episodes", 2)
        assert code == 4
        (line,) = error.splitlines()
        assert "connecting: the agent speaks TLS, the client does not: give the client security" in line


def test_a_fleet_behind_tls_is_supervised_and_renewed(toy_bundle: Bundle, tmp_path: Path) -> None:
    """A member that is well, and one that is frozen, are told apart; certificates that are due are issued again."""
    keys = TeamKeys(tmp_path, ["agent_0"], days=2)
    authority = Authority(tmp_path)
    with Fleet(toy_bundle, roster={"agent_0": None}, keys=keys) as fleet:
        address, process = fleet.endpoints["agent_0"], fleet.process_ids["agent_0"]
        chosen = security(authority, authority.find("client", LOCAL_CLIENT))
        time.sleep(2.0)
        assert act(address, security=chosen) == 0
        assert fleet.process_ids["agent_0"] == process, "its supervisor hears that it is well"
        member, client = authority.find("agent", "agent_0"), authority.find("client", LOCAL_CLIENT)
        authority.issue_agent("agent_0", days=-1)  # the clock goes on
        authority.issue_client(LOCAL_CLIENT, days=-1)
        keys._look_at = 0.0
        wait_for(lambda: not authority.due(), "renewing")
        for old in (member, client):
            renewed = authority.find(old.role, old.name)
            assert renewed.expires_at - datetime.datetime.now(datetime.UTC) > datetime.timedelta(days=1.9)
        assert act(address, security=chosen) == 0
        assert fleet.process_ids["agent_0"] == process
        probe = fleet._members[0]._probe
        assert probe is not None
        os.kill(process, signal.SIGSTOP)
        wait_for(lambda: probe.unanswered > 0, "noticing that it is frozen")
        os.kill(process, signal.SIGCONT)
        wait_for(lambda: probe.unanswered == probe.unwell == 0, "noticing that it is not")
        fleet.check()


def test_members_listen_on_another_address_of_the_machine(toy_bundle: Bundle, tmp_path: Path) -> None:
    keys = TeamKeys(tmp_path, ["agent_0"], hosts=["127.0.0.2"])
    with Fleet(toy_bundle, roster={"agent_0": None}, keys=keys, host="127.0.0.2") as fleet:
        address = fleet.endpoints["agent_0"]
        assert address.startswith("127.0.0.2:")
        authority = Authority(tmp_path)
        client = authority.find("client", LOCAL_CLIENT)
        assert act(address, security=security(authority, client)) == 0
        authority.revoke(LOCAL_CLIENT)
        with bare(address, authority, client) as peer:

            def shut_out() -> bool:
                try:
                    peer.describe()
                except grpc.RpcError as error:
                    return bool(error.code() is grpc.StatusCode.PERMISSION_DENIED)
                return False

            wait_for(shut_out, "revoking")


def test_a_fleet_that_asks_for_tokens_alone_is_supervised(toy_bundle: Bundle, tmp_path: Path) -> None:
    tokens = write_tokens(tmp_path / "tokens", "the-correct-horse-battery")
    settings = SecuritySettings(token_file=tokens)
    with Fleet(toy_bundle, roster={"agent_0": None}, security=settings) as fleet:
        probe = fleet._members[0]._probe
        assert probe is not None
        time.sleep(1.5)
        assert (probe.unanswered, probe.unwell) == (0, 0)
        seen = Path(f"/proc/{fleet.process_ids['agent_0']}")
        secret = fleet._members[0]._secret.encode()
        assert secret not in (seen / "environ").read_bytes() + (seen / "cmdline").read_bytes()
        with pytest.raises(AgentError, match="UNAUTHENTICATED: token: got none"):
            act(fleet.endpoints["agent_0"])


def test_a_host_that_others_reach_is_refused_once_before_anything_starts(toy_bundle: Bundle) -> None:
    command = [sys.executable, "-m", "hmarl.runtime.commands.fleet", str(toy_bundle.path), "--host", "0.0.0.0"]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=60)
    assert done.returncode == 2
    (line,) = done.stderr.splitlines()
    assert line.startswith("hmarl-fleet: --host: got 0.0.0.0, which others may reach")
    assert "--tls DIR" in line


def test_a_new_host_means_new_certificates(tmp_path: Path) -> None:
    TeamKeys(tmp_path, ["a"])
    authority = Authority(tmp_path)
    first = authority.find("agent", "a").certificate.read_bytes()
    TeamKeys(tmp_path, ["a"])
    assert authority.find("agent", "a").certificate.read_bytes() == first, "what is still good is kept"
    TeamKeys(tmp_path, ["a"], hosts=["robot.local"])
    assert "robot.local" in authority.find("agent", "a").hosts
