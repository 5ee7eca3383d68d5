"""Metrics where others reach them: over TLS, for those who may act, with the files as they are now; else not at all."""

from __future__ import annotations

import contextlib
import json
import socket
import ssl
import subprocess
import sys
import time
import urllib.error
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from agent_process import AgentProcess
from hmarl.runtime.authority import Authority, Issued
from hmarl.runtime.bundle import Bundle
from hmarl.runtime.team_keys import FLEET, LOCAL_CLIENT
from hmarl.sdk import AgentClient
from processes import LIMIT_S, fleet_process, wait_for
from scraping import get
from secured import security, server_options, write_tokens

EXPOSED = ("--metrics", "0.0.0.0:0")
FIRST, SECOND = "the-first-token-of-two", "the-second-token-of-two"


def context(authority: Authority, client: Issued | None = None) -> ssl.SSLContext:
    """What a reader shows, who verifies the page's name."""
    found = ssl.create_default_context(cafile=authority.certificate)
    if client is not None:
        found.load_cert_chain(client.certificate, client.key)
    return found


def here(address: str) -> str:
    """The page of all interfaces, by the loopback's."""
    assert address.startswith("0.0.0.0:")
    return address.replace("0.0.0.0", "127.0.0.1")


@contextlib.contextmanager
def refused(status: int, reason: str) -> Iterator[None]:
    with pytest.raises(urllib.error.HTTPError) as caught:
        yield
    assert caught.value.code == status
    said = caught.value.read().decode()
    assert reason in said
    assert FIRST not in said


def shown_at(address: str, asking: ssl.SSLContext) -> bytes | None:
    """The certificate that is shown at an address."""
    host, _, port = address.rpartition(":")
    with (
        socket.create_connection((host, int(port)), timeout=LIMIT_S) as plain,
        asking.wrap_socket(plain, server_hostname=host) as spoken,
    ):
        return spoken.getpeercert(True)


def test_whoever_may_act_may_read_and_no_one_else(toy_bundle: Bundle, tmp_path: Path) -> None:
    keys = Authority.create(tmp_path / "keys")
    agent, watcher, other = keys.issue_agent("agent_0"), keys.issue_client("prometheus"), keys.issue_client("operator")
    foreign = Authority.create(tmp_path / "foreign").issue_client("prometheus")
    options = server_options(keys, agent, "--allow-file", keys.allowed, *EXPOSED)
    with AgentProcess(toy_bundle.path, "agent_0", options=options, log=tmp_path / "log") as process:
        page = here(process.ready["metrics"])
        assert "hmarl_agent_serving 1.0" in get(page, context=context(keys, watcher))
        for shown in (None, foreign, agent):  # none, another authority's, an agent's own
            with pytest.raises(OSError):  # noqa: PT011 - how a connection ends differs
                get(page, context=context(keys, shown))
        with pytest.raises(OSError):  # noqa: PT011 - likewise
            get(page)
        assert "hmarl_agent_serving 1.0" in get(page, context=context(keys, other))
        keys.revoke("operator")
        time.sleep(2.0)  # what an agent takes at most to notice
        with refused(403, "not among the clients that are let in"):
            get(page, context=context(keys, other))
        before = shown_at(page, context(keys, watcher))
        keys.issue_agent("agent_0")
        wait_for(lambda: shown_at(page, context(keys, watcher)) != before, "another certificate")
        assert "hmarl_agent_serving 1.0" in get(page, context=context(keys, watcher))
        assert "rejected 127.0.0.1: certificate: got 'hmarl://client/operator" in process.log
        assert 'hmarl_agent_rejected_peers_total{reason="forbidden"} 1.0' in get(page, context=context(keys, watcher))
        assert f"metrics on https://{process.ready['metrics']}/metrics" in process.log


def test_a_token_is_asked_for_and_may_be_replaced(toy_bundle: Bundle, tmp_path: Path) -> None:
    keys, tokens = Authority.create(tmp_path / "keys"), write_tokens(tmp_path / "tokens", f"prometheus {FIRST}")
    agent = keys.issue_agent("agent_0")
    options = ["--tls-cert", str(agent.certificate), "--tls-key", str(agent.key), "--token-file", str(tokens)]
    with AgentProcess(toy_bundle.path, "agent_0", options=[*options, *EXPOSED, "--client-rate", "2"]) as process:
        page, asking = here(process.ready["metrics"]), context(keys)
        with refused(401, "token: got none"):
            get(page, context=asking)
        with refused(401, "token: got one that is none of this agent's"):
            get(page, context=asking, token=SECOND)
        assert 'hmarl_agent_rejected_peers_total{reason="unauthenticated"} 2.0' in get(
            page, context=asking, token=FIRST
        )
        with refused(429, "requests: got more than 2 a second"):
            for _ in range(100):
                get(page, context=asking, token=FIRST)
        write_tokens(tokens, f"watcher {SECOND}")
        assert "hmarl_agent_serving 1.0" in get(page, context=asking, token=SECOND)
        with refused(401, "token: got one that is none of this agent's"):
            get(page, context=asking, token=FIRST)


@pytest.mark.parametrize("command", ["agent", "fleet"])
def test_without_an_identity_others_are_let_in_only_where_that_is_said(
    command: str, toy_bundle: Bundle, tmp_path: Path
) -> None:
    words = [sys.executable, "-m", f"hmarl.runtime.commands.{command}", str(toy_bundle.path), *EXPOSED]
    own = {"agent": ["--agent", "agent_0", "--listen", "127.0.0.1:0"], "fleet": []}
    cure = {"agent": "give --tls-cert, --tls-key and --tls-client-ca", "fleet": "give --tls DIR"}
    tokens = write_tokens(tmp_path / "tokens", FIRST)
    for more in ([], ["--token-file", str(tokens)]):
        ended = subprocess.run(
            [*words, *own[command], *more], capture_output=True, text=True, timeout=LIMIT_S, check=False
        )
        assert ended.returncode == 2
        (line,) = ended.stderr.splitlines()
        assert line.startswith(f"hmarl-{command}: --metrics: got 0.0.0.0, ")
        assert cure[command] in line
        assert "--insecure" in line
    if command == "agent":
        with AgentProcess(
            toy_bundle.path, "agent_0", options=[*EXPOSED, "--insecure"], log=tmp_path / "log"
        ) as process:
            assert "hmarl_agent_serving 1.0" in get(here(process.ready["metrics"]))
            assert "--metrics: got 0.0.0.0, without encryption or authentication" in process.log


def test_on_the_loopback_interface_metrics_are_read_as_before(toy_bundle: Bundle, tmp_path: Path) -> None:
    keys = Authority.create(tmp_path / "keys")
    options = server_options(keys, keys.issue_agent("agent_0"), "--metrics", "127.0.0.1:0")
    with AgentProcess(toy_bundle.path, "agent_0", options=options) as process:
        assert "hmarl_agent_certificate_expiry_timestamp_seconds" in get(process.ready["metrics"])


def test_a_fleet_makes_what_its_page_and_its_agents_need(toy_bundle: Bundle, tmp_path: Path) -> None:
    with fleet_process(toy_bundle, tmp_path / "endpoints.json", "--tls", str(tmp_path / "keys"), *EXPOSED) as process:
        assert process.stdout is not None
        told = json.loads(process.stdout.readline())["metrics"]
        assert told["scheme"] == "https"
        keys = Authority(tmp_path / "keys")
        asking = context(keys, keys.find("client", LOCAL_CLIENT))
        page = here(told["fleet"])
        listed = json.loads(get(page, "/targets", asking))
        assert [entry["labels"] for entry in listed] == [
            {"fleet": page, "__scheme__": "https"},
            *({"fleet": page, "__scheme__": "https", "agent": name} for name in toy_bundle.agent_ids),
        ]
        for entry in listed:
            assert 'hmarl_build_info{version="' in get(entry["targets"][0], context=asking)
        for address in (page, here(told["agents"]["agent_0"])):
            with pytest.raises(OSError):  # noqa: PT011 - how a connection ends differs
                get(address, context=context(keys))
        assert (get(page, "/readyz", asking), get(page, "/livez", asking)) == ("ok\n", "ok\n")
        before = shown_at(page, asking)
        keys.renew(keys.find("fleet", FLEET))
        wait_for(lambda: shown_at(page, asking) != before, "another certificate")


def test_probes_without_a_certificate_learn_whether_an_agent_serves_where_that_is_open(
    toy_bundle: Bundle, tmp_path: Path
) -> None:
    keys = Authority.create(tmp_path / "keys")
    agent, watcher = keys.issue_agent("agent_0"), keys.issue_client("prometheus")
    options = server_options(keys, agent, *EXPOSED)
    probe = ssl.create_default_context()  # as Kubernetes asks over HTTPS
    probe.check_hostname, probe.verify_mode = False, ssl.CERT_NONE
    with AgentProcess(toy_bundle.path, "agent_0", options=options) as process:
        page = here(process.ready["metrics"])
        assert get(page, "/readyz", context(keys, watcher)) == "ok\n"
        with pytest.raises(OSError):  # noqa: PT011 - how a connection ends differs
            get(page, "/readyz", probe)
    tokens = write_tokens(tmp_path / "tokens", FIRST)
    more = ["--open-health", "--token-file", str(tokens), "--grace-s", "20"]
    with AgentProcess(toy_bundle.path, "agent_0", options=[*options, *more]) as process:
        page = here(process.ready["metrics"])
        for path in ("/readyz", "/livez"):
            assert get(page, path, probe) == "ok\n"
        with refused(401, "certificate: got none"):
            get(page, context=probe)
        foreign = Authority.create(tmp_path / "foreign").issue_client("prometheus")
        with pytest.raises(OSError):  # noqa: PT011 - how a connection ends differs
            get(page, "/readyz", context(keys, foreign))
        with refused(401, "token: got none"):
            get(page, context=context(keys, watcher))
        assert "hmarl_agent_serving 1.0" in get(page, context=context(keys, watcher), token=FIRST)
        chosen = security(keys, watcher, token_file=tokens)
        with AgentClient(process.address, security=chosen, timeout_s=LIMIT_S) as client:
            client.reset(1)
            process.process.terminate()  # the episode goes on; no other begins

            def draining() -> bool:
                client.act(np.zeros(6, np.float32), np.ones(5, np.bool_))
                try:
                    return get(page, "/readyz", probe) == ""
                except urllib.error.HTTPError as error:
                    return error.code == 503

            wait_for(draining, "draining")
            assert get(page, "/livez", probe) == "ok\n"
