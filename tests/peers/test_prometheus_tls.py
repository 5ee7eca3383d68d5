"""Prometheus reads a fleet that others reach, by its own settings for TLS, also once certificates are renewed."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from hmarl.runtime.authority import Authority
from hmarl.runtime.bundle import load_bundle
from hmarl.runtime.team_keys import FLEET
from processes import fleet_process
from running_prometheus import DEPLOY, Prometheus, prometheus, until
from secured import write_tokens
from serving import SHIPPED_BUNDLE

pytestmark = pytest.mark.peers
TOKEN = "the-token-of-prometheus"
AGENTS = {"agent_0", "agent_1", "agent_2"}
EXPIRY = "hmarl_agent_certificate_expiry_timestamp_seconds"


def config(fleet: str, *, certificate: bool, token: bool) -> str:
    """The configuration that we ship, for another address, and for what agents ask for."""
    text = (DEPLOY / "prometheus-tls.yml").read_text().replace("robot.local:9464", fleet)
    if token:
        text = text.replace("# authorization:", "authorization:")
    if not certificate:
        text = text.replace("cert_file: prometheus.pem", "").replace("key_file: prometheus.key", "")
    return text


def reads_all(watching: Prometheus) -> bool:
    return watching.values('up{job="hmarl"} == 1').keys() == AGENTS | {""}


@pytest.mark.parametrize("asked", ["certificate", "token", "both"])
def test_a_fleet_is_watched_from_elsewhere(installed_program: Callable[[str], str], tmp_path: Path, asked: str) -> None:
    program = installed_program("prometheus")
    keys = Authority.create(tmp_path / "keys")
    watcher = keys.issue_client("prometheus")
    shutil.copy(keys.certificate, tmp_path / "ca.pem")
    shutil.copy(watcher.certificate, tmp_path / "prometheus.pem")
    shutil.copy(watcher.key, tmp_path / "prometheus.key")
    write_tokens(tmp_path / "prometheus.token", TOKEN)
    tokens = ["--token-file", str(write_tokens(tmp_path / "tokens", f"prometheus {TOKEN}"))]
    options = {"certificate": ["--tls", str(keys.path)], "both": ["--tls", str(keys.path), *tokens]}
    one = keys.issue_agent("one")
    options["token"] = ["--tls-cert", str(one.certificate), "--tls-key", str(one.key), *tokens]
    with fleet_process(
        load_bundle(SHIPPED_BUNDLE), tmp_path / "endpoints.json", "--metrics", "0.0.0.0:0", *options[asked]
    ) as fleet:
        assert fleet.stdout is not None
        page = json.loads(fleet.stdout.readline())["metrics"]["fleet"].replace("0.0.0.0", "127.0.0.1")
        text = config(page, certificate=asked != "token", token=asked != "certificate")
        with prometheus(program, tmp_path, text) as watching:
            until(lambda: reads_all(watching), "all targets")
            assert watching.values('count by (fleet) (up{job="hmarl"})') == {"": 4.0}
            before = watching.values(EXPIRY)
            for issued in keys.issued():
                if issued.role != "client":
                    keys.replace(issued.role, issued.name, issued.hosts, days=20)
            until(lambda: all(watching.values(EXPIRY)[name] != before[name] for name in AGENTS), "the renewed ones")
            until(lambda: reads_all(watching), "all targets, with renewed certificates")
            assert keys.has("fleet", FLEET) == (asked != "token")
