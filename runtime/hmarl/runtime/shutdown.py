"""An end within bounds, whatever a library does."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import grpc

LOGGER = logging.getLogger("hmarl.agent")
SERVER_LIMIT_S = 2.0


def within(limit_s: float, work: Callable[[], Any]) -> bool:
    """Do something that may never come back in a thread of its own, and say whether it was done in time.

    What it raises is logged. The thread does not keep the process alive.
    """
    done = threading.Event()

    def run() -> None:
        try:
            work()
        except Exception:
            LOGGER.exception("while ending")
        finally:
            done.set()

    threading.Thread(target=run, name="ending", daemon=True).start()
    return done.wait(limit_s)


def stop_server(server: grpc.Server, grace_s: float) -> None:
    """Stop a gRPC server. Its own ``stop`` waits for calls that may never end, and may not come back itself."""
    if not within(grace_s + SERVER_LIMIT_S, lambda: server.stop(grace_s).wait()):
        LOGGER.warning("gRPC has not stopped after %g s, going on without it", grace_s + SERVER_LIMIT_S)
