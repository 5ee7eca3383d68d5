"""How much is recorded, and for how long it is kept. Imports nothing, so that a command can say the defaults."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

MIB = 2**20


@dataclass(frozen=True)
class RecordSettings:
    """Where and how much one agent or client records.

    Attributes:
        folder: holds a folder for each agent or client, which in turn holds its files.
        total_mb: MiB that the files of one agent may take; the oldest are deleted.
        file_mb: MiB after which a new file is begun; never more than a quarter of ``total_mb``.
        keep_s: seconds for which files are kept.
        flush_s: seconds after which what was recorded is written at the latest; as much may be lost by ``kill -9``.
        queue_mb: MiB that may wait to be written; what is more is left out, and the gap is recorded.
    """

    folder: Path
    total_mb: float = 1024.0
    file_mb: float = 64.0
    keep_s: float = 7 * 24 * 3600.0
    flush_s: float = 0.25
    queue_mb: float = 32.0

    @property
    def total_bytes(self) -> int:
        """What the files may take together."""
        return int(self.total_mb * MIB)

    @property
    def file_bytes(self) -> int:
        """What one of them may take."""
        return int(min(self.file_mb, self.total_mb / 4) * MIB)
