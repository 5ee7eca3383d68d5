"""A connection to Ray: one that is started in this process's machine, or a cluster that is joined.

Ray is imported here, and only once it is asked for.
"""

from __future__ import annotations

import logging
import math
import os
import re
import signal
import socket
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from hmarl.sdk.errors import HmarlError, MissingExtraError, UsageError

LOCAL, AUTO = "local", "auto"
_STARTS, _PATIENCE_MS = 3, 120_000
_HOST_AND_PORT = re.compile(r"[^\s:/]+:\d{1,5}|\[[0-9a-fA-F:]+\]:\d{1,5}")
# How long the cluster's head may be out of reach. After a minute Ray ends this process itself.
_OUT_OF_REACH_S, _CONNECT_S = 20.0, 5.0
_HEAD_S = 2.0  # from one look at it to the next: it may be far away, and every answer of a worker is preceded by one
# Ray leaves it to torch which devices there are; it is read in every process.
DEVICES_ARE_TORCHS = {"RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0"}
# And it reports to no server what it is used for.
_VARIABLES = {"RAY_USAGE_STATS_ENABLED": "0", **DEVICES_ARE_TORCHS}
_QUIET: dict[str, Any] = {"configure_logging": False, "logging_level": logging.ERROR, "log_to_driver": False}


class RayError(HmarlError):
    """Ray does not do what it is there for."""


def ray_module(purpose: str) -> Any:
    """Ray.

    Raises:
        MissingExtraError: it is not installed.
    """
    for name, value in _VARIABLES.items():  # read when it is imported
        os.environ.setdefault(name, value)
    try:
        import ray  # noqa: PLC0415 - part of the ray extra
    except ImportError as error:
        raise MissingExtraError(error.name or "ray", "ray", purpose) from error
    return ray


def checked_address(text: str) -> str:
    """What ``--ray`` says: ``local``, ``auto``, or HOST:PORT of a cluster.

    Raises:
        ValueError: something else.
    """
    if text not in (LOCAL, AUTO) and not _HOST_AND_PORT.fullmatch(text):
        raise ValueError(text)
    return text


@contextmanager
def ray_session(address: str, cpus: int | None = None) -> Iterator[Any]:
    """Ray, connected; a connection that this process has already is used, and kept.

    Args:
        address: see ``checked_address``.
        cpus: that a local Ray says it has; None: those of the machine.

    Raises:
        MissingExtraError: Ray is not installed.
        UsageError: no cluster is there.
        RayError: it does not start.
    """
    ray = ray_module("--ray")
    if ray.is_initialized():
        yield ray
        return
    with _signals_kept():
        _connect(ray, address, cpus)
    try:
        yield ray
    finally:
        with _signals_kept():
            ray.shutdown()


def _connect(ray: Any, address: str, cpus: int | None) -> None:
    if address == LOCAL:
        _start(ray, cpus)
        return
    try:
        ray.init(address=address, **_QUIET)
    except (ConnectionError, RuntimeError, ValueError) as error:
        raise UsageError(
            f"--ray: got {address}, found no Ray cluster there ({_told(error)}); expected one, see `ray start`, or "
            "--ray without an address for one of this machine alone"
        ) from error


def _start(ray: Any, cpus: int | None) -> None:
    """A Ray of this machine. Ray gives up after half a minute, which is too soon for a machine that is very busy.

    Raises:
        RayError: it does not start.
    """
    for attempt in range(_STARTS):
        try:
            ray.init(
                address=LOCAL,
                num_cpus=cpus,
                include_dashboard=False,
                _system_config={"agent_register_timeout_ms": _PATIENCE_MS},
                **_QUIET,
            )
            return
        except Exception as error:  # Ray raises nothing more special
            ray.shutdown()
            if attempt + 1 == _STARTS:
                raise RayError(f"--ray: Ray did not start in this machine ({_told(error)}); see /tmp/ray") from error


class Reach:
    """Whether the two parts of Ray answer without which this process has none: its machine's, and the cluster's head.

    Ray ends a process, at once and without a word, that asks a dead raylet for an object; and one whose head has been
    gone for a minute. So this is to be asked before.

    Args:
        ray: connected.
    """

    def __init__(self, ray: Any) -> None:
        context = ray.get_runtime_context()
        own = next(node for node in ray.nodes() if node["NodeID"] == context.get_node_id())
        host, _, port = context.gcs_address.rpartition(":")
        self._raylet = own["NodeManagerAddress"], int(own["NodeManagerPort"])
        self._head = host.strip("[]"), int(port)
        self._head_looked_at = -math.inf
        self._head_silent_since: float | None = None

    def check(self) -> None:
        """To be called before Ray is asked for anything.

        Raises:
            RayError: the machine's part is gone, which nothing brings back, or the head has been silent for a while.
        """
        if not _answers(self._raylet):
            raise RayError(f"--ray: {_gone('Ray in this machine (its raylet)', self._raylet)}")
        now = time.monotonic()
        if now - self._head_looked_at < _HEAD_S:
            return
        self._head_looked_at = now
        if _answers(self._head):
            self._head_silent_since = None
            return
        self._head_silent_since = now if self._head_silent_since is None else self._head_silent_since
        if now - self._head_silent_since >= _OUT_OF_REACH_S:
            raise RayError(f"--ray: {_gone('the head of the cluster (its GCS)', self._head)}")


def _answers(address: tuple[str, int]) -> bool:
    try:
        socket.create_connection(address, _CONNECT_S).close()
    except OSError:
        return False
    return True


def _gone(what: str, address: tuple[str, int]) -> str:
    return f"{what}, {address[0]}:{address[1]}, does not answer any more; Ray's logs in /tmp/ray may tell why"


def _told(error: Exception) -> str:
    return (str(error).strip() or type(error).__name__).splitlines()[0]


@contextmanager
def _signals_kept() -> Iterator[None]:
    """Ray takes SIGTERM for itself, which is ours."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    previous = signal.getsignal(signal.SIGTERM)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, previous)
