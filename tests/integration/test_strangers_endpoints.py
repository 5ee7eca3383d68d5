"""An endpoints file of a stranger: it chooses addresses, but not which of the user's files is shown to them."""

from __future__ import annotations

import json
import os
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import grpc
import pytest

from command_lines import run_in_pipes
from hmarl.runtime.bundle import load_bundle
from hmarl.runtime.endpoints_file import EndpointsFile
from hmarl.sdk import Security, UsageError, load_security
from hmarl.sdk.environments import make
from hmarl.sdk.evaluation.deployed_teams import FleetTeam
from processes import fleet_process, wait_for
from secured import write_tokens
from serving import SHIPPED_BUNDLE

SECRET = "hf_SecretOfTheUserABCDEFGH"


class Spy(grpc.ServerInterceptor):  # type: ignore[misc]
    """What a stranger's server is shown."""

    def __init__(self) -> None:
        self.seen: list[str] = []
        self.server = grpc.server(ThreadPoolExecutor(4), interceptors=[self])
        self.address = f"127.0.0.1:{self.server.add_insecure_port('127.0.0.1:0')}"
        self.server.start()

    def intercept_service(self, continuation: Any, details: Any) -> Any:
        self.seen += [value for key, value in details.invocation_metadata if key == "authorization"]
        return continuation(details)


@pytest.fixture
def spy() -> Iterator[Spy]:
    found = Spy()
    yield found
    found.server.stop(None)


@pytest.fixture
def secret(tmp_path: Path) -> Path:
    """A file that another program keeps a token in, in the user's home."""
    path = tmp_path / "home" / ".cache" / "token"
    path.parent.mkdir(parents=True)
    return write_tokens(path, SECRET)


def document(spy: Spy, token_file: object) -> dict[str, Any]:
    return {"agents": {"agent_0": spy.address}, "security": {"token_file": str(token_file)}}


@pytest.mark.parametrize("where", ["absolute", "from home", "relative", "beside"])
def test_it_shows_no_file_of_the_users(
    spy: Spy, secret: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, where: str
) -> None:
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    monkeypatch.chdir(secret.parent)
    named = {"absolute": secret, "from home": "~/.cache/token", "relative": "token", "beside": "token"}[where]
    path = (secret.parent if where == "beside" else tmp_path) / "endpoints.json"
    path.write_text(json.dumps(document(spy, named)))
    code, _, error = run_in_pipes("hmarl-eval", "--endpoints", path, "--episodes", 1)
    assert code == 2
    (line,) = error.splitlines()
    assert f"endpoints file {path}: security.token_file: got '{named}'" in line
    assert "Security(token_file=...)" in line
    with pytest.raises(UsageError, match="expected the file of a fleet that runs on this machine"):
        FleetTeam(path, make("mpe/simple_spread").spec)
    assert spy.seen == []


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can make a file another user's")
def test_another_user_of_the_machine_cannot_either(spy: Spy, secret: Path, tmp_path: Path) -> None:
    """That one runs a fleet here, or holds a lock at least."""
    file = EndpointsFile(tmp_path / "endpoints.json")
    file.write(document(spy, secret))
    assert load_security(file.path) == Security(token_file=str(secret))
    os.chown(file.path, 12345, 12345)
    with pytest.raises(UsageError, match="expected the file of a fleet that runs on this machine"):
        load_security(file.path)
    os.chown(secret, 12345, 12345)
    assert load_security(file.path) == Security(token_file=str(secret)), "its own, which it lets this user read"
    file.remove()


def test_a_fleet_here_names_its_tokens_wherever_they_lie(secret: Path, tmp_path: Path) -> None:
    out, copy = tmp_path / "endpoints.json", tmp_path / "copy.json"
    with fleet_process(load_bundle(SHIPPED_BUNDLE), out, "--token-file", str(secret)):
        wait_for(out.exists, "serving")
        code, _, error = run_in_pipes("hmarl-eval", "--endpoints", out, "--episodes", 1)
        assert code == 0, error
        copy.write_bytes(out.read_bytes())
        spec = make("mpe/simple_spread").spec
        with pytest.raises(UsageError, match="has that fleet ended, or is it a copy"):
            FleetTeam(copy, spec)
        FleetTeam(copy, spec, security=Security(token_file=secret)).close()


def test_a_file_that_is_being_replaced_is_still_its_fleets(spy: Spy, secret: Path, tmp_path: Path) -> None:
    file, done = EndpointsFile(tmp_path / "endpoints.json"), threading.Event()
    file.write(document(spy, secret))

    def replace() -> None:
        while not done.is_set():
            file.write(document(spy, secret))

    thread = threading.Thread(target=replace)
    thread.start()
    try:
        for _ in range(300):
            assert load_security(file.path) is not None
    finally:
        done.set()
        thread.join()
        file.remove()


def test_certificates_are_named_as_before(spy: Spy, tmp_path: Path) -> None:
    """A key is proved to be there, and not shown."""
    names = {name: str(tmp_path / name) for name in ("ca", "cert", "key")}
    path = tmp_path / "endpoints.json"
    path.write_text(json.dumps({"agents": {"agent_0": spy.address}, "security": names}))
    assert load_security(path) == Security(**names)
