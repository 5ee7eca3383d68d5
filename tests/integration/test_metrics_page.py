"""The page on which metrics are read, as a door: over TLS, for those who show what is asked for, closed in the end."""

from __future__ import annotations

import ssl
import subprocess
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from hmarl.runtime.errors import HmarlError
from hmarl.runtime.metrics_page import MetricsPage

TOKEN = "Bearer 0123456789abcdef"


@contextmanager
def page(**options: object) -> Iterator[MetricsPage]:
    found = MetricsPage("127.0.0.1", 0, {"/metrics": lambda host: ("text/plain", host.encode())}, **options)  # type: ignore[arg-type]
    try:
        yield found
    finally:
        found.close()


def read(url: str, context: ssl.SSLContext | None = None, **headers: str) -> str:
    handlers = [urllib.request.ProxyHandler({}), urllib.request.HTTPSHandler(context=context)]
    request = urllib.request.Request(url, headers=headers)
    with urllib.request.build_opener(*handlers).open(request, timeout=20) as answer:
        return str(answer.read().decode())


def test_only_who_shows_a_known_token_reads() -> None:
    with page(admits=lambda shown: shown == TOKEN) as found:
        url = f"http://{found.address}/metrics"
        assert read(url, Authorization=TOKEN) == "127.0.0.1"
        for shown in ({}, {"Authorization": "Bearer wrong"}):
            with pytest.raises(urllib.error.HTTPError, match="401") as refused:
                read(url, **shown)
            assert refused.value.headers["WWW-Authenticate"] == "Bearer"


def test_a_page_is_read_over_tls_and_not_in_plaintext(tmp_path: Path) -> None:
    key, certificate = tmp_path / "key.pem", tmp_path / "certificate.pem"
    words = "openssl req -x509 -newkey ec -pkeyopt ec_paramgen_curve:prime256v1 -nodes -days 1 -subj /CN=page"
    more = ["-addext", "subjectAltName=IP:127.0.0.1", "-keyout", str(key), "-out", str(certificate)]
    subprocess.run([*words.split(), *more], check=True, capture_output=True)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificate, key)
    with page(tls=lambda: context) as found:
        for _ in range(2):
            assert (
                read(f"https://{found.address}/metrics", ssl.create_default_context(cafile=certificate)) == "127.0.0.1"
            )
        with pytest.raises(OSError):  # noqa: PT011 - how a connection ends differs
            read(f"http://{found.address}/metrics")


def test_a_page_that_is_closed_gives_its_address_back() -> None:
    with page() as found:
        port = int(found.address.rpartition(":")[2])
        with pytest.raises(HmarlError, match=f"cannot listen on 127.0.0.1:{port}"):
            MetricsPage("127.0.0.1", port, {})
    MetricsPage("127.0.0.1", port, {}).close()
