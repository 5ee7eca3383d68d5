"""How a running fleet is asked to serve another bundle: by SIGHUP, or by ``hmarl-fleet reload``."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

from hmarl.runtime.bundle import Bundle
from hmarl.runtime.commands._reloading import at_hangups
from hmarl.runtime.endpoints_file import EndpointsFile, marked
from hmarl.runtime.errors import HmarlError
from hmarl.runtime.fleet import Fleet
from hmarl.runtime.reload_door import ReloadDoor

LOGGER = logging.getLogger("hmarl.fleet")


class FleetReloads:
    """The ways in for those who want a fleet to serve another bundle.

    Args:
        fleet: which one.
        file: the endpoints file, which is kept right; None when there is none.
        load: opens and verifies a bundle, as when the fleet started.
        say: told how a reload goes that SIGHUP asked for.
    """

    def __init__(
        self, fleet: Fleet, file: EndpointsFile | None, load: Callable[[Path], Bundle], say: Callable[[str], None]
    ) -> None:
        self._fleet = fleet
        self._file = file
        self._load = load
        self._say = say
        self._door: ReloadDoor | None = None

    def open(self, hangups: threading.Event) -> None:
        """Take orders from now on.

        Args:
            hangups: set at each SIGHUP.
        """
        try:
            self._door = ReloadDoor(self._reload)
        except OSError as error:
            LOGGER.warning(
                "hmarl-fleet reload will not reach this fleet, SIGHUP will: no place for a socket: %s", error
            )
        at_hangups(hangups, self._reload_again)

    def close(self) -> None:
        """Take no more orders by the socket."""
        if self._door is not None:
            self._door.close()

    def description(self) -> dict[str, Any]:
        """What the endpoints file and ``--json`` tell: which bundle is served, where, and how to change that."""
        door = {} if self._door is None else {"control": str(self._door.path)}
        return {**self._fleet.description(), **door}

    def _reload_again(self) -> None:
        done = self._reload(None, self._say)
        self._say(f"all agents serve {done['bundle']} ({done['bundle_sha256']})")

    def _reload(self, path: Path | None, say: Callable[[str], None]) -> dict[str, Any]:
        self._fleet.reload(path, say, self._load)
        description = self.description()
        try:
            if self._file is not None:
                self._file.write(description)
        except (HmarlError, OSError) as error:  # the team has changed all the same
            LOGGER.error("the endpoints file still names the bundle before: %s", error)
            say(f"the endpoints file still names the bundle before: {error}")
        return marked(description)
