"""A page of metrics whose process lacks descriptors or threads waits until there are some, and answers then."""

from __future__ import annotations

import subprocess
import sys

import pytest

from scarcity import WITH_DESCRIPTORS_AGAIN, WITH_THREADS_AGAIN, WITHOUT_DESCRIPTORS, WITHOUT_THREADS

PROGRAM = """
import os, resource, socket, socketserver, threading, time
from hmarl.runtime.metrics_page import Content, MetricsPage

attempts = 0
take = socketserver.TCPServer.get_request


def counted(self):
    global attempts
    attempts += 1
    return take(self)


def ask():
    caller.sendall(b"GET /metrics HTTP/1.0\\r\\n\\r\\n")
    answer = b""
    while part := caller.recv(1000):
        answer += part
    return answer


socketserver.TCPServer.get_request = counted
page = MetricsPage("127.0.0.1", 0, {"/metrics": lambda host: Content("text/plain", b"all is well")})
address = ("127.0.0.1", int(page.address.rpartition(":")[2]))
caller = socket.socket()
"""
ANSWERED = """
with socket.create_connection(address) as caller:
    assert ask().endswith(b"all is well")
"""
NO_DESCRIPTOR = f"""
{WITHOUT_DESCRIPTORS}
caller.connect(address)
while not attempts:
    time.sleep(0.01)
time.sleep(1.0)
assert attempts < 20, attempts
{WITH_DESCRIPTORS_AGAIN}
assert ask().endswith(b"all is well")
"""
ONE_DESCRIPTOR = f"""
{WITHOUT_DESCRIPTORS}
os.close(held.pop())
caller.connect(address)
assert caller.recv(1) == b""
{WITH_DESCRIPTORS_AGAIN}
{ANSWERED}
"""
NO_THREAD = f"""
before = len(os.listdir("/proc/self/fd"))
{WITHOUT_THREADS}
for _ in range(20):
    with socket.create_connection(address) as caller:
        assert caller.recv(1) == b""
{WITH_THREADS_AGAIN}
{ANSWERED}
while len(os.listdir("/proc/self/fd")) > before:
    time.sleep(0.01)
"""


@pytest.mark.parametrize("lack", [NO_DESCRIPTOR, ONE_DESCRIPTOR, NO_THREAD], ids=["none", "one", "no thread"])
def test_a_page_outlives_a_lack(lack: str) -> None:
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM + lack + "page.close()\n"],
        capture_output=True,
        text=True,
        check=False,
        timeout=30,
    )
    assert (done.returncode, done.stderr) == (0, "")
