"""A pipe that nothing reads and that is full, as that of a log collector that hangs."""

from __future__ import annotations

import os
from types import TracebackType
from typing import Self


class FullPipe:
    """``writer`` is for a process to inherit."""

    def __init__(self) -> None:
        self.reader, self.writer = os.pipe()
        os.set_blocking(self.writer, False)
        try:
            while True:
                os.write(self.writer, b"." * 4096)
        except BlockingIOError:
            os.set_blocking(self.writer, True)

    def read_to_the_end(self) -> str:
        """Everything, once all processes that had the writer have ended."""
        os.close(self.writer)
        self.writer = -1
        with open(self.reader, encoding="utf-8", closefd=False) as stream:
            return stream.read()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        for descriptor in (self.reader, self.writer):
            if descriptor >= 0:
                os.close(descriptor)
