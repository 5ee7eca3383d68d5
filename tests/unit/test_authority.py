"""hmarl-keys: what it makes, who may read it, and what it refuses. Certificates are read back by another library."""

from __future__ import annotations

import datetime
import json
import stat
import sys
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.x509.oid import ExtendedKeyUsageOID

from hmarl.runtime.authority import Authority, Issued
from hmarl.runtime.certificates import KeyPair, read_authority, read_pair, validity
from hmarl.runtime.command_line import run
from hmarl.runtime.commands.keys import keys
from hmarl.runtime.errors import UsageError
from hmarl.runtime.team_keys import TeamKeys


@pytest.fixture
def authority(tmp_path: Path) -> Authority:
    return Authority.create(tmp_path / "keys")


def parsed(issued: Issued) -> x509.Certificate:
    return x509.load_pem_x509_certificate(issued.certificate.read_bytes())


def names(issued: Issued) -> list[str]:
    found = parsed(issued).extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    return [str(each.value) for each in found]


def mode(path: Path) -> int:
    return stat.S_IMODE(path.stat().st_mode)


def test_what_is_issued(authority: Authority) -> None:
    agent = authority.issue_agent("agent_0", ["robot.local", "10.1.2.3"], days=10)
    client = authority.issue_client("operator")
    assert {"hmarl://agent/agent_0", "localhost", "127.0.0.1", "::1", "robot.local", "10.1.2.3"} <= set(names(agent))
    assert names(client) == ["hmarl://client/operator"]
    for issued, usage in ((agent, ExtendedKeyUsageOID.SERVER_AUTH), (client, ExtendedKeyUsageOID.CLIENT_AUTH)):
        certificate = parsed(issued)
        certificate.verify_directly_issued_by(x509.load_pem_x509_certificate(authority.certificate.read_bytes()))
        assert list(certificate.extensions.get_extension_for_class(x509.ExtendedKeyUsage).value) == [usage]
        assert not certificate.extensions.get_extension_for_class(x509.BasicConstraints).value.ca
        assert isinstance(read_pair("--c", issued.certificate, "--k", issued.key), KeyPair)
    lived = agent.expires_at - agent.begins_at
    assert datetime.timedelta(days=10) < lived < datetime.timedelta(days=10, hours=1)
    assert (agent.allowed, client.allowed) == (False, True)


def test_keys_are_their_owners_alone(authority: Authority) -> None:
    agent = authority.issue_agent("agent_0")
    assert mode(authority.path) == mode(agent.certificate.parent) == 0o700
    assert mode(authority.path / "ca.key") == mode(agent.key) == 0o600
    assert mode(agent.certificate) == mode(authority.certificate) == 0o644
    assert not list(authority.path.rglob("*.tmp"))
    assert "PRIVATE" not in repr(read_pair("--c", agent.certificate, "--k", agent.key))
    agent.key.chmod(0o644)
    with pytest.raises(UsageError, match=r"mode 0644, expected a file that its owner alone may read: chmod go-rwx"):
        read_pair("--c", agent.certificate, "--k", agent.key)
    (authority.path / "ca.key").chmod(0o604)
    with pytest.raises(UsageError, match="mode 0604"):
        Authority(authority.path)


def test_validity_is_what_cryptography_reads(authority: Authority) -> None:
    """Before and after 2050, from which on times have another form."""
    for days in (-1, 1, 365 * 9):
        issued = authority.issue_agent("agent_0", days=days)
        begin, end = validity(issued.certificate.read_bytes())
        assert (begin, end) == (issued.begins_at.timestamp(), issued.expires_at.timestamp())
    far = Authority.create(authority.path / "far", days=365 * 40)
    assert validity(far.certificate.read_bytes())[1] == far.expires_at().timestamp()


@pytest.mark.parametrize("damage", [lambda pem: pem[: len(pem) // 2], lambda pem: b"", lambda pem: pem[:60] + pem[90:]])
def test_damaged_certificates_are_refused_by_name(authority: Authority, damage: object) -> None:
    issued = authority.issue_agent("agent_0")
    issued.certificate.write_bytes(damage(issued.certificate.read_bytes()))  # type: ignore[operator]
    with pytest.raises(UsageError, match=r"--c.*agents/agent_0\.pem|agents/agent_0\.pem"):
        read_pair("--c", issued.certificate, "--k", issued.key)
    with pytest.raises(UsageError, match=r"--a: got no certificate in PEM"):
        read_authority("--a", issued.certificate)


def test_no_certificate_outlives_its_authority(tmp_path: Path) -> None:
    short = Authority.create(tmp_path / "keys", days=2)
    assert short.issue_agent("agent_0", days=30).expires_at == short.expires_at()


def test_renewing_keeps_all_but_the_key(authority: Authority) -> None:
    agent = authority.issue_agent("agent/0 ü", ["robot.local"], days=3)
    assert agent.certificate.parent == authority.path / "agents", "an odd name is no path"
    key = agent.key.read_bytes()
    assert authority.due() == []
    later = datetime.datetime.now(datetime.UTC) + datetime.timedelta(days=2.1)
    assert [each.name for each in authority.due(later)] == ["agent/0 ü"]
    renewed = authority.renew(agent)
    assert (renewed.name, renewed.hosts) == (agent.name, agent.hosts)
    assert renewed.key.read_bytes() != key
    assert parsed(renewed).serial_number != 0


def test_revoked_clients_are_not_renewed(authority: Authority) -> None:
    authority.issue_client("operator", days=1)
    authority.issue_client("robot", days=1)
    assert authority.allowed.read_text() == "operator\nrobot\n"
    authority.revoke("operator")
    assert authority.allowed.read_text() == "robot\n"
    later = datetime.datetime.now(datetime.UTC) + datetime.timedelta(days=2)
    assert [each.name for each in authority.due(later)] == ["robot"]
    with pytest.raises(UsageError, match="revoke: got 'operator', expected one of robot"):
        authority.revoke("operator")


@pytest.mark.parametrize("name", ["", " a", "a\nb", "a#b", "x" * 65])
def test_odd_names_are_refused(authority: Authority, name: str) -> None:
    with pytest.raises(UsageError, match="expected 1 to 64 printable characters"):
        authority.issue_client(name)
    assert authority.issued() == []


@pytest.mark.parametrize("host", ["", "a b", "-x", "robot.local:50051", "http://robot", "x" * 300])
def test_odd_hosts_are_refused(authority: Authority, host: str) -> None:
    with pytest.raises(UsageError, match="expected a host name or an IP address"):
        authority.issue_agent("agent_0", [host])
    assert authority.issued() == []


def test_a_fleet_makes_an_authority_once(tmp_path: Path) -> None:
    described = TeamKeys(tmp_path / "keys", ["agent_0"]).description()
    certificate = Path(described["ca"]).read_bytes()
    assert TeamKeys(tmp_path / "keys", ["agent_0"]).description() == described
    assert Path(described["ca"]).read_bytes() == certificate


# --- the command -----------------------------------------------------------------------------------------------------


def said(capfd: pytest.CaptureFixture[str], *words: object) -> tuple[int, str, str]:
    code = run(keys, [str(word) for word in words])
    return code, *capfd.readouterr()


def test_the_command_from_beginning_to_end(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    folder = tmp_path / "keys"
    assert said(capfd, "init", folder)[0] == 0
    own = ("--dir", folder)
    code, shown, _ = said(capfd, "issue", "agent_0", "agent_1", "--host", "robot.local", "--days", "3", *own)
    assert code == 0
    assert "agent 'agent_1'" in shown
    assert "in 3.0 days, for localhost" in shown
    assert said(capfd, "client", "operator", *own)[0] == 0
    code, shown, _ = said(capfd, "list", "--json", *own)
    document = json.loads(shown)
    assert [(each["role"], each["name"]) for each in document["certificates"]] == [
        ("agent", "agent_0"),
        ("agent", "agent_1"),
        ("client", "operator"),
    ]
    assert document["authority"]["certificate"] == str(folder / "ca.pem")
    assert "PRIVATE" not in shown
    assert said(capfd, "renew", *own)[1].strip() == "nothing to renew: all have more than a third of their life left"
    Authority(folder).issue_agent("agent_1", days=-1)
    assert "expired on" in said(capfd, "list", *own)[1]
    assert "agent 'agent_1'" in said(capfd, "renew", *own)[1]
    assert "expired on" not in said(capfd, "list", *own)[1]
    assert said(capfd, "revoke", "operator", *own)[1].rstrip().endswith(", not let in")


def test_the_command_refuses(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    own = ("--dir", tmp_path / "keys")
    for words, says in (
        (("list",), "which is no authority, expected a folder made by: hmarl-keys init"),
        (("issue",), "NAMES: got none, expected agents' ids"),
        (("init", "a", "b"), "NAMES: got 2 folders, expected one at most"),
    ):
        code, _, error = said(capfd, *words, *own)
        assert (code, says in error, len(error.splitlines())) == (2, True, 1), error
    Authority.create(tmp_path / "keys")
    for words, says in (
        (("init",), "has an authority already: use it, or choose another folder"),
        (("renew", "carol"), "NAMES: got carol, expected names that 'hmarl-keys list' shows"),
        (("list", "x"), "NAMES: got x, expected none with list"),
    ):
        code, _, error = said(capfd, *words, *own)
        assert (code, says in error, len(error.splitlines())) == (2, True, 1), error


def test_a_missing_extra_is_named(
    tmp_path: Path, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "cryptography", None)
    code, _, error = said(capfd, "init", tmp_path / "keys")
    assert code == 2
    assert error == (
        "hmarl-keys: making keys and certificates needs the package 'cryptography': pip install 'hmarl[secure]'\n"
    )
