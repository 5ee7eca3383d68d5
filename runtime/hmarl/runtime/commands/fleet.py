"""hmarl-fleet: a supervised process per agent of a team."""

from __future__ import annotations

import json
import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

from hmarl.runtime import systemd
from hmarl.runtime.bundle import Bundle, load_bundle
from hmarl.runtime.command_line import AS_JSON, PATH, at_most_one, command, flag, integer, option, trust_option
from hmarl.runtime.commands import _recording, reload
from hmarl.runtime.commands._common import (
    bundle_argument,
    check_frames,
    frames_allow_uid_option,
    grace_option,
    log_format_option,
    log_level_option,
    metrics_option,
    no_grpc_flag,
    oip_flag,
    provider_option,
    run,
    traces_option,
)
from hmarl.runtime.commands._ending import StopSignals, at_end, leave
from hmarl.runtime.commands._output import OUTPUT, start_logging
from hmarl.runtime.commands._security import security_options, take_security
from hmarl.runtime.commands._watching import FleetWatch, check_traces
from hmarl.runtime.endpoints_file import EndpointsFile, marked
from hmarl.runtime.errors import UsageError
from hmarl.runtime.roster import counted_roster, named_roster, split_names

if TYPE_CHECKING:
    from hmarl.runtime.commands._fleet_reloading import FleetReloads
    from hmarl.runtime.fleet import Fleet
    from hmarl.runtime.settings import SecuritySettings

LOGGER = logging.getLogger("hmarl.fleet")


@dataclass(frozen=True)
class Options:
    """The command line, as it was understood."""

    bundle: Path
    out: Path | None
    agents: str | None
    count: int | None
    tcp: bool
    socket_dir: Path | None
    frames_dir: Path | None
    frames_allow_uid: tuple[int, ...]
    no_grpc: bool
    host: str | None
    tls: Path | None
    trust: tuple[Path, ...]
    provider: str
    grace_s: float
    oip: bool
    pin: bool
    log_level: str
    log_format: str
    metrics: str | None
    traces: bool
    as_json: bool
    recording: Sequence[str]
    security: SecuritySettings


@command(
    "hmarl-fleet",
    bundle_argument(),
    option("--out", "write the endpoints there once all agents are serving", PATH, shown="FILE", variable=True),
    option(
        "--agents",
        "serve these instead of all trained agents; NAME=LIKE serves one that was not trained, by LIKE's graph; "
        "put an entry with a comma in its name in double quotes",
        shown="NAME[=LIKE],...",
    ),
    option("--count", "serve N agents, fewer or more than trained", integer(1)),
    flag("--tcp", "listen on free ports of 127.0.0.1 (the default)"),
    option("--socket-dir", "listen on Unix sockets in DIR", PATH, shown="DIR"),
    option(
        "--frames-dir",
        "serve frames on Unix sockets in DIR as well: the quick way for programs on this machine (docs/frames.md)",
        PATH,
        shown="DIR",
    ),
    frames_allow_uid_option(),
    no_grpc_flag(),
    option("--host", "listen on free ports of this name or address of the machine; other than 127.0.0.1 needs --tls"),
    option(
        "--tls",
        "mutual TLS: the fleet makes a certificate authority in DIR if there is none (see hmarl-keys), and issues and "
        "renews its agents' certificates",
        PATH,
        shown="DIR",
        variable=True,
    ),
    *security_options(),
    trust_option(variable=True),
    provider_option(),
    grace_option(),
    oip_flag(),
    flag("--pin", "keep each agent on one processor core, in turn"),
    log_level_option("warning"),
    log_format_option(),
    metrics_option(
        "serve the fleet's Prometheus metrics there, and the agents' at the ports after it, which /targets lists for "
        "http_sd_configs (extra 'metrics')"
    ),
    traces_option(),
    *_recording.record_options(),
    AS_JSON,
    examples=(
        "hmarl-fleet models/simple-spread-hcpo --out endpoints.json",
        "hmarl-fleet bundle --count 5 --socket-dir /run/team",
        "hmarl-fleet bundle --tls keys --host 192.168.1.20 --out endpoints.json",
        "hmarl-fleet reload endpoints.json models/new-bundle",
    ),
    words={"reload": reload.reload},
)
def supervise(**given: Any) -> int:
    """Run one supervised process per agent of a bundle; Ctrl-C stops all of them."""
    _check_together(given)
    signals = StopSignals()
    start_logging(given["log_level"], "hmarl-fleet", given["log_format"])
    watch = FleetWatch(given["metrics"])
    if given["traces"]:
        check_traces()
    recording, security = _recording.as_words(_recording.take_recording(given)), take_security(given)
    options = Options(**given, recording=recording, security=security)
    for door, reached in (("--host", options.host), ("--metrics", watch.exposed)):
        _check_exposed(door, reached if options.tls is None else None, security)
    # Only now: gRPC asks at once what it may log.
    from hmarl.runtime.commands._fleet_reloading import FleetReloads  # noqa: PLC0415
    from hmarl.runtime.fleet import MORE_THAN_GRACE_S, resolved  # noqa: PLC0415

    load = partial(load_bundle, trust=options.trust or None)  # also at each reload
    loaded = load(resolved(options.bundle))
    members = _roster(loaded, options.agents, options.count)
    _make_folders({"--socket-dir": options.socket_dir, "--frames-dir": options.frames_dir})
    file = None if options.out is None else _claimed(options.out)
    fleet = _fleet(options, loaded, members, watch)
    at_end(fleet.kill)
    signals.patience(options.grace_s + 2 * MORE_THAN_GRACE_S)
    say = LOGGER.info if options.as_json else OUTPUT.put
    reloads = FleetReloads(fleet, file, load, say, partial(watch.description, fleet))
    at_end(reloads.close)
    try:
        fleet.start(signals.stop)
        if not signals.stop.is_set():
            reloads.open(signals.reload)
            _announce(reloads, watch, file, options.as_json)
        _watch_over(fleet, signals)
        say("stopping all agents, once their episodes have ended; Ctrl-C again ends them at once")
    finally:
        systemd.notify("STOPPING=1")
        reloads.close()
        if file is not None:
            file.remove()  # first: no one shall be sent to agents that are stopping
        fleet.stop()
    say("stopped")
    return 0


def _check_together(given: dict[str, Any]) -> None:
    """Refuse options that do not go together.

    Raises:
        UsageError: with those that do not.
    """
    for names in (("agents", "count"), ("tcp", "socket_dir", "host", "no_grpc")):
        at_most_one(**{name: given[name] for name in names})
    check_frames(
        given["frames_dir"] is not None, given["no_grpc"], given["frames_allow_uid"], given, option="--frames-dir"
    )
    for name in ("tls_cert", "tls_key", "tls_client_ca", "allow_file"):  # which it sees to itself
        at_most_one(tls=given["tls"], **{name: given[name]})


def _fleet(options: Options, bundle: Bundle, members: Mapping[str, str | None], watch: FleetWatch) -> Fleet:
    """The members and their keys, watched, and none of them started yet."""
    from hmarl.runtime.fleet import LOOPBACK, MORE_THAN_GRACE_S, Fleet  # noqa: PLC0415 - see supervise
    from hmarl.runtime.team_keys import TeamKeys  # noqa: PLC0415

    hosts = [each.strip("[]") for each in (options.host, watch.exposed) if each is not None]
    page = watch.exposed is not None
    keys = None if options.tls is None else TeamKeys(options.tls, members, hosts, page=page)
    fleet = Fleet(
        bundle,
        path=options.bundle,
        roster=members,
        socket_dir=options.socket_dir,
        frames_dir=options.frames_dir,
        pin=options.pin,
        options=_of_members(options),
        security=options.security,
        keys=keys,
        host=LOOPBACK if options.host is None else options.host,
        metrics=watch.members_from,
        grace_s=options.grace_s + MORE_THAN_GRACE_S,
    )
    watch.watch(fleet, options.security if keys is None else keys.own_settings(options.security))
    return fleet


def _of_members(options: Options) -> list[str]:
    """What all members are given, as hmarl-agent takes it."""
    return [
        *("--provider", options.provider, "--grace-s", str(options.grace_s)),
        *("--log-level", options.log_level, "--log-format", options.log_format),
        *(f"--trust={path.absolute()}" for path in options.trust),  # each checks for itself, whenever it starts
        *(f"--frames-allow-uid={user}" for user in options.frames_allow_uid),
        *_flags(traces=options.traces, oip=options.oip, no_grpc=options.no_grpc),
        *options.recording,
    ]


def _watch_over(fleet: Fleet, signals: StopSignals) -> None:
    """Restart agents that fail, and feed systemd's watchdog, until the fleet is told to stop."""
    while not signals.stop.wait(0.1):
        fleet.check()
        if fleet.attentive:
            systemd.notify("WATCHDOG=1")


def _claimed(out: Path) -> EndpointsFile:
    file = EndpointsFile(out)
    at_end(file.remove)
    return file


def _flags(**given: bool) -> list[str]:
    """Those that are given, as hmarl-agent takes them."""
    return [f"--{name.replace('_', '-')}" for name, value in given.items() if value]


def _check_exposed(option: str, host: str | None, security: SecuritySettings) -> None:
    """Refuse at once what every member would refuse to listen on; None needs no check.

    Raises:
        UsageError: others would reach them unasked.
    """
    if host is None:
        return
    from hmarl.runtime.access import check_exposure  # noqa: PLC0415 - needs gRPC

    try:
        check_exposure(security, host, None, option)
    except UsageError as error:
        raise UsageError(
            f"{option}: got {host}, which others may reach, without TLS and a client's identity: give --tls DIR, which "
            "makes all that they need; or --insecure where something in front protects the agents"
        ) from error


def _roster(bundle: Bundle, agents: str | None, count: int | None) -> dict[str, str | None]:
    """Who is served: those that are named, so many, or all that were trained."""
    if agents is not None:
        return dict(named_roster(bundle, split_names(agents)))
    return dict.fromkeys(bundle.agent_ids) if count is None else dict(counted_roster(bundle, count))


def _make_folders(paths: Mapping[str, Path | None]) -> None:
    for name, path in paths.items():
        if path is not None:
            _make_folder(name, path)


def _make_folder(name: str, path: Path) -> None:
    """Make the folder of the sockets, where it is not there.

    Raises:
        UsageError: it cannot be made, or is no folder.
    """
    try:
        path.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        reason = "something else is there" if isinstance(error, FileExistsError) else error.strerror
        raise UsageError(f"{name}: got '{path}', which cannot be made a folder: {reason}; choose another") from error


def _announce(reloads: FleetReloads, watch: FleetWatch, out: EndpointsFile | None, as_json: bool) -> None:
    """Tell people, programs and the service manager that all agents are serving."""
    description = reloads.description()
    if out is not None:
        out.write(description)
    if as_json:
        OUTPUT.put(json.dumps(marked(description)))
    else:
        frames = description.get("frames", {})
        for agent_id, address in description["agents"].items():
            doors = [address, *filter(None, [frames.get(agent_id)])]
            OUTPUT.put(f"{agent_id} is serving on {' and '.join(doors)}")
        if watch.url is not None:
            OUTPUT.put(f"metrics on {watch.url}/metrics, those of all agents by {watch.url}/targets")
        if out is not None:
            OUTPUT.put(f"wrote the endpoints to {out.path}")
        OUTPUT.put("Ctrl-C stops all agents")
    systemd.notify("READY=1")


def main(arguments: Sequence[str] | None = None) -> NoReturn:
    """Entry point; ends the process."""
    leave(run(supervise, arguments))


if __name__ == "__main__":
    main()
