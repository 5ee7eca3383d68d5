"""A Ray of this machine for tests, which starts however busy the machine is."""

from __future__ import annotations

import os
import secrets
import signal
import socket
import tempfile
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

from hmarl.trainer.runs.ray_session import ray_module

PATIENT = {"worker_register_timeout_seconds": 300, "health_check_timeout_ms": 120_000}


def _free_ports(count: int) -> list[int]:
    with ExitStack() as open_sockets:
        sockets = [open_sockets.enter_context(socket.socket()) for _ in range(count)]
        for each in sockets:
            each.bind(("127.0.0.1", 0))
        return [each.getsockname()[1] for each in sockets]


def node(session: str, cpus: int, *, head: bool = False) -> dict[str, Any]:
    """What a node is started with.

    Ray gives its agents 15 seconds to write which ports they have found, and then gives up
    (ray-project/ray#65983): here they are known, and written, before.
    """
    metrics, runtime, export = _free_ports(3)
    name = secrets.token_hex(28)
    folder = Path(tempfile.gettempdir()) / "ray" / session
    folder.mkdir(parents=True, exist_ok=True)
    for of, port in (("dashboard_agent_listen", -1), ("metrics_export", export)):
        (folder / f"{of}_port_{name}").write_text(str(port))
    return {
        "num_cpus": cpus,
        "include_dashboard": False,
        "metrics_agent_port": metrics,
        "runtime_env_agent_port": runtime,
        "metrics_export_port": export,
        "env_vars": {"RAY_OVERRIDE_NODE_ID_FOR_TESTING": name},
        **({"session_name": session, "_system_config": PATIENT} if head else {}),
    }


def add_node(cluster: Any, cpus: int) -> Any:
    """A further node of a cluster."""
    return cluster.add_node(**node(cluster.head_node.session_name, cpus))


@contextmanager
def ray_cluster(*cpus: int) -> Iterator[Any]:
    """A cluster of nodes with so many CPUs, the head first; ``address`` is where it is."""
    ray_module("tests")
    from ray.cluster_utils import Cluster  # noqa: PLC0415 - once Ray is set up

    session = f"session_hmarl_{secrets.token_hex(4)}_{os.getpid()}"
    before = signal.getsignal(signal.SIGTERM)  # which a cluster takes for itself
    cluster = Cluster(initialize_head=True, head_node_args=node(session, cpus[0], head=True))
    try:
        for each in cpus[1:]:
            add_node(cluster, each)
        yield cluster
    finally:
        cluster.shutdown()
        signal.signal(signal.SIGTERM, before)
