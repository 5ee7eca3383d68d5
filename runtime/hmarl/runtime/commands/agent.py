"""hmarl-agent: serve one agent of a bundle over gRPC."""

from __future__ import annotations

import gc
import json
import os
import signal
import sys
from collections.abc import Sequence
from pathlib import Path

from hmarl.runtime.commands._common import (
    LOG_LEVELS,
    Parser,
    StopSignals,
    positive,
    positive_integer,
    run,
    start_logging,
)
from hmarl.runtime.cores import stay_on

PARENT_VARIABLE = "HMARL_PARENT_PID"  # set by hmarl-fleet: die with this process
_PR_SET_PDEATHSIG = 1


def _parser() -> Parser:
    parser = Parser(prog="hmarl-agent", description="Serve one agent of a bundle over gRPC.")
    parser.option("bundle", help="bundle directory or zip")
    parser.option("--agent", required=True, metavar="ID", help="the agent to serve")
    parser.option(
        "--like", metavar="ID", help="for one that was not trained: the interchangeable agent by whose graph it acts"
    )
    parser.option(
        "--listen", default="127.0.0.1:50051", help="HOST:PORT (port 0: a free one) or unix:PATH (default %(default)s)"
    )
    parser.option("--provider", default="cpu", help="cpu, cuda[:DEVICE] or tensorrt[:DEVICE] (default %(default)s)")
    parser.option("--max-sessions", type=positive_integer, default=1024, help="open episodes (default %(default)s)")
    parser.option("--max-streams", type=positive_integer, default=64, help="open streams (default %(default)s)")
    parser.option("--session-ttl-s", type=positive, default=600.0, help="idle time of a session (default %(default)s)")
    parser.option("--grace-s", type=positive, default=5.0, help="for running episodes on SIGTERM (default %(default)s)")
    parser.option("--core", type=int, metavar="N", help="stay on this processor core: steadier and quicker answers")
    parser.option("--log-level", choices=LOG_LEVELS, default="info", help="least level to log (default %(default)s)")
    parser.add_argument("--no-reflection", action="store_true", help="do not offer gRPC reflection")
    parser.add_argument("--json", action="store_true", help="print the address as one JSON object")
    return parser


def _die_with_parent(parent: str) -> None:
    """Let the kernel stop this process when the supervisor is gone, even if that was killed (Linux)."""
    if not sys.platform.startswith("linux"):
        return
    import ctypes  # noqa: PLC0415 - only members of a fleet need it

    ctypes.CDLL(None, use_errno=True).prctl(_PR_SET_PDEATHSIG, signal.SIGTERM)
    if os.getppid() != int(parent):  # it died before the line above
        raise SystemExit(0)


def serve(arguments: Sequence[str] | None = None) -> int:
    """Serve until SIGTERM or SIGINT; returns the exit code."""
    options = _parser().parse_args(arguments)
    signals = StopSignals()
    if PARENT_VARIABLE in os.environ:
        _die_with_parent(os.environ[PARENT_VARIABLE])
    start_logging(options.log_level, f"hmarl-agent {options.agent}")
    if options.core is not None:
        stay_on(options.core)  # before any thread is started
    # Imported here, so that --help and wrong options answer at once.
    from hmarl.runtime import systemd  # noqa: PLC0415
    from hmarl.runtime.bundle import load_bundle  # noqa: PLC0415
    from hmarl.runtime.trial import Trial  # noqa: PLC0415

    bundle = load_bundle(Path(options.bundle))
    like = options.like or None
    bundle.agent(options.agent, like)
    with Trial(bundle, {options.agent: like}) as trial:  # in another process, while this one imports the rest
        from hmarl.runtime.server import LOGGER, AgentServer, ServerSettings  # noqa: PLC0415
        from hmarl.runtime.session import Policy  # noqa: PLC0415

        settings = ServerSettings(
            options.listen, options.max_sessions, options.session_ttl_s, options.max_streams, not options.no_reflection
        )
        server = AgentServer(settings)
        try:
            if not trial.result(signals.stop):
                server.stop(grace_s=0.0)
                return 0
            policy = Policy(bundle, options.agent, options.provider, like)
            server.serve(policy)
        except BaseException:
            server.stop(grace_s=0.0)
            raise
    gc.collect()
    gc.freeze()  # what is loaded stays; a full collection that looked at it would hold up a step for milliseconds
    ready = {"agent": options.agent, "address": server.address}
    print(json.dumps(ready) if options.json else f"{options.agent} is serving on {server.address}", flush=True)
    LOGGER.info("serving %s on %s with %s", bundle.path, server.address, policy.execution_provider)
    systemd.notify("READY=1")
    while not signals.stop.wait(systemd.watchdog_interval_s()):
        systemd.notify("WATCHDOG=1")
    systemd.notify("STOPPING=1")
    server.stop(options.grace_s, signals.hurry)
    LOGGER.info("stopped")
    return 0


def main(arguments: Sequence[str] | None = None) -> int:
    """Entry point; returns the exit code."""
    return run("hmarl-agent", lambda: serve(arguments))


if __name__ == "__main__":
    sys.exit(main())
