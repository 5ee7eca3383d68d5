"""Where the bundles of a zoo are: a folder, an address on the web, an account of the Hugging Face Hub."""

from __future__ import annotations

import os
import stat
from http.client import HTTPException
from pathlib import Path
from typing import Protocol
from urllib.error import HTTPError
from urllib.parse import quote, urlsplit
from urllib.request import Request, urlopen

from hmarl.runtime import __version__
from hmarl.runtime.errors import one_line
from hmarl.sdk.errors import HmarlError, UsageError

HUB = "hf:"
_WEB = ("http", "https")
_TIMEOUT_S = 30.0


class Place(Protocol):
    """Whatever has bundles by name."""

    @property
    def shown(self) -> str:
        """What users call it."""

    def read(self, bundle: str, file: str, limit: int) -> bytes:
        """The content of a file of a bundle, or of the place itself where ``bundle`` is empty.

        Args:
            bundle: its name.
            file: a plain relative POSIX path.
            limit: bytes that it may have; no more than one beyond that are read.

        Raises:
            FileNotFoundError: it is not there.
            HmarlError: it cannot be read, or is larger.
        """


def too_large(shown: str, limit: int) -> HmarlError:
    """What is said of a file that is larger than it may be."""
    return HmarlError(
        f"{shown}: got more than {limit:,} bytes, expected at most that; --limit-mb allows larger bundles"
    )


class FolderPlace:
    """Bundles that are directories of a folder.

    Args:
        path: the folder.
    """

    def __init__(self, path: Path) -> None:
        self._path = path

    @property
    def shown(self) -> str:
        """See ``Place``."""
        return str(self._path)

    def read(self, bundle: str, file: str, limit: int) -> bytes:
        """See ``Place``."""
        path = self._path / bundle / file
        try:
            with open(path, "rb", opener=_without_waiting) as stream:
                if not stat.S_ISREG(os.fstat(stream.fileno()).st_mode):
                    raise HmarlError(f"{path}: got no plain file, expected one")
                content = stream.read(limit + 1)
        except (FileNotFoundError, NotADirectoryError):
            raise FileNotFoundError(str(path)) from None
        except OSError as error:
            raise HmarlError(f"{path}: cannot be read: {error.strerror}") from error
        if len(content) > limit:
            raise too_large(str(path), limit)
        return content


class WebPlace:
    """Bundles that a web server has as folders, file by file.

    Args:
        address: of the folder, http or https.
    """

    def __init__(self, address: str) -> None:
        self._address = address.rstrip("/")

    @property
    def shown(self) -> str:
        """See ``Place``."""
        return self._address

    def read(self, bundle: str, file: str, limit: int) -> bytes:
        """See ``Place``."""
        address = "/".join([self._address, *filter(None, [quote(bundle)]), quote(file)])
        try:
            request = Request(address, headers={"User-Agent": f"hmarl/{__version__}"})
            with urlopen(request, timeout=_TIMEOUT_S) as answer:
                if urlsplit(answer.url).scheme not in _WEB:
                    raise HmarlError(f"{address}: got sent on to {one_line(answer.url)}, expected http or https")
                content = bytes(answer.read(limit + 1))
        except HTTPError as error:
            if error.code in (404, 410):
                raise FileNotFoundError(address) from None
            why = one_line(error.reason)
            raise HmarlError(f"{address}: got HTTP status {error.code} {why}, expected the file") from error
        except (OSError, ValueError, HTTPException) as error:  # the network; an answer that is no HTTP
            why = one_line(getattr(error, "reason", error)) or type(error).__name__
            raise HmarlError(f"{address}: cannot be fetched: {why}") from error
        if len(content) > limit:
            raise too_large(address, limit)
        return content


def open_place(text: str, named: str) -> Place:
    """The place that a text means.

    Args:
        text: a folder, an http or https address, or ``hf:OWNER``.
        named: the option that it was given to.

    Raises:
        UsageError: it is none of these.
    """
    if text.startswith(HUB):
        from hmarl.sdk.zoo.hub import HubPlace  # noqa: PLC0415 - needs an extra

        return HubPlace(text.removeprefix(HUB), named)
    if "://" in text:
        return web_place(text, named, f"a folder, an http or https address, or {HUB}OWNER")
    path = Path(text)
    if not path.is_dir():
        raise UsageError(f"{named}: got {text}, which is no folder here; expected one, an address, or {HUB}OWNER")
    return FolderPlace(path)


def web_place(address: str, named: str, expected: str) -> WebPlace:
    """The place that an address means.

    Args:
        address: of a folder.
        named: as of ``open_place``.
        expected: there, in words.

    Raises:
        UsageError: it is of another kind than http and https, or no address.
    """
    try:
        parts = urlsplit(address)
        good = parts.scheme in _WEB and bool(parts.hostname) and (parts.port or 1) > 0
    except ValueError:  # brackets or a port that are none
        good = False
    if not good or not address.isprintable() or " " in address:
        raise UsageError(f"{named}: got {address}, expected {expected}")
    return WebPlace(address)


def _without_waiting(path: str, flags: int) -> int:
    """Opens a FIFO that has no writer as well, to be refused."""
    return os.open(path, flags | os.O_NONBLOCK | os.O_CLOEXEC)
