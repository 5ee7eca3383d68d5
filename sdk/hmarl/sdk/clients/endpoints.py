"""The endpoints file of a fleet: at which address which agent is served, and of which bundle."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from hmarl.sdk.errors import UsageError


def load_endpoints(path: Path | str) -> dict[str, str]:
    """Addresses by agent id from the file that ``hmarl-fleet`` writes.

    Raises:
        UsageError: the file is missing or is not an endpoints file.
    """
    agents = _document(path).get("agents")
    if not isinstance(agents, dict) or not agents:
        raise UsageError(f"endpoints file {path}: expected an object 'agents' of addresses by agent id")
    addresses = {}
    for name, entry in agents.items():
        address = entry.get("address") if isinstance(entry, dict) else entry
        if not isinstance(address, str):
            raise UsageError(f"endpoints file {path}: agents.{name}: got {address!r}, expected an address")
        addresses[str(name)] = address
    return addresses


def bundle_of_endpoints(path: Path | str) -> str | None:
    """SHA-256 of the manifest of the bundle that the fleet of an endpoints file serves; None where it does not say.

    Raises:
        UsageError: the file is missing or is not an endpoints file.
    """
    sha256 = _document(path).get("bundle_sha256")
    return sha256 if isinstance(sha256, str) else None


def _document(path: Path | str) -> dict[str, Any]:
    """The content of an endpoints file."""
    try:
        document = json.loads(Path(path).read_text(encoding="utf-8"))
    except OSError as error:
        raise UsageError(f"endpoints file {path}: {error.strerror}") from error
    except ValueError as error:
        raise UsageError(f"endpoints file {path}: not JSON: {error}") from error
    return document if isinstance(document, dict) else {}
