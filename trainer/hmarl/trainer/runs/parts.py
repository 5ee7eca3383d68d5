"""The parts of a run, put together."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from hmarl.trainer.records.checkpoint import Checkpoint
from hmarl.trainer.runs.config import RunConfig
from hmarl.trainer.runs.directory import checkpoint_folder
from hmarl.trainer.runs.evaluator import Evaluator
from hmarl.trainer.runs.iterations import Iterations
from hmarl.trainer.runs.saver import Saver
from hmarl.trainer.runs.training import MakeSource, Training, rollout_source


@dataclass(frozen=True)
class RunParts:
    """What a run is given, beside its configuration and its directory."""

    training: Training
    iterations: Iterations
    evaluator: Evaluator
    saver: Saver

    @classmethod
    def build(
        cls, config: RunConfig, directory: Path, start: Checkpoint | None, make_source: MakeSource = rollout_source
    ) -> RunParts:
        """All parts, standing where ``start`` was saved, or at the beginning; ``make_source`` says where rollouts come
        from.

        Raises:
            UsageError: algorithm and environment do not go together.
            CheckpointError: ``start`` is of another run.
        """
        settings, training = config.run_settings(), Training(config, make_source)
        try:
            if start is not None:
                training.load(start.tensors, start.counters.update)
            evaluator = Evaluator(config, directory, training.algorithm)
            saver = Saver(checkpoint_folder(directory), training, settings.checkpoints_kept)
            return cls(training, Iterations(training, settings), evaluator, saver)
        except BaseException:
            training.close()
            raise

    def close(self) -> None:
        """Free all environments."""
        self.training.close()
        self.evaluator.close()
