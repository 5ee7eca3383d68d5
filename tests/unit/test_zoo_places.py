"""What a web server may answer, and what a place may be called: one line, nothing that a terminal obeys."""

from __future__ import annotations

import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from hmarl.runtime.command_line import run
from hmarl.runtime.errors import HmarlError
from hmarl.sdk.commands.zoo import zoo
from hmarl.sdk.zoo.places import WebPlace
from zoos import make_zoo


@contextmanager
def answering(reply: bytes) -> Iterator[str]:
    """The address of a server that says this to whoever connects."""
    with socket.create_server(("127.0.0.1", 0)) as server:

        def answer() -> None:
            while True:
                try:
                    connection, _ = server.accept()
                except OSError:  # closed
                    return
                with connection:
                    connection.recv(65536)
                    connection.sendall(reply)

        threading.Thread(target=answer, daemon=True).start()
        yield f"http://127.0.0.1:{server.getsockname()[1]}"
        server.shutdown(socket.SHUT_RDWR)


@pytest.mark.parametrize(
    ("reply", "said"),
    [
        (b"what is this?\r\n\r\n", "cannot be fetched"),
        (b"", "cannot be fetched"),
        (b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\nzz\r\n", "cannot be fetched"),
        (b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n10\r\nabc", "cannot be fetched"),
        (b"HTTP/1.1 200 " + b"x" * 70_000 + b"\r\n\r\n", "cannot be fetched"),
        (b"HTTP/1.1 200 OK\r\n" + b"".join(b"X%d: y\r\n" % i for i in range(200)) + b"\r\n", "cannot be fetched"),
        (b"HTTP/1.1 500 \x1b[2J\r\n\r\n", r"HTTP status 500 \\x1b\[2J, expected the file"),
        (b"HTTP/1.1 302 Found\r\nLocation: file:///etc/passwd\r\n\r\n", "HTTP status 302"),
        (b"HTTP/1.1 302 Found\r\nLocation: http://a:b/\r\n\r\n", "cannot be fetched"),
        (b"HTTP/1.1 302 Found\r\nLocation: /again\r\n\r\n", "HTTP status 302"),
    ],
)
def test_an_answer_that_is_none_is_told_in_one_line(reply: bytes, said: str) -> None:
    with answering(reply) as address, pytest.raises(HmarlError, match=said) as raised:
        WebPlace(address).read("toy", "model.sig", 1000)
    assert str(raised.value).isprintable()
    assert len(str(raised.value)) < 2000


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (("list", "--index", "file:///etc/passwd"), "--index: got file:///etc, expected a file, or an http or https"),
        (("list", "--index", "ftp://127.0.0.1/index.json"), "--index: got ftp://127.0.0.1, expected a file, or"),
        (("list", "--from", "/nowhere"), "--from: got /nowhere, which is no folder here"),
        (("list", "--from", "gopher://x"), "--from: got gopher://x, expected a folder, an http or https address"),
        (("list", "--trust", "/nowhere"), "/nowhere"),
        (("fetch", "simple-spread-hcpo", "--from", "http://127.0.0.1:abc/"), "--from: got http://127.0.0.1:abc/"),
        (("fetch", "simple-spread-hcpo", "--from", "http://[::1"), "--from: got http://[::1, expected a folder"),
        (("fetch", "simple-spread-hcpo", "--from", "http://"), "--from: got http://, expected a folder"),
        (("fetch", "simple-spread-hcpo", "--from", "http://a b"), "--from: got http://a b, expected a folder"),
        (
            ("fetch", "simple-spread-hcpo", "--from", "http://a\x1b[2J"),
            r"--from: got http://a\x1b[2J, expected a folder",
        ),
    ],
)
def test_what_is_no_place_is_refused_and_shown(
    words: tuple[str, ...], told: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(zoo, words) == 2
    shown = capsys.readouterr()
    assert told in shown.err
    assert shown.err.removesuffix("\n").isprintable()
    assert shown.out == ""


def test_what_a_server_says_reaches_the_terminal_as_text(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    other = make_zoo(tmp_path)
    other.describe(other.add("toy"))
    with answering(b"HTTP/1.1 500 \x1b]0;mine\x07\r\n\r\n") as address:
        words = ("fetch", "toy", "--index", str(other.index), "--from", address, "--trust", str(other.public))
        assert run(zoo, words) == 4
    assert r"HTTP status 500 \x1b]0;mine\x07" in capsys.readouterr().err
