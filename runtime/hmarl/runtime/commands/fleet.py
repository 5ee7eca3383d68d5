"""hmarl-fleet: a supervised process per agent of a team."""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from pathlib import Path

from hmarl.runtime import systemd
from hmarl.runtime.bundle import load_bundle
from hmarl.runtime.commands._common import (
    LOG_LEVELS,
    Parser,
    StopSignals,
    positive,
    positive_integer,
    run,
    start_logging,
)
from hmarl.runtime.fleet import Fleet
from hmarl.runtime.roster import counted_roster, named_roster, split_names


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
    parser.option("--provider", default="cpu", help="cpu, cuda[:DEVICE] or tensorrt[:DEVICE] (default %(default)s)")
    parser.option("--grace-s", type=positive, default=5.0, help="for running episodes on SIGTERM (default %(default)s)")
    parser.add_argument("--pin", action="store_true", help="keep each agent on one processor core, in turn")
    parser.option("--log-level", choices=LOG_LEVELS, default="warning", help="least level to log (default %(default)s)")
    parser.add_argument("--json", action="store_true", help="print the endpoints as one JSON object")
    return parser


def supervise(arguments: Sequence[str] | None = None) -> int:
    """Run until SIGTERM or SIGINT; returns the exit code."""
    options = _parser().parse_args(arguments)
    signals = StopSignals()
    start_logging(options.log_level, "hmarl-fleet")
    bundle = load_bundle(Path(options.bundle))
    roster = None
    if options.agents is not None:
        roster = named_roster(bundle, split_names(options.agents))
    elif options.count is not None:
        roster = counted_roster(bundle, options.count)
    if options.socket_dir is not None:
        options.socket_dir.mkdir(parents=True, exist_ok=True)
    if options.out is not None:
        options.out.unlink(missing_ok=True)  # nobody may take an old fleet's addresses for this one's
    more = ["--provider", options.provider, "--grace-s", str(options.grace_s), "--log-level", options.log_level]
    fleet = Fleet(
        bundle, roster=roster, socket_dir=options.socket_dir, pin=options.pin, options=more,
        grace_s=options.grace_s + 10.0,
    )  # fmt: skip
    try:
        fleet.start(signals.stop)
        if not signals.stop.is_set():
            _announce(fleet, options.out, options.json)
        while not signals.stop.wait(0.1):
            fleet.check()
            systemd.notify("WATCHDOG=1")
    finally:
        systemd.notify("STOPPING=1")
        fleet.stop()
        if options.out is not None:
            options.out.unlink(missing_ok=True)
    return 0


def _announce(fleet: Fleet, out: Path | None, as_json: bool) -> None:
    """Tell people, programs and the service manager that all agents are serving."""
    if out is not None:
        fleet.write_endpoints(out)
    if as_json:
        print(json.dumps(fleet.description()), flush=True)
    else:
        for agent_id, address in fleet.endpoints.items():
            print(f"{agent_id} is serving on {address}", flush=True)
    systemd.notify("READY=1")


def main(arguments: Sequence[str] | None = None) -> int:
    """Entry point; returns the exit code."""
    return run("hmarl-fleet", lambda: supervise(arguments))


if __name__ == "__main__":
    sys.exit(main())
