"""What gRPC's core has to say does not get between the lines that our programs show."""

from __future__ import annotations

import subprocess
import sys

PROGRAM = """
import sys
import threading
from concurrent import futures

from hmarl.runtime.command_line import command, run


@command("hmarl-idle")
def idle():
    "Call a server that closes idle connections, and be idle until it has."
    import grpc

    server = grpc.server(futures.ThreadPoolExecutor(1), options=[("grpc.max_connection_idle_ms", 200)])
    method = grpc.unary_unary_rpc_method_handler(lambda request, context: request)
    server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler("a.Service", {"Call": method}),))
    port = server.add_insecure_port("127.0.0.1:0")
    server.start()
    states, closed = [], threading.Event()

    def told(state):
        states.append(state)
        if state is grpc.ChannelConnectivity.IDLE and grpc.ChannelConnectivity.READY in states:
            closed.set()

    with grpc.insecure_channel(f"127.0.0.1:{port}") as channel:
        channel.subscribe(told)
        channel.unary_unary("/a.Service/Call")(b"x")
        assert closed.wait(30.0), states


sys.exit(run(idle))
"""


def test_a_connection_that_was_idle_ends_without_a_word() -> None:
    done = subprocess.run([sys.executable, "-c", PROGRAM], capture_output=True, text=True, check=False, timeout=60)
    assert (done.returncode, done.stderr) == (0, "")
