"""hmarl-agent: serve one agent of a bundle over gRPC."""

from __future__ import annotations

import argparse
import gc
import json
import logging
import os
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, NoReturn

from hmarl.runtime import systemd
from hmarl.runtime.commands._common import LOG_LEVELS, Parser, positive, positive_integer, run
from hmarl.runtime.commands._ending import StopSignals, at_end, leave
from hmarl.runtime.commands._output import OUTPUT, start_logging
from hmarl.runtime.cores import stay_on
from hmarl.runtime.errors import BundleError
from hmarl.runtime.orphans import die_with_parent
from hmarl.runtime.settings import PROVIDER, ServerSettings

if TYPE_CHECKING:
    from hmarl.runtime.bundle import Bundle
    from hmarl.runtime.server import AgentServer
    from hmarl.runtime.session import Policy

LOGGER = logging.getLogger("hmarl.agent")
PARENT_VARIABLE = "HMARL_PARENT_PID"  # set by hmarl-fleet: die with this process
SHA256_VARIABLE = "HMARL_BUNDLE_SHA256"  # set by hmarl-fleet: the bundle that the other members serve
_MORE_THAN_GRACE_S = 5.0  # for an end that takes longer than the running episodes get


def _parser() -> Parser:
    parser = Parser(prog="hmarl-agent", description="Serve one agent of a bundle over gRPC.")
    parser.option("bundle", help="bundle directory or zip")
    parser.option("--agent", required=True, metavar="ID", help="the agent to serve")
    parser.option(
        "--like", metavar="ID", help="for one that was not trained: the interchangeable agent by whose graph it acts"
    )
    own = ServerSettings()
    parser.option(
        "--listen", default=own.listen, help="HOST:PORT (port 0: a free one) or unix:PATH (default %(default)s)"
    )
    parser.option("--provider", default=PROVIDER, help="cpu, cuda[:DEVICE] or tensorrt[:DEVICE] (default %(default)s)")
    parser.option(
        "--max-sessions", type=positive_integer, default=own.max_sessions, help="open episodes (default %(default)s)"
    )
    parser.option(
        "--max-streams", type=positive_integer, default=own.max_streams, help="open streams (default %(default)s)"
    )
    parser.option(
        "--session-ttl-s", type=positive, default=own.session_ttl_s, help="idle time of a session (default %(default)s)"
    )
    parser.option(
        "--grace-s", type=positive, default=own.grace_s, help="for running episodes on SIGTERM (default %(default)s)"
    )
    parser.option("--core", type=int, metavar="N", help="stay on this processor core: steadier and quicker answers")
    parser.option("--log-level", choices=LOG_LEVELS, default="info", help="least level to log (default %(default)s)")
    parser.add_argument("--no-reflection", action="store_true", help="do not offer gRPC reflection")
    parser.add_argument("--json", action="store_true", help="print the address as one JSON object")
    return parser


def _check_fleet_bundle(bundle: Bundle, expected: str | None) -> None:
    """The members of a fleet serve one bundle, also when another one has been put in its place meanwhile.

    Raises:
        BundleError: it is another one than the fleet was started with.
    """
    if expected is not None and bundle.sha256 != expected:
        raise BundleError(
            f"bundle {bundle.path}: got another one, {bundle.sha256}, expected {expected}, which the fleet was started "
            "with and its other agents serve: start the fleet again"
        )


def _loaded(options: argparse.Namespace) -> tuple[AgentServer, Policy]:
    """The server, which listens while the bundle is tried and loaded, and serves the policy in the end."""
    # Imported here, so that --help and wrong options answer at once.
    from hmarl.runtime.trial import Trial, TrialProcess  # noqa: PLC0415

    with TrialProcess() as process:  # imports what graphs need, while this one imports what serving needs
        at_end(process.close)
        from hmarl.runtime.bundle import load_bundle  # noqa: PLC0415
        from hmarl.runtime.message_limits import request_limit_bytes  # noqa: PLC0415

        bundle = load_bundle(Path(options.bundle))
        _check_fleet_bundle(bundle, os.environ.get(SHA256_VARIABLE))
        like = options.like or None
        agent = bundle.agent(options.agent, like)
        trial = Trial(bundle, {options.agent: like}, process=process)
        from hmarl.runtime.server import AgentServer  # noqa: PLC0415
        from hmarl.runtime.session import Policy  # noqa: PLC0415

        server = AgentServer(
            ServerSettings(
                listen=options.listen,
                max_sessions=options.max_sessions,
                session_ttl_s=options.session_ttl_s,
                max_streams=options.max_streams,
                reflection=not options.no_reflection,
                max_request_bytes=request_limit_bytes(agent),
                grace_s=options.grace_s,
            )
        )
        at_end(server.free_address)
        try:
            trial.result()
            policy = Policy(bundle, options.agent, options.provider, like)
            server.serve(policy)
        except BaseException:
            server.stop(grace_s=0.0)
            raise
    return server, policy


def serve(arguments: Sequence[str] | None = None) -> int:
    """Serve until a signal; returns the exit code."""
    options = _parser().parse_args(arguments)
    if options.core is not None:
        stay_on(options.core)  # before any thread is started
    signals = StopSignals()
    if PARENT_VARIABLE in os.environ:
        die_with_parent(int(os.environ[PARENT_VARIABLE]))
    start_logging(options.log_level, f"hmarl-agent {options.agent}")
    server, policy = _loaded(options)
    gc.collect()
    gc.freeze()  # what is loaded stays; a full collection that looked at it would hold up a step for milliseconds
    ready = {"agent": options.agent, "address": server.address}
    signals.patience(options.grace_s + _MORE_THAN_GRACE_S)
    OUTPUT.put(json.dumps(ready) if options.json else f"{options.agent} is serving on {server.address}")
    LOGGER.info("serving %s on %s with %s", policy.bundle.path, server.address, policy.execution_provider)
    systemd.notify("READY=1")
    while not signals.stop.wait(systemd.watchdog_interval_s()):
        if server.alive:
            systemd.notify("WATCHDOG=1")
    systemd.notify("STOPPING=1")
    server.stop()
    LOGGER.info("stopped")
    return 0


def main(arguments: Sequence[str] | None = None) -> NoReturn:
    """Entry point; ends the process."""
    leave(run("hmarl-agent", lambda: serve(arguments)))


if __name__ == "__main__":
    main()
