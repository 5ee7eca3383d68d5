"""Where the agents of a team are served: the endpoints file, which addresses refuse, and connecting to all at once."""

from __future__ import annotations

import contextlib
import shlex
import threading
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any, TypeVar

import grpc

from hmarl.runtime.errors import one_line
from hmarl.runtime.plain_json import read_json
from hmarl.sdk.clients.link import channel_options
from hmarl.sdk.clock import now_s
from hmarl.sdk.errors import AgentError, UsageError

Result = TypeVar("Result")
_LARGEST_BYTES = 2**24
_SHOWN = 100  # characters of what a file says
REFUSED_AFTER_S = 1.0  # an agent that is started again needs a moment
_READY, _FAILED = grpc.ChannelConnectivity.READY, grpc.ChannelConnectivity.TRANSIENT_FAILURE


def load_endpoints(path: Path | str) -> dict[str, str]:
    """Addresses by agent id from the file that ``hmarl-fleet`` writes.

    Raises:
        UsageError: the file is missing or is not an endpoints file.
    """
    agents = endpoints_document(path).get("agents")
    if not isinstance(agents, dict) or not agents:
        raise UsageError(f"endpoints file {path}: expected an object 'agents' of addresses by agent id")
    addresses = {}
    for name, entry in agents.items():
        address = entry.get("address") if isinstance(entry, dict) else entry
        if not isinstance(address, str):
            shown, got = one_line(name, _SHOWN), one_line(repr(address), _SHOWN)
            raise UsageError(f"endpoints file {path}: agents.{shown}: got {got}, expected an address")
        addresses[name] = address
    return addresses


def bundle_of_endpoints(path: Path | str) -> str | None:
    """SHA-256 of the manifest of the bundle that the fleet of an endpoints file serves; None where it does not say.

    Raises:
        UsageError: the file is missing or is not JSON.
    """
    sha256 = endpoints_document(path).get("bundle_sha256")
    return sha256 if isinstance(sha256, str) else None


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
        raise UsageError(f"endpoints file {path}: {error.strerror}") from error
    except ValueError as error:
        raise UsageError(f"endpoints file {path}: {one_line(error)}") from error
    return document if isinstance(document, dict) else {}


def refusing(addresses: Mapping[str, str], limit_s: float = REFUSED_AFTER_S) -> list[str]:
    """The agents at whose addresses nothing listens; a client would wait for them to be started.

    Where a connection is neither made nor refused in time, an agent may be there: it is not among them.

    Args:
        addresses: by agent id.
        limit_s: seconds that all of them together get.
    """
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
            channel = channels.enter_context(grpc.insecure_channel(address, channel_options(address, limit_s)))
            channel.subscribe(lambda state, name=name: told(name, state), try_to_connect=True)
        deadline = now_s() + limit_s
        with changed:
            changed.wait_for(lambda: not waiting(), max(deadline - now_s(), 0.0))
            return [name for name in addresses if name in waiting() and _FAILED in seen[name]]


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
