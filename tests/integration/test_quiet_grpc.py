"""Programs of hmarl's command line, and a user's own, say what they say: gRPC's core writes nothing beside it."""

from __future__ import annotations

import subprocess
import sys

import pytest

PROGRAM = """
IMPORTS

import time
from concurrent.futures import ThreadPoolExecutor
import grpc

def main():
    "A call, and then silence until the server closes the connection."
    echo = grpc.unary_unary_rpc_method_handler(lambda sent, _: sent)
    handler = grpc.method_handlers_generic_handler("a.B", {"C": echo})
    server = grpc.server(ThreadPoolExecutor(2), [handler], options=[("grpc.max_connection_idle_ms", 100)])
    port = server.add_insecure_port("127.0.0.1:0")
    server.start()
    states = []
    with grpc.insecure_channel(f"127.0.0.1:{port}") as channel:
        channel.subscribe(states.append)
        print(channel.unary_unary("/a.B/C")(b"sent").decode())
        until = time.monotonic() + 20
        while len(states) < 3 or (states[-1] is not grpc.ChannelConnectivity.IDLE and time.monotonic() < until):
            time.sleep(0.05)
    print(states[-1].name)
    server.stop(None)

main()
"""


@pytest.mark.parametrize(
    "imports", ["import hmarl.runtime.command_line", "from hmarl.sdk import AgentClient"], ids=["command", "client"]
)
def test_an_idle_connection_that_is_closed_is_no_line_on_standard_error(imports: str) -> None:
    program = PROGRAM.replace("IMPORTS", imports)
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=60, check=False)
    assert done.stderr == ""
    assert done.stdout.split() == ["sent", "IDLE"]
