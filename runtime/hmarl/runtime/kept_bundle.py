"""The bundle that a fleet serves, kept so that a member can be started again whatever lies at its path by then."""

from __future__ import annotations

import contextlib
import os
from pathlib import Path

from hmarl.runtime._files import zip_bytes
from hmarl.runtime._source import open_source
from hmarl.runtime.bundle import SIGNATURE, SIGNATURE_LIMIT_BYTES, Bundle, open_bundle, read_checked
from hmarl.runtime.errors import BundleError

LARGEST_BYTES = 2**28  # of which a copy is kept; of larger ones only the path


class KeptBundle:
    """A verified bundle, and a copy of its files that the kernel frees when this process ends (Linux).

    Args:
        bundle: which one. Who starts with the copy verifies it as any other.

    Attributes:
        bundle: the same.
    """

    def __init__(self, bundle: Bundle) -> None:
        self.bundle = bundle
        self._copy = _copied(bundle)
        self._refused = False

    @property
    def path(self) -> Path:
        """Where it is found now: where it was loaded from, or the copy when that is another one or gone."""
        lies_at = self.bundle.path.absolute()
        if self._copy is None:
            return lies_at
        if not self._refused:
            with contextlib.suppress(BundleError, OSError):
                open_bundle(lies_at, self.bundle.sha256)
                return lies_at
        return Path(f"/proc/{os.getpid()}/fd/{self._copy}")

    def refuse_path(self) -> None:
        """Take the copy alone from now on: who looked at all that lies at the path, signature included, refused it."""
        self._refused = True

    def close(self) -> None:
        """Give the copy up; a second call does nothing."""
        descriptor, self._copy = self._copy, None
        if descriptor is not None:
            os.close(descriptor)


def _copied(bundle: Bundle) -> int | None:
    """A descriptor of a zip in memory; None where there can be none, or it would be too large."""
    if not hasattr(os, "memfd_create"):
        return None
    files, left = {}, LARGEST_BYTES
    try:
        with open_source(bundle.path) as source:
            for name, sha256 in bundle.digests.items():
                files[name] = read_checked(source, bundle.path, name, sha256)
                left -= len(files[name])
                if left < 0:
                    return None
            with contextlib.suppress(KeyError):  # it is unsigned
                files[SIGNATURE] = source.read(SIGNATURE, SIGNATURE_LIMIT_BYTES)
        descriptor = os.memfd_create("hmarl-bundle")
    except (BundleError, OSError):  # it has changed since it was verified, or there is no memory
        return None
    try:
        with open(descriptor, "wb", closefd=False) as stream:
            stream.write(zip_bytes(files))
    except OSError:
        with contextlib.suppress(OSError):
            os.close(descriptor)
        return None
    return descriptor
