"""Runs hmarl's commands as a user does: with pipes, or in a terminal of so many columns."""

from __future__ import annotations

import fcntl
import os
import pty
import re
import struct
import subprocess
import sys
import termios
from pathlib import Path

TESTS = Path(__file__).parent


def command(program: str, *arguments: object) -> list[str]:
    """The words of a command line."""
    return [str(Path(sys.executable).with_name(program)), *map(str, arguments)]


def surroundings(path: Path | None = None, **variables: str) -> dict[str, str]:
    """The environment variables of a command that finds ``path`` and the toys beside this file."""
    kept = {
        key: value for key, value in os.environ.items() if key not in ("COLUMNS", "HMARL_DEBUG", "PYTHONIOENCODING")
    }
    folders = [*([] if path is None else [str(path)]), str(TESTS), *filter(None, [kept.get("PYTHONPATH")])]
    return {**kept, "TERM": "xterm-256color", "PYTHONPATH": os.pathsep.join(folders), **variables}


def run_in_pipes(program: str, *arguments: object, path: Path | None = None, **variables: str) -> tuple[int, str, str]:
    """Exit code, standard output and standard error, decoded as the command encoded them."""
    done = subprocess.run(
        command(program, *arguments), env=surroundings(path, **variables), capture_output=True, check=False, timeout=240
    )
    encoding = variables.get("PYTHONIOENCODING", "utf-8")
    return done.returncode, done.stdout.decode(encoding), done.stderr.decode(encoding)


def run_in_terminal(columns: int, program: str, *arguments: object, path: Path | None = None) -> tuple[int, list[str]]:
    """Exit code, and every line that was ever shown in a terminal so wide, without colours."""
    ours, theirs = pty.openpty()
    fcntl.ioctl(theirs, termios.TIOCSWINSZ, struct.pack("HHHH", 24, columns, 0, 0))
    process = subprocess.Popen(
        command(program, *arguments), stdin=theirs, stdout=theirs, stderr=theirs, env=surroundings(path)
    )
    os.close(theirs)
    shown = bytearray()
    while True:
        try:
            part = os.read(ours, 65536)
        except OSError:  # Linux's way to say that the last process with the terminal has ended
            break
        if not part:
            break
        shown += part
    os.close(ours)
    plain = re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", shown.decode())
    return process.wait(), [line for line in re.split(r"[\r\n]+", plain) if line.strip()]
