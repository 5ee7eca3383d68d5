"""Where the agents of a team are served: the endpoints file, which addresses refuse, and connecting to all at once."""

from __future__ import annotations

import contextlib
import os
import shlex
import stat
import threading
from collections.abc import Callable, Iterable, Mapping
from dataclasses import fields
from pathlib import Path
from typing import Any, TypeVar

import grpc

from hmarl.agent.v1.framing import SCHEME
from hmarl.agent.v1.status import Code
from hmarl.runtime.errors import one_line
from hmarl.runtime.plain_json import read_json
from hmarl.sdk.clients.frames_wire import connected
from hmarl.sdk.clients.link import channel_options
from hmarl.sdk.clients.operations import CallFailed
from hmarl.sdk.clients.security import Keys, Security, open_channel
from hmarl.sdk.clients.wires import is_frames
from hmarl.sdk.clock import now_s
from hmarl.sdk.errors import AgentError, UsageError

Result = TypeVar("Result")
FRAMES, GRPC = "frames", "grpc"
_LARGEST_BYTES = 2**24
_SHOWN = 100  # characters of what a file says
REFUSED_AFTER_S = 1.0  # an agent that is started again needs a moment
_READ_WITHIN_S = 60.0  # of the end of the wait, however busy the machine is
_READY, _FAILED = grpc.ChannelConnectivity.READY, grpc.ChannelConnectivity.TRANSIENT_FAILURE


def load_endpoints(path: Path | str, door: str | None = None) -> dict[str, str]:
    """Addresses by agent id from the file that ``hmarl-fleet`` writes.

    Args:
        path: of the file.
        door: ``frames`` or ``grpc``; None for frames where the fleet serves them and this program may use their
            sockets, unless the team is secured, else for gRPC.

    Raises:
        UsageError: the file is missing or is not an endpoints file, or the fleet has no such door.
    """
    if door not in (None, FRAMES, GRPC):
        raise UsageError(f"door: got {door!r}, expected '{FRAMES}', '{GRPC}' or None")
    document = endpoints_document(path)
    addresses, frames = _addresses(path, document, "agents"), {}
    if "frames" in document:
        frames = _addresses(path, document, "frames")
    usable = "security" not in document and frames.keys() == addresses.keys() and all(map(_usable, frames.values()))
    if door == FRAMES or (door is None and usable and frames):
        addresses = {**addresses, **frames}
    wrong = [name for name, address in addresses.items() if door is not None and is_frames(address) != (door == FRAMES)]
    if wrong:
        got, advice = addresses[wrong[0]], "with --frames-dir" if door == FRAMES else "without --no-grpc"
        raise UsageError(
            f"endpoints file {path}: agents.{one_line(wrong[0], _SHOWN)}: got {one_line(got, _SHOWN)}, expected an "
            f"address for {door}: start the fleet {advice}"
        )
    return addresses


def _usable(address: str) -> bool:
    """Whether the socket of an address is on this machine, and this program's user may connect to it."""
    path = address.removeprefix(SCHEME)
    try:
        return stat.S_ISSOCK(os.stat(path).st_mode) and os.access(path, os.R_OK | os.W_OK)
    except (OSError, ValueError):
        return False


def _addresses(path: Path | str, document: Mapping[str, Any], what: str) -> dict[str, str]:
    agents = document.get(what)
    if not isinstance(agents, dict) or not agents:
        raise UsageError(f"endpoints file {path}: expected an object '{what}' of addresses by agent id")
    addresses = {}
    for name, entry in agents.items():
        address = entry.get("address") if isinstance(entry, dict) else entry
        if not isinstance(address, str):
            shown, got = one_line(name, _SHOWN), one_line(repr(address), _SHOWN)
            raise UsageError(f"endpoints file {path}: {what}.{shown}: got {got}, expected an address")
        addresses[name] = address
    return addresses


def bundle_of_endpoints(path: Path | str) -> str | None:
    """SHA-256 of the manifest of the bundle that the fleet of an endpoints file serves; None where it does not say.

    Raises:
        UsageError: the file is missing or is not JSON.
    """
    sha256 = endpoints_document(path).get("bundle_sha256")
    return sha256 if isinstance(sha256, str) else None


def load_security(path: Path | str) -> Security | None:
    """How to reach the agents of an endpoints file: the authority, the client certificate and the token of its fleet.

    The content of a token file is shown to whatever serves at the file's addresses. So one is named only by a fleet
    that runs on this machine, as this user, as root or as the token's owner: it holds a lock on its endpoints file,
    which a copy or a download has not. Of a certificate's key nothing is shown.

    Returns:
        None where its agents are served in plaintext.

    Raises:
        UsageError: the file is missing or is not an endpoints file, or may not name a token.
    """
    said = endpoints_document(path).get("security")
    if said is None:
        return None
    known = {field.name for field in fields(Security)}
    if not isinstance(said, dict) or not set(said) <= known or not all(isinstance(each, str) for each in said.values()):
        raise UsageError(f"endpoints file {path}: security: expected an object of texts: {', '.join(sorted(known))}")
    token_file = said.get("token_file")
    if token_file is not None and not _may_name(path, token_file):
        raise UsageError(
            f"endpoints file {path}: security.token_file: got '{one_line(token_file, _SHOWN)}', expected the file of a "
            "fleet that runs on this machine, since the token is shown to its addresses: has that fleet ended, or is "
            "it a copy? If you trust it, give the clients Security(token_file=...) in its place"
        )
    return Security(**said)


def _may_name(path: Path | str, token_file: str) -> bool:
    """Whether a running fleet has written an endpoints file, of a user who may say to whom the token is shown."""
    import fcntl  # noqa: PLC0415 - not on all systems; where it is missing there are no fleets

    try:
        while True:
            with Path(path).open("rb") as stream:
                found = os.fstat(stream.fileno())
                try:
                    fcntl.flock(stream, fcntl.LOCK_SH | fcntl.LOCK_NB)
                except BlockingIOError:
                    return found.st_uid in (os.geteuid(), 0) or found.st_uid == os.stat(token_file).st_uid
            if os.path.samestat(found, os.stat(path)):  # else the fleet has just replaced it
                return False
    except (OSError, ValueError):
        return False


def endpoints_document(path: Path | str) -> dict[str, Any]:
    """The content of an endpoints file.

    Raises:
        UsageError: the file is missing or is not JSON.
    """
    try:
        with Path(path).open("rb") as stream:
            content = stream.read(_LARGEST_BYTES + 1)
        if len(content) > _LARGEST_BYTES:
            raise ValueError(f"got more than {_LARGEST_BYTES:,} bytes, expected a list of addresses")
        document = read_json(content)
    except OSError as error:
        advice = "; hmarl-fleet BUNDLE --out FILE writes it once all agents serve, and removes it when it stops"
        missing = isinstance(error, FileNotFoundError)
        raise UsageError(f"endpoints file {path}: {error.strerror}{advice if missing else ''}") from error
    except ValueError as error:
        raise UsageError(f"endpoints file {path}: {one_line(error)}") from error
    return document if isinstance(document, dict) else {}


def refusing(
    addresses: Mapping[str, str], security: Security | None = None, limit_s: float = REFUSED_AFTER_S
) -> list[str]:
    """The agents at whose addresses nothing listens; a client would wait for them to be started.

    Where a connection is neither made nor refused in time, an agent may be there: it is not among them.

    Args:
        addresses: by agent id.
        security: how to connect.
        limit_s: seconds that all of them together get.

    Raises:
        AgentError: something listens, but no call will get through, because of how the client or the agent is set up.
    """
    frames = {name: address for name, address in addresses.items() if is_frames(address)}
    absent = [name for name, address in frames.items() if _nothing_at(address)]
    others = {name: address for name, address in addresses.items() if name not in frames}
    absent += _refused_by_grpc(others, security, limit_s) if others else []
    return [name for name in addresses if name in absent]


def _nothing_at(address: str) -> bool:
    """Whether no agent listens at a socket.

    Raises:
        AgentError: no call will get through.
    """
    try:
        connected(address.removeprefix(SCHEME)).close()
    except CallFailed as failure:
        if failure.code is Code.UNAVAILABLE:
            return True
        raise AgentError(f"{address}: connecting: {failure.details}") from failure
    return False


def _refused_by_grpc(addresses: Mapping[str, str], security: Security | None, limit_s: float) -> list[str]:
    changed = threading.Condition()
    seen: dict[str, set[grpc.ChannelConnectivity]] = {name: set() for name in addresses}

    def told(name: str, state: grpc.ChannelConnectivity) -> None:
        with changed:
            seen[name].add(state)
            changed.notify()

    def waiting() -> set[str]:
        return {name for name, states in seen.items() if _READY not in states}

    with contextlib.ExitStack() as channels:
        for name, address in addresses.items():
            channel = channels.enter_context(_channel(address, security, limit_s))
            channel.subscribe(lambda state, name=name: told(name, state), try_to_connect=True)
        deadline = now_s() + limit_s
        with changed:
            changed.wait_for(lambda: not waiting(), max(deadline - now_s(), 0.0))
            absent = [name for name in addresses if name in waiting() and _FAILED in seen[name]]
    for name in absent:
        _raise_if_unfit(addresses[name], security, limit_s)
    return absent


def _channel(address: str, security: Security | None, limit_s: float) -> grpc.Channel:
    # An attempt that times out looks like one that was refused: none may do so before the answer is read.
    options = channel_options(address, limit_s + _READ_WITHIN_S)
    if security is None:
        return open_channel(address, options, None)
    keys = Keys(security, address)
    return open_channel(address, (*options, *keys.channel_options), keys.channel_credentials())


def _raise_if_unfit(address: str, security: Security | None, limit_s: float) -> None:
    from hmarl.sdk.clients.tls_trouble import why_unreachable  # noqa: PLC0415 - in trouble only

    why = why_unreachable(address, security, limit_s)
    if why is not None:
        raise AgentError(f"{address}: connecting: {why}")


def nothing_listens(absent: Iterable[str], addresses: Mapping[str, str], advice: str) -> AgentError:
    """The error that names all addresses at which nothing listens, and what to start."""
    where = ", ".join(f"{addresses[name]} ({name})" for name in absent)
    return AgentError(f"endpoints: nothing listens at {where}; {advice}")


def at_once(work: Callable[[str], Result], names: Iterable[str]) -> dict[str, Result]:
    """Do something for all agents at the same time.

    Raises:
        AgentError: some agents do not answer; names all of them.
        HmarlError: what else went wrong.
    """
    results: dict[str, Result] = {}
    errors: dict[str, Exception] = {}

    def run(name: str) -> None:
        try:
            results[name] = work(name)
        except Exception as error:
            errors[name] = error

    # Daemons: Ctrl-C does not wait for agents that do not answer.
    named = list(names)
    threads = [threading.Thread(target=run, args=(name,), name="hmarl-connect", daemon=True) for name in named]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    failed = [errors[name] for name in named if name in errors]
    for error in failed:
        if len(failed) == 1 or not isinstance(error, AgentError):
            raise error
    if failed:
        raise AgentError("; ".join(map(str, failed))) from failed[0]
    return {name: results[name] for name in named}


def start_advice(endpoints: Mapping[str, str] | Path | str) -> str:
    """What to start when no agent is there."""
    if isinstance(endpoints, Mapping):
        return "start 'hmarl-agent' or 'hmarl-fleet' there"
    bundle = shlex.quote(str(endpoints_document(endpoints).get("bundle", "BUNDLE")))
    return f"has the fleet ended? start it: hmarl-fleet {bundle} --out {shlex.quote(str(endpoints))}"
