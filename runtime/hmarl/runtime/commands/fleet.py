"""hmarl-fleet: a supervised process per agent of a team."""

from __future__ import annotations

import json
import logging
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, NoReturn

from hmarl.runtime import systemd
from hmarl.runtime.bundle import load_bundle
from hmarl.runtime.commands._common import LOG_LEVELS, Parser, positive, positive_integer, run
from hmarl.runtime.commands._ending import StopSignals, at_end, leave
from hmarl.runtime.commands._output import OUTPUT, start_logging
from hmarl.runtime.endpoints_file import EndpointsFile, marked
from hmarl.runtime.roster import counted_roster, named_roster, split_names
from hmarl.runtime.settings import PROVIDER, ServerSettings

if TYPE_CHECKING:
    from hmarl.runtime.fleet import Fleet

LOGGER = logging.getLogger("hmarl.fleet")


def _parser() -> Parser:
    parser = Parser(
        prog="hmarl-fleet", description="Run one supervised process per agent of a bundle; Ctrl-C stops all of them."
    )
    parser.option("bundle", help="bundle directory or zip")
    parser.option("--out", type=Path, metavar="FILE", help="write the endpoints there once all agents are serving")
    who = parser.add_mutually_exclusive_group()
    who.add_argument(
        "--agents",
        metavar="NAME[=LIKE],...",
        help="serve these; LIKE is the agent by whose graph one acts that was not trained (default: all trained); an "
        "entry with a comma in a name stands in double quotes",
    )
    who.add_argument("--count", type=positive_integer, metavar="N", help="serve N agents, fewer or more than trained")
    where = parser.add_mutually_exclusive_group()
    where.add_argument("--tcp", action="store_true", help="listen on free ports of 127.0.0.1 (the default)")
    where.add_argument("--socket-dir", type=Path, metavar="DIR", help="listen on Unix sockets in DIR")
    parser.option("--provider", default=PROVIDER, help="cpu, cuda[:DEVICE] or tensorrt[:DEVICE] (default %(default)s)")
    parser.option(
        "--grace-s",
        type=positive,
        default=ServerSettings.grace_s,
        help="for running episodes on SIGTERM (default %(default)s)",
    )
    parser.add_argument("--pin", action="store_true", help="keep each agent on one processor core, in turn")
    parser.option("--log-level", choices=LOG_LEVELS, default="warning", help="least level to log (default %(default)s)")
    parser.add_argument("--json", action="store_true", help="print the endpoints as one JSON object")
    return parser


def supervise(arguments: Sequence[str] | None = None) -> int:
    """Run until a signal; returns the exit code."""
    options = _parser().parse_args(arguments)
    signals = StopSignals()
    start_logging(options.log_level, "hmarl-fleet")
    from hmarl.runtime.fleet import MORE_THAN_GRACE_S, Fleet  # noqa: PLC0415 - gRPC asks at once what it may log

    bundle = load_bundle(Path(options.bundle))
    roster = None
    if options.agents is not None:
        roster = named_roster(bundle, split_names(options.agents))
    elif options.count is not None:
        roster = counted_roster(bundle, options.count)
    if options.socket_dir is not None:
        options.socket_dir.mkdir(parents=True, exist_ok=True)
    out = None
    if options.out is not None:
        out = EndpointsFile(options.out)
        at_end(out.remove)
    more = ["--provider", options.provider, "--grace-s", str(options.grace_s), "--log-level", options.log_level]
    fleet = Fleet(
        bundle, roster=roster, socket_dir=options.socket_dir, pin=options.pin, options=more,
        grace_s=options.grace_s + MORE_THAN_GRACE_S,
    )  # fmt: skip
    at_end(fleet.kill)
    signals.patience(options.grace_s + 2 * MORE_THAN_GRACE_S)
    say = LOGGER.info if options.json else OUTPUT.put
    try:
        fleet.start(signals.stop)
        if not signals.stop.is_set():
            _announce(fleet, out, options.json)
        while not signals.stop.wait(0.1):
            fleet.check()
            if fleet.attentive:
                systemd.notify("WATCHDOG=1")
        say("stopping all agents, once their episodes have ended; Ctrl-C again ends them at once")
    finally:
        systemd.notify("STOPPING=1")
        if out is not None:
            out.remove()  # first: no one shall be sent to agents that are stopping
        fleet.stop()
    say("stopped")
    return 0


def _announce(fleet: Fleet, out: EndpointsFile | None, as_json: bool) -> None:
    """Tell people, programs and the service manager that all agents are serving."""
    if out is not None:
        out.write(fleet.description())
    if as_json:
        OUTPUT.put(json.dumps(marked(fleet.description())))
    else:
        for agent_id, address in fleet.endpoints.items():
            OUTPUT.put(f"{agent_id} is serving on {address}")
        if out is not None:
            OUTPUT.put(f"wrote the endpoints to {out.path}")
        OUTPUT.put("Ctrl-C stops all agents")
    systemd.notify("READY=1")


def main(arguments: Sequence[str] | None = None) -> NoReturn:
    """Entry point; ends the process."""
    leave(run("hmarl-fleet", lambda: supervise(arguments)))


if __name__ == "__main__":
    main()
