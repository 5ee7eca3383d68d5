"""How an agent's process is asked to load another bundle: by SIGHUP, or by the fleet that it belongs to."""

from __future__ import annotations

import logging
import os
import socket
import threading
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hmarl.runtime import systemd
from hmarl.runtime.control import Channel
from hmarl.runtime.errors import HmarlError, UsageError

if TYPE_CHECKING:
    from hmarl.runtime.reload import Reloader
    from hmarl.runtime.session import Policy

LOGGER = logging.getLogger("hmarl.agent")


def at_hangups(requested: threading.Event, work: Callable[[], None]) -> None:
    """Do something whenever ``requested`` is set, in a thread of its own; asked for meanwhile, it is done once more."""

    def obey() -> None:
        while True:
            requested.wait()
            requested.clear()
            with systemd.reloading():
                try:
                    work()
                except HmarlError as error:
                    LOGGER.error("reload: nothing has changed: %s", error)
                except Exception:
                    LOGGER.exception("reload: nothing has changed")

    threading.Thread(target=obey, name="hmarl-reload", daemon=True).start()


def obey_hangups(reloader: Reloader, path: Path | None, requested: threading.Event) -> None:
    """Load the bundle at ``path`` again at each SIGHUP; None: the agent belongs to a fleet, and leaves it to that."""

    def reload() -> None:
        if path is None:
            raise UsageError("this agent belongs to a fleet, whose agents serve one bundle: send SIGHUP to the fleet")
        policy = reloader.prepare(path)
        if not reloader.switch(policy):
            LOGGER.info("reload: %s is served already (%s)", path, policy.bundle.sha256)

    at_hangups(requested, reload)


def obey_fleet(reloader: Reloader, descriptor: int) -> None:
    """Do what the fleet says over a socket that it has handed down."""
    os.set_inheritable(descriptor, False)
    channel = Channel(socket.socket(fileno=descriptor))
    member = _Member(reloader)

    def obey() -> None:
        while (order := channel.receive()) is not None:
            try:
                channel.send({"reload": order["reload"], **member.obey(order)})
            except OSError:
                return  # the fleet is gone

    threading.Thread(target=obey, name="hmarl-control", daemon=True).start()


class _Member:
    """What a member of a fleet does at each order, one after the other."""

    def __init__(self, reloader: Reloader) -> None:
        self._reloader = reloader
        self._ready: tuple[str, Policy] | None = None  # which reload it was prepared for

    def obey(self, order: dict[str, Any]) -> dict[str, Any]:
        """The reply to an order: empty when it was done, otherwise what was wrong."""
        ready, self._ready = self._ready, None
        try:
            if order["do"] == "prepare":
                self._ready = order["reload"], self._reloader.prepare(Path(order["path"]), order["sha256"])
            elif order["do"] == "switch":
                if ready is None or ready[0] != order["reload"]:
                    raise HmarlError("the bundle to switch to was not prepared")
                self._reloader.switch(ready[1])
        except HmarlError as error:
            return {"problem": str(error), "exit_code": error.exit_code}
        except Exception as error:
            LOGGER.exception("reload: nothing has changed")
            return {"problem": f"{type(error).__name__}: {error}", "exit_code": HmarlError.exit_code}
        return {}
