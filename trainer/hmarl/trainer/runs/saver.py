"""A run's checkpoints: saving, completing by an evaluation, deleting old ones."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from hmarl.trainer.records.checkpoint import (
    Counters,
    checkpoint_path,
    mark_best,
    newest_path,
    prune,
    reopen_checkpoint,
    settle_checkpoint,
    write_checkpoint,
)
from hmarl.trainer.records.problems import storing
from hmarl.trainer.runs.training import Training


class Saver:
    """Keeps a training in a folder of checkpoints.

    Args:
        folder: RUN/checkpoints.
        training: what is kept.
        kept: how many, the best one apart.
    """

    def __init__(self, folder: Path, training: Training, kept: int) -> None:
        self.folder, self._training, self._kept = folder, training, kept

    def cost(self) -> dict[str, float]:
        """What saving costs, as a metric: episodes that begin anew where the environments cannot be saved."""
        if self._training.saves_environments:
            return {}
        return {"environments_truncated": float(self._training.environments)}

    def save(self, counters: Counters, pending: Mapping[str, float] | None) -> None:
        """Write a checkpoint now.

        Environments whose state cannot be saved begin anew, so that the unbroken run goes on as a resumed one will.

        Args:
            counters: where the run stands.
            pending: the update's metrics where its evaluation is still to be done.

        Raises:
            StorageError: it could not be written.
        """
        if not self._training.saves_environments:
            self._training.restart_environments(counters.update)
        with storing():
            write_checkpoint(self.folder, self._training.tensors(), counters, pending)
        if pending is None:
            prune(self.folder, self._kept, counters.steps)

    def reopen(self, counters: Counters, pending: Mapping[str, float]) -> None:
        """The newest one is to be evaluated after all.

        Args:
            counters: where the run stands.
            pending: the update's metrics.

        Raises:
            StorageError: it could not be written.
        """
        with storing():
            reopen_checkpoint(checkpoint_path(self.folder, counters.steps), counters, pending)

    def settle(self, counters: Counters, best: bool) -> None:
        """The newest one has been evaluated.

        Args:
            counters: with what the evaluation changed.
            best: whether none before it was as good.

        Raises:
            StorageError: it could not be written.
        """
        path = checkpoint_path(self.folder, counters.steps)
        with storing():
            if best and counters.best_return is not None:
                mark_best(self.folder, path, counters.best_return)
            # This one last: until then a resumed run does all of it again.
            settle_checkpoint(path, counters)
            prune(self.folder, self._kept, counters.steps)

    def newest(self) -> str | None:
        """The name of the newest one that is whole, None where there is none."""
        path = newest_path(self.folder)
        return None if path is None else path.stem
