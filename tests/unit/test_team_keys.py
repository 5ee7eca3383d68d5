"""What a fleet makes of its keys' folder when that holds other things than it should."""

from __future__ import annotations

import datetime
import shutil
import threading
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec

from hmarl.runtime import _files
from hmarl.runtime import authority as authority_module
from hmarl.runtime.authority import Authority
from hmarl.runtime.certificates import KeyPair, read_pair
from hmarl.runtime.errors import UsageError
from hmarl.runtime.team_keys import TeamKeys
from raw_bundle import run_module
from told_clock import Clock

LATER_S = 60.0


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def team(tmp_path: Path, clock: Clock) -> TeamKeys:
    return TeamKeys(tmp_path / "keys", ["agent_0"], clock=clock)


def pair(folder: Path, role: str = "agents", name: str = "agent_0") -> KeyPair:
    return read_pair("--c", folder / role / f"{name}.pem", "--k", folder / role / f"{name}.key")


def cut(certificate: Path) -> None:
    certificate.write_bytes(certificate.read_bytes()[:90])


def another_key(certificate: Path) -> None:
    """As after a power cut between the replacing of the one and the other."""
    key = authority_module._key_pem(ec.generate_private_key(ec.SECP256R1()))
    certificate.with_suffix(".key").write_bytes(key)


def no_key(certificate: Path) -> None:
    certificate.with_suffix(".key").unlink()


def of_another_maker(certificate: Path) -> None:
    """The authority's own: it has no names."""
    shutil.copyfile(certificate.parent.parent / "ca.pem", certificate)


@pytest.mark.parametrize("harm", [cut, another_key, no_key, of_another_maker])
def test_a_pair_that_cannot_be_used_is_made_anew(
    team: TeamKeys, clock: Clock, tmp_path: Path, harm: Callable[[Path], None]
) -> None:
    harm(tmp_path / "keys" / "agents" / "agent_0.pem")
    with pytest.raises(UsageError):
        pair(tmp_path / "keys")
    clock.now += LATER_S
    team.tend()
    pair(tmp_path / "keys")


@pytest.mark.parametrize("harm", [cut, of_another_maker])
def test_what_is_wrong_with_other_certificates_stops_no_renewal(
    team: TeamKeys, clock: Clock, tmp_path: Path, harm: Callable[[Path], None]
) -> None:
    keys = tmp_path / "keys"
    harm(Authority(keys).issue_client("operator").certificate)
    before = Authority(keys).issue_agent("agent_0", days=-1)
    clock.now += LATER_S
    team.tend()
    after = Authority(keys).find("agent", "agent_0")
    assert before.expires_at < datetime.datetime.now(datetime.UTC) < after.expires_at
    listed = run_module("keys", "list", "--dir", keys)
    assert (listed.code, listed.errors.count("\n")) in {(0, 0), (2, 1)}, listed.errors


def test_a_local_client_that_was_revoked_is_not_let_in_again(team: TeamKeys, clock: Clock, tmp_path: Path) -> None:
    keys = tmp_path / "keys"
    Authority(keys).revoke("local")
    cut(keys / "clients" / "local.pem")
    clock.now += LATER_S
    team.tend()
    pair(keys, "clients", "local")
    assert Authority(keys).allowed.read_text() == ""


def test_certificates_of_the_future_are_renewed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of a robot whose clock was wrong when it started."""
    now = datetime.datetime.now(datetime.UTC)
    keys = Authority.create(tmp_path / "keys")
    with monkeypatch.context() as wrong:
        wrong.setattr(authority_module, "_now", lambda: now + datetime.timedelta(days=400))
        assert keys.issue_agent("agent_0", days=7).begins_at > now
    assert [each.name for each in keys.due()] == ["agent_0"]


def test_an_authority_that_has_expired_says_so_and_ends_nothing(
    tmp_path: Path, clock: Clock, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    keys = Authority.create(tmp_path / "keys", days=1).path
    team = TeamKeys(keys, ["agent_0"], clock=clock)
    after = datetime.datetime.now(datetime.UTC) + datetime.timedelta(days=2)
    monkeypatch.setattr(authority_module, "_now", lambda: after)
    clock.now += LATER_S
    team.tend()
    assert "cannot renew certificates" in caplog.text
    assert "has expired" in caplog.text
    monkeypatch.undo()
    Authority.create(tmp_path / "old", days=-1)
    done = run_module("keys", "issue", "agent_0", "--dir", tmp_path / "old")
    assert (done.code, done.errors.count("\n")) == (2, 1)
    assert "has expired" in done.errors


def test_pairs_that_two_renew_at_once_belong_together(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    keys = Authority.create(tmp_path / "keys").path
    first_has_written = threading.Event()
    replace_file = _files.replace_file

    def slowly(path: Path, content: bytes, mode: int | None = None) -> None:
        replace_file(path, content, mode)
        if threading.current_thread().name == "first" and path.suffix == ".key":
            first_has_written.set()
            time.sleep(0.5)  # the second one waits, or is through by then

    monkeypatch.setattr(authority_module, "replace_file", slowly)
    issue = Authority(keys).issue_agent
    first = threading.Thread(target=issue, args=("agent_0",), name="first")
    second = threading.Thread(target=issue, args=("agent_0",))
    first.start()
    first_has_written.wait()
    second.start()
    first.join()
    second.join()
    pair(keys)


@pytest.mark.parametrize("there", ["notes.txt", ".git"])
def test_a_folder_of_other_things_is_left_alone(tmp_path: Path, there: str) -> None:
    """It would be closed to all others, and a home or /tmp is one, too."""
    (tmp_path / there).touch()
    tmp_path.chmod(0o755)
    done = run_module("keys", "init", tmp_path)
    assert (done.code, done.errors.count("\n")) == (2, 1)
    assert "which holds other things, expected a new or an empty folder" in done.errors
    assert tmp_path.stat().st_mode & 0o777 == 0o755
    assert [each.name for each in tmp_path.iterdir()] == [there]


def test_names_that_make_no_file_names(tmp_path: Path) -> None:
    keys = Authority.create(tmp_path / "keys")
    for name in ("..", ".", "../../x", "ü" * 32):
        assert keys.issue_client(name).certificate.parent == keys.path / "clients"
    done = run_module("keys", "client", "\N{ROBOT FACE}" * 64, "--dir", keys.path)
    assert (done.code, done.errors.count("\n")) == (2, 1), done.errors
    assert {each.name for each in keys.issued()} == {"..", ".", "../../x", "ü" * 32}
    names = x509.load_pem_x509_certificate((keys.path / "clients" / "...pem").read_bytes()).subject
    assert names.rfc4514_string() == "CN=.."
