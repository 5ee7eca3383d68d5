"""Virtual environments for packages of other people, which do not fit beside ours, and programs that are installed."""

from __future__ import annotations

import shutil
import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

import pytest

_KEPT = Path(__file__).parents[2] / "build" / "peers"


@pytest.fixture(scope="session")
def peer_python() -> Callable[[str, Sequence[str]], Path]:
    """Python of a virtual environment with other packages, by its name and their pinned requirements; made once.

    With ``beside_ours`` it also has all packages of ours, and hmarl: only what those lack is installed.
    """

    def made(name: str, requirements: Sequence[str], beside_ours: bool = False) -> Path:
        folder = _KEPT / name
        stamp, wanted = folder / ".requirements", "\n".join(requirements)
        if not stamp.exists() or stamp.read_text() != wanted:
            shutil.rmtree(folder, ignore_errors=True)
            subprocess.run([sys.executable, "-m", "venv", str(folder)], check=True)
            if beside_ours:
                (site,) = folder.glob("lib/python3.*/site-packages")
                ours = [path for path in sys.path if path and not path.startswith(sys.base_prefix)]
                (site / "ours.pth").write_text("\n".join(ours) + "\n")
            install = [str(folder / "bin" / "python"), "-m", "pip", "install", "--quiet", *requirements]
            subprocess.run(install, check=True)
            stamp.write_text(wanted)
        return folder / "bin" / "python"

    return made


@pytest.fixture(scope="session")
def installed_program() -> Callable[[str], str]:
    """The path of a program of the system; without it the test is skipped, with the reason."""

    def found(name: str) -> str:
        path = shutil.which(name)
        if path is None:
            pytest.skip(f"{name} is not installed: apt-get install {name}")
        return path

    return found
