"""What a training program has reached when: by the clock, and by the processor time of all its processes."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

_TICK_S = 1 / os.sysconf("SC_CLK_TCK")


@dataclass(frozen=True)
class Reached:
    """What a program says of itself.

    Attributes:
        frames: environment steps so far.
        result: mean return.
        aside_s: of the clock, spent so far on what is not to count.
        aside_processor_s: the same of the processor.
    """

    frames: int
    result: float
    aside_s: float = 0.0
    aside_processor_s: float = 0.0


@dataclass(frozen=True)
class Point:
    """When it had been reached, in seconds from the program's start."""

    frames: int
    result: float
    wall_s: float
    processor_s: float


def processor_s(session: int) -> float:
    """User and system time of all processes of a session, those that have ended included."""
    ticks = 0
    for entry in Path("/proc").iterdir():
        if entry.name.isdecimal():
            try:
                fields = (entry / "stat").read_text().rpartition(")")[2].split()
            except (FileNotFoundError, ProcessLookupError):
                continue
            if int(fields[3]) == session:
                ticks += sum(map(int, fields[11:15]))
    return ticks * _TICK_S


def whole_lines(path: Path) -> list[str]:
    """Those lines of a file that are whole, while more may be being written."""
    text = path.read_text() if path.exists() else ""
    return text[: text.rfind("\n") + 1].splitlines()


def json_rows(path: Path) -> list[dict[str, Any]]:
    """The JSON objects with which lines of a file end; other output may stand before them."""
    return [json.loads(line[line.index('{"') :]) for line in whole_lines(path) if '{"' in line]


def paced(
    command: Sequence[str],
    output: Path,
    reached: Callable[[], Sequence[Reached]],
    enough: Callable[[Point], bool],
    environment: Mapping[str, str] | None = None,
) -> list[Point]:
    """Run a program until it has reached enough, or has ended; then it is killed with all its processes.

    Args:
        command: of the program.
        output: file that takes its output; points are kept beside it, as JSON.
        reached: all that it has reached so far.
        enough: whether to stop at a point.
        environment: variables beside those of this process.
    """
    points: list[Point] = []
    kept = output.with_suffix(".points.jsonl")
    begin = time.perf_counter()
    with output.open("w") as file:
        process = subprocess.Popen(
            command,
            stdin=subprocess.DEVNULL,
            stdout=file,
            stderr=subprocess.STDOUT,
            env={**os.environ, **(environment or {})},
            start_new_session=True,
        )
    try:
        ended = False
        while not ended and not any(map(enough, points[-1:])):
            time.sleep(0.05)
            ended = process.poll() is not None
            for row in reached()[len(points) :]:
                wall_s, spent_s = time.perf_counter() - begin, processor_s(process.pid)
                points.append(Point(row.frames, row.result, wall_s - row.aside_s, spent_s - row.aside_processor_s))
                kept.write_text("".join(f"{json.dumps(asdict(point))}\n" for point in points))
                if enough(points[-1]):
                    break
    finally:
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()
    assert points, f"{command[0]} ended before it had reached anything: {output.read_text()[-2000:]}"
    return points


def first(points: Sequence[Point], target: float) -> Point | None:
    """The first point at which a return was reached."""
    return next((point for point in points if point.result >= target), None)
