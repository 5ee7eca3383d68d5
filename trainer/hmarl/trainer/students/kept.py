"""What a distillation keeps in RUN/students, so that it goes on bit for bit where it was cut off.

distillation.json            what it is of: the run's checkpoint and all settings
checkpoints/                 students, optimisers, random state and counters after the newest rounds
data/                        what was demonstrated in the newest rounds; gone when the distillation is done
metrics.jsonl, tensorboard/  one line a round
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

from torch import Tensor

from hmarl.runtime.bundle import remove_temporaries, replace_file
from hmarl.sdk.errors import UsageError
from hmarl.trainer.records.checkpoint import (
    Checkpoint,
    Counters,
    any_written,
    checkpoints_in,
    newest_checkpoint,
    prune,
    read_checkpoint,
    read_object,
    write_checkpoint,
)
from hmarl.trainer.records.problems import CheckpointError, storing
from hmarl.trainer.students.demonstrations import Demonstrations

# One round may turn out to be damaged.
_STATES = 2
_ANEW = "--restart-students discards them and distils anew"


class KeptDistillation:
    """The folder of one distillation.

    Args:
        folder: RUN/students.
        origin: what the distillation is of, as plain values under dotted names.
        kept_rounds: newest rounds whose data are learnt from.
        restart: discard what the folder holds.
    """

    def __init__(self, folder: Path, origin: Mapping[str, Any], kept_rounds: int, restart: bool = False) -> None:
        self.folder, self._origin, self._kept_rounds, self._restart = folder, dict(origin), kept_rounds, restart
        self._states, self._data = folder / "checkpoints", folder / "data"

    def load(self) -> tuple[Checkpoint, list[Demonstrations]] | None:
        """The newest round that is whole, and the data to go on from; None before the first, which begins here.

        Raises:
            UsageError: the folder holds a distillation of something else, and is not to be discarded.
            CheckpointError: what is there is damaged.
        """
        if self._restart:
            _delete(self.folder)
        description = self.folder / "distillation.json"
        if description.exists():
            self._check(description)
        else:
            with storing("then type the same command again"):
                replace_file(description, (json.dumps(self._origin, indent=1) + "\n").encode())
        for folder in (self.folder, self._states, self._data):
            remove_temporaries(folder)
        if not any_written(self._states):
            return None
        try:
            return self._read()
        except CheckpointError as error:
            raise CheckpointError(f"{error}; {_ANEW}") from error

    def _read(self) -> tuple[Checkpoint, list[Demonstrations]]:
        state = newest_checkpoint(self._states)
        frames = state.counters.steps // state.counters.update
        if not self._data.exists():  # all is done
            newest = checkpoints_in(self._states)[-1]
            if newest != state.path:
                raise CheckpointError(f"{newest}: damaged, and what its round learnt from is deleted")
            return state, []
        first = 1 + max(0, state.counters.update - self._kept_rounds)
        paths = [self._data / f"step-{n * frames:012d}.safetensors" for n in range(first, state.counters.update + 1)]
        return state, [Demonstrations(read_checkpoint(path).tensors) for path in paths]

    def _check(self, description: Path) -> None:
        """Refuse to go on with something else."""
        try:
            before = read_object(description)
        except CheckpointError as error:
            raise CheckpointError(f"{error}; {_ANEW}") from error
        now = json.loads(json.dumps(self._origin))  # tuples as lists
        differing = [
            f"{key}: got {now.get(key)!r}, begun with {before.get(key)!r}"
            for key in {**now, **before}
            if now.get(key) != before.get(key)
        ]
        if differing:
            raise UsageError(
                f"{self.folder} holds students that were distilled otherwise ({'; '.join(differing)}); {_ANEW}, and "
                "with what they were begun with they go on"
            )

    def save(self, state: Mapping[str, Tensor], newest: Demonstrations, counters: Counters) -> None:
        """Write a round: first what was demonstrated in it, then what was learnt."""
        with storing("then the same command goes on"):
            write_checkpoint(self._data, newest.tensors, counters)
            write_checkpoint(self._states, state, counters)
            prune(self._states, _STATES, counters.steps)
            prune(self._data, self._kept_rounds + _STATES - 1, counters.steps)

    def finish(self) -> None:
        """Delete the data, all at once: nothing more will be learnt."""
        _delete(self._data)


def begun_with(folder: Path, setting: str) -> Any:
    """A setting of the distillation that a folder holds; None where there is none, or it cannot be read."""
    with suppress(CheckpointError):
        return read_object(folder / "distillation.json").get(f"distillation.{setting}")
    return None


def _delete(folder: Path) -> None:
    """All at once, as far as can be seen under its name: half a folder would be taken for something else."""
    deleted = folder.with_name(f".{folder.name}")
    if deleted.exists():  # left by a kill
        shutil.rmtree(deleted, ignore_errors=True)
    if folder.exists():
        folder.replace(deleted)
        shutil.rmtree(deleted, ignore_errors=True)
