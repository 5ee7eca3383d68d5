"""Who may read a file that holds a key, a token or a passphrase."""

from __future__ import annotations

import os
import threading
from collections.abc import Callable
from pathlib import Path

import pytest

from hmarl.runtime.authority import Authority
from hmarl.runtime.certificates import read_pair
from hmarl.runtime.errors import UsageError
from hmarl.runtime.secret_files import read_secret, read_tokens
from hmarl.runtime.signing.keys import Signer, new_key, read_passphrase
from hmarl.sdk.clients.security import Keys, Security

TOKEN = b"the-correct-horse-battery\n"
READERS: dict[str, Callable[[Path], object]] = {
    "--token-file": lambda path: read_tokens("--token-file", path),
    "--tls-key": lambda path: read_pair("--tls-cert", path, "--tls-key", path),
    "security.token_file": lambda path: Keys(Security(token_file=path), "127.0.0.1:1"),
    "--key": Signer,
    "--passphrase-file": read_passphrase,
}


@pytest.mark.parametrize("mode", [0o640, 0o620, 0o604, 0o602, 0o660, 0o444])
@pytest.mark.parametrize("option", READERS)
def test_a_secret_that_more_than_its_owner_may_use_is_refused_by_its_option(
    tmp_path: Path, option: str, mode: int
) -> None:
    path = tmp_path / "a secret"
    path.write_bytes(TOKEN)
    path.chmod(mode)
    with pytest.raises(UsageError) as caught:
        READERS[option](path)
    assert str(caught.value) == (
        f"{option}: got '{path}' with mode {mode:04o}, expected a file that its owner alone may read: "
        f"chmod go-rwx '{path}'"
    )


@pytest.mark.parametrize("mode", [0o600, 0o400])
def test_a_secret_of_its_owners_alone_is_read(tmp_path: Path, mode: int) -> None:
    path = tmp_path / "secret"
    path.write_bytes(TOKEN)
    path.chmod(mode)
    assert read_secret("--x", path) == TOKEN


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can give a file to another user")
def test_another_users_secret_may_be_read_by_its_group_as_kubernetes_and_administrators_hand_them_out(
    tmp_path: Path,
) -> None:
    path = tmp_path / "secret"
    path.write_bytes(TOKEN)
    os.chown(path, 65534, 65534)
    path.chmod(0o440)
    assert read_secret("--x", path) == TOKEN
    for mode in (0o460, 0o444, 0o442):
        path.chmod(mode)
        with pytest.raises(UsageError, match=f"mode {mode:04o}, expected a file that its owner and group alone may"):
            read_secret("--x", path)


def test_a_key_may_come_through_a_pipe(tmp_path: Path) -> None:
    new_key(tmp_path / "team.pem")
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    pipe.chmod(0o644)  # nothing lies about in it
    writer = threading.Thread(target=lambda: pipe.write_bytes((tmp_path / "team.pem").read_bytes()))
    writer.start()
    assert Signer(pipe).name == Signer(tmp_path / "team.pem").name
    writer.join()


def test_a_certificate_in_the_place_of_a_key_is_told_as_such(tmp_path: Path) -> None:
    agent = Authority.create(tmp_path / "keys").issue_agent("agent_0")
    with pytest.raises(UsageError, match=r"agent_0\.pem' is not the private key, in PEM"):
        read_pair("--tls-cert", agent.certificate, "--tls-key", agent.certificate)
