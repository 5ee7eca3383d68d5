"""hmarl-agent: serve one agent of a bundle over gRPC, over a Unix socket by frames, or both."""

from __future__ import annotations

import gc
import json
import logging
import os
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

from hmarl.runtime import systemd
from hmarl.runtime.command_line import (
    AS_JSON,
    PATH,
    POSITIVE,
    at_most_one,
    command,
    flag,
    integer,
    option,
    trust_option,
)
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
from hmarl.runtime.commands._recording import record_options, recorder, take_recording
from hmarl.runtime.commands._reloading import obey_fleet, obey_hangups
from hmarl.runtime.commands._security import inherited_secret, security_options, take_security
from hmarl.runtime.commands._watching import AgentWatch
from hmarl.runtime.control import CONTROL_VARIABLE
from hmarl.runtime.cores import stay_on
from hmarl.runtime.errors import BundleError
from hmarl.runtime.orphans import die_with_parent
from hmarl.runtime.settings import PROVIDER, SecuritySettings, ServerSettings

if TYPE_CHECKING:
    from hmarl.runtime.bundle import Bundle
    from hmarl.runtime.recording.settings import RecordSettings
    from hmarl.runtime.server import AgentServer
    from hmarl.runtime.session import Policy

LOGGER = logging.getLogger("hmarl.agent")
PARENT_VARIABLE = "HMARL_PARENT_PID"  # set by hmarl-fleet: die with this process
SHA256_VARIABLE = "HMARL_BUNDLE_SHA256"  # set by hmarl-fleet: the bundle that the other members serve
_MORE_THAN_GRACE_S = 5.0  # for an end that takes longer than the running episodes get


@dataclass(frozen=True)
class Options:
    """The command line, as it was understood."""

    bundle: Path
    agent: str
    like: str | None
    listen: str
    frames: Path | None
    frames_allow_uid: tuple[int, ...]
    no_grpc: bool
    trust: tuple[Path, ...]
    provider: str
    max_sessions: int
    max_streams: int
    session_ttl_s: float
    grace_s: float
    core: int | None
    log_level: str
    log_format: str
    metrics: str | None
    traces: bool
    reflection: bool
    no_reflection: bool
    oip: bool
    as_json: bool
    security: SecuritySettings
    record: RecordSettings | None


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


def _open(options: Options, path: Path) -> Bundle:
    """A bundle, verified, its signature too where one is asked for: the one way in, at the start and at each reload."""
    from hmarl.runtime.bundle import load_bundle  # noqa: PLC0415 - after the trial's process was started

    return load_bundle(path, options.trust or None)


def _loaded(options: Options) -> tuple[AgentServer, Policy, AgentWatch]:
    """The server, which listens while the bundle is tried and loaded, and serves the policy in the end."""
    # Imported here, so that --help and wrong options answer at once.
    from hmarl.runtime.trial import Trial, TrialProcess  # noqa: PLC0415

    with TrialProcess() as process:  # imports what graphs need, while this one imports what serving needs
        at_end(process.close)
        watch = AgentWatch(options.agent, options.metrics, options.traces, options.security)
        from hmarl.runtime.message_limits import request_limit_bytes  # noqa: PLC0415

        bundle = _open(options, options.bundle)
        _check_fleet_bundle(bundle, os.environ.get(SHA256_VARIABLE))
        agent = bundle.agent(options.agent, options.like)
        box = recorder(options.record, agent)
        if box is not None:
            at_end(box.close)
        trial = Trial(bundle, {options.agent: options.like}, process=process)
        from hmarl.runtime.server import AgentServer  # noqa: PLC0415
        from hmarl.runtime.session import Policy  # noqa: PLC0415

        server = AgentServer(
            ServerSettings(
                listen=options.listen,
                grpc=not options.no_grpc,
                frames=options.frames,
                frames_users=options.frames_allow_uid,
                max_sessions=options.max_sessions,
                session_ttl_s=options.session_ttl_s,
                max_streams=options.max_streams,
                reflection=options.reflection or (False if options.no_reflection else None),
                oip=options.oip,
                max_request_bytes=request_limit_bytes(agent, options.oip),
                grace_s=options.grace_s,
                security=options.security,
            ),
            watch.telemetry,
        )
        at_end(server.free_address)
        try:
            watch.watch(server)
            trial.result()
            policy = Policy(bundle, options.agent, options.provider, options.like)
            if options.provider != PROVIDER:
                from hmarl.runtime.verify import hold_to_parity  # noqa: PLC0415 - of devices alone

                hold_to_parity(policy, options.provider)
            policy.observer = box
            server.serve(policy)
        except BaseException:
            server.stop(grace_s=0.0)
            raise
    return server, policy, watch


def _settle() -> None:
    """Give back what loading needed; what is loaded stays."""
    from hmarl.runtime.reload import give_back_memory  # noqa: PLC0415 - not before the options are in order

    give_back_memory()
    gc.freeze()  # a full collection that looked at it would hold up a step for milliseconds


def _obey_reloads(options: Options, server: AgentServer, signals: StopSignals) -> None:
    """Load other bundles when asked to: by the fleet, if the agent is one of its, otherwise by SIGHUP."""
    from hmarl.runtime.reload import Reloader  # noqa: PLC0415

    reloader = Reloader(
        server.sessions, partial(_open, options), options.provider, options.like, server.telemetry.reloaded
    )
    descriptor = os.environ.pop(CONTROL_VARIABLE, None)
    if descriptor is not None:
        obey_fleet(reloader, int(descriptor))
    obey_hangups(reloader, None if descriptor is not None else options.bundle, signals.reload)


@command(
    "hmarl-agent",
    bundle_argument(),
    option("--agent", "the agent to serve", required=True, shown="ID", variable=True),
    option(
        "--like",
        "for one that was not trained: the interchangeable agent by whose graph it acts",
        shown="ID",
        variable=True,
    ),
    option(
        "--listen",
        "HOST:PORT (port 0: a free one) or unix:PATH",
        default=ServerSettings.listen,
        shown="ADDRESS",
        variable=True,
    ),
    option(
        "--frames",
        "serve frames on this Unix socket as well: the quick way for programs on this machine (docs/frames.md)",
        PATH,
        shown="PATH",
        variable=True,
    ),
    frames_allow_uid_option(),
    no_grpc_flag(),
    trust_option(variable=True),
    provider_option(),
    option(
        "--max-sessions", "episodes that may be open", integer(1), default=ServerSettings.max_sessions, variable=True
    ),
    option("--max-streams", "streams that may be open", integer(1), default=ServerSettings.max_streams, variable=True),
    option(
        "--session-ttl-s",
        "seconds after which an idle session ends",
        POSITIVE,
        default=ServerSettings.session_ttl_s,
        shown="SECONDS",
        variable=True,
    ),
    grace_option(),
    option("--core", "stay on this processor core: steadier and quicker answers", integer(), variable=True),
    log_level_option("info"),
    log_format_option(),
    metrics_option("serve Prometheus metrics there (extra 'metrics')"),
    traces_option(),
    flag("--reflection", "offer gRPC reflection also where others reach it"),
    flag("--no-reflection", "do not offer gRPC reflection"),
    oip_flag(),
    *record_options(),
    *security_options(),
    AS_JSON,
    examples=(
        "hmarl-agent models/simple-spread-hcpo --agent agent_0",
        "hmarl-agent bundle.zip --agent agent_1 --listen unix:/run/team/agent_1",
        "hmarl-agent bundle --agent agent_0 --frames /run/team/agent_0.frames --no-grpc",
    ),
)
def serve(**given: Any) -> int:
    """Serve one agent of a bundle, over gRPC unless told otherwise, until SIGTERM or Ctrl-C."""
    at_most_one(reflection=given["reflection"], no_reflection=given["no_reflection"])
    check_frames(given["frames"] is not None, given["no_grpc"], given["frames_allow_uid"], given)
    security = take_security(given, inherited_secret())
    record = take_recording(given)
    options = Options(**given, security=security, record=record)
    if options.core is not None:
        stay_on(options.core)  # before any thread is started
    signals = StopSignals()
    if PARENT_VARIABLE in os.environ:
        die_with_parent(int(os.environ[PARENT_VARIABLE]))
    start_logging(options.log_level, f"hmarl-agent {options.agent}", options.log_format, options.agent)
    server, policy, watch = _loaded(options)
    _obey_reloads(options, server, signals)
    _settle()
    ready = {"agent": options.agent, "address": server.address, **watch.ready}
    if server.frames_address is not None:
        ready["frames"] = server.frames_address
    if server.probe_address != server.address:
        ready["probe"] = server.probe_address  # for a supervisor, which knows the secret
    signals.patience(options.grace_s + _MORE_THAN_GRACE_S)
    OUTPUT.put(json.dumps(ready) if options.as_json else f"{options.agent} is serving on {server.where}")
    if policy.bundle.signed_by is not None:
        LOGGER.info("%s is signed by %s", policy.bundle.path, policy.bundle.signed_by)
    LOGGER.info("serving %s on %s with %s", policy.bundle.path, server.where, policy.execution_provider)
    if watch.url is not None:
        LOGGER.info("metrics on %s", watch.url)
    del policy  # a reload replaces it, and its memory is to be free then
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
    leave(run(serve, arguments))


if __name__ == "__main__":
    main()
