"""What a suite remembers of its runs from one command to the next: what became of them, and how long they took."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Literal

from hmarl.sdk.files import write_text
from hmarl.trainer.records.checkpoint import read_object
from hmarl.trainer.records.problems import CheckpointError, storing

Status = Literal["waiting", "running", "done", "cut off", "failed", "stopped"]


@dataclass
class Entry:
    """One run.

    Attributes:
        status: what became of it. ``cut off``: its own time was used up; it counts with what it had come to.
            ``stopped``: it was interrupted, and goes on.
        attempts: how often it was started, in a process of its own, by the command that goes on, or went on last.
        spent_s: how long it has been trained, in all.
        error: why it failed.
    """

    status: Status = "waiting"
    attempts: int = 0
    spent_s: float = 0.0
    error: str = ""


@dataclass
class Ledger:
    """All runs of a suite.

    Attributes:
        runs: by name.
        spent_s: how long the suite has gone on, in all.
        path: where it is kept; None keeps it nowhere.
    """

    runs: dict[str, Entry] = field(default_factory=dict)
    spent_s: float = 0.0
    path: Path | None = None

    @classmethod
    def read(cls, path: Path) -> Ledger:
        """The ledger at a path, an empty one where there is none.

        Raises:
            CheckpointError: damaged.
        """
        if not path.exists():
            return cls(path=path)
        content = read_object(path)
        try:
            runs = {name: Entry(**entry) for name, entry in content["runs"].items()}
            return cls(runs, float(content["spent_s"]), path)
        except (TypeError, KeyError, AttributeError) as error:
            known = ", ".join(each.name for each in fields(Entry))
            advice = f"expected runs with {known}; delete it: runs go on, and only their times are forgotten"
            raise CheckpointError(f"{path}: damaged ({error}); {advice}") from error

    def of(self, name: str) -> Entry:
        """A run's entry, made where there is none."""
        return self.runs.setdefault(name, Entry())

    def write(self) -> None:
        """Keep it.

        Raises:
            StorageError: it could not be written.
        """
        if self.path is None:
            return
        document = {"spent_s": self.spent_s, "runs": {name: asdict(entry) for name, entry in self.runs.items()}}
        with storing("then type the same command again"):
            write_text(self.path, json.dumps(document, indent=1) + "\n")
