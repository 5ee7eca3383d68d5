"""Processes without a network."""

from __future__ import annotations

import shutil
import subprocess

import pytest

ISOLATED = ["unshare", "--net"]


def needs_isolation() -> None:
    """Skip where this user may make no network namespaces, which containers often forbid."""
    if (
        shutil.which("unshare") is None
        or subprocess.run([*ISOLATED, "true"], capture_output=True, check=False).returncode
    ):
        pytest.skip("network namespaces cannot be made here (unshare --net)")
