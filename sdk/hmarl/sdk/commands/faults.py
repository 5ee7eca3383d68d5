"""hmarl-faults: a bad link on purpose, between real clients and whatever they talk to."""

from __future__ import annotations

import ipaddress
import signal
import sys
import threading
from typing import NoReturn

from hmarl.runtime.command_line import AS_JSON, POSITIVE, argument, command, flag, integer, option, run
from hmarl.sdk.commands._common import print_json
from hmarl.sdk.errors import UsageError
from hmarl.sdk.faults.link import FaultyLink, LinkFaults


@command(
    "hmarl-faults",
    argument("listen", "where clients connect: HOST:PORT (port 0: any) or unix:PATH"),
    argument("target", "where they are passed on to: HOST:PORT or unix:PATH"),
    option("--delay-s", "delay in each direction", POSITIVE, shown="SECONDS"),
    option("--jitter-s", "a random further delay of each piece of data, up to this", POSITIVE, shown="SECONDS"),
    option(
        "--bandwidth-bytes-s", "bytes a second that pass, for each connection and direction", POSITIVE, shown="BYTES"
    ),
    option("--cut-every-s", "time between resets of all connections, on average", POSITIVE, shown="SECONDS"),
    option(
        "--freeze-every-s",
        "time between freezes, in which nothing passes, on average; with --freeze-s",
        POSITIVE,
        shown="SECONDS",
    ),
    option("--freeze-s", "how long a freeze lasts", POSITIVE, shown="SECONDS"),
    option("--seed", "seed of all that is random", integer(0), default=0),
    flag("--insecure", "listen where others reach it, though whoever does gets through to TARGET"),
    AS_JSON,
    examples=(
        "hmarl-faults 127.0.0.1:6000 127.0.0.1:50051 --delay-s 0.02 --jitter-s 0.01",
        "hmarl-faults unix:/tmp/bad.sock unix:/tmp/agent.sock --cut-every-s 30",
    ),
)
def faults(listen: str, target: str, seed: int, insecure: bool, as_json: bool, **given: float | None) -> None:
    """Pass connections on over a link that is late, slow, frozen or cut.

    Clients connect to LISTEN instead of TARGET; without options all passes unchanged. Nothing is lost but by a reset.
    Ctrl-C or SIGTERM ends it.
    """
    if not insecure and _others_reach(listen):
        raise UsageError(
            f"listen: got {listen}, from where anyone gets through to {target}: listen on 127.0.0.1 or a Unix socket, "
            "or say --insecure"
        )
    stop = threading.Event()
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, lambda *_: stop.set())
    wrong = LinkFaults(**{name: value for name, value in given.items() if value is not None})
    with FaultyLink(target, wrong, listen=listen, seed=seed) as link:
        if as_json:
            print_json({"address": link.address, "target": target})
        else:
            print(f"{link.address} passes on to {target}", flush=True)
        stop.wait()


def _others_reach(listen: str) -> bool:
    """Whether an address to listen on, and not one to connect to, may be reached from elsewhere."""
    host = listen.rpartition(":")[0].removeprefix("[").removesuffix("]")
    try:
        return not ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host != "localhost" and not listen.startswith("unix:")


def main() -> NoReturn:
    """Entry point of ``hmarl-faults``."""
    sys.exit(run(faults))


if __name__ == "__main__":
    main()
