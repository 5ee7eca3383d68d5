"""TensorBoard's files of a run. They are there to be looked at: when they cannot be written, training goes on."""

from __future__ import annotations

import logging
import threading
from collections.abc import Mapping
from pathlib import Path
from typing import Any

_log = logging.getLogger(__name__)


class Board:
    """Writes scalars until that fails, and then no more.

    Args:
        folder: where to.
        purge_step: figures of this step and later ones, written before, no longer count; None for a new folder.

    Attributes:
        name: as users call it.
        problem: why nothing more is written, None while all is well.
    """

    def __init__(self, folder: Path, purge_step: int | None) -> None:
        self.name = "TensorBoard"
        self.problem: str | None = None
        self._folder = folder
        self._writer: Any = None
        # Its thread ends by the error that the next call raises; a traceback besides would tell nothing more.
        self._hook = threading.excepthook
        threading.excepthook = self._quietly
        try:
            from torch.utils.tensorboard import SummaryWriter  # noqa: PLC0415 - a broken one must not stop training

            self._writer = SummaryWriter(str(folder), purge_step=purge_step)
        except Exception as error:
            self._give_up(error)

    def log(self, figures: Mapping[str, float], steps: int) -> None:
        """Figures after so many steps."""
        try:
            for name, value in figures.items():
                if self._writer is not None:
                    self._writer.add_scalar(name, value, steps)
        except Exception as error:
            self._give_up(error)

    def close(self) -> None:
        """Write what is left."""
        if self._writer is not None:
            try:
                self._writer.flush()
                self._writer.close()
            except Exception as error:
                self._give_up(error)
        threading.excepthook = self._hook

    def _give_up(self, error: Exception) -> None:
        self._writer = None
        reason = (error.strerror if isinstance(error, OSError) else None) or f"{type(error).__name__}: {error}"
        self.problem = f"TensorBoard: {self._folder} could not be written ({reason}); metrics.jsonl has the figures"
        _log.warning("%s; training goes on", self.problem)

    def _quietly(self, failure: threading.ExceptHookArgs) -> None:
        if not type(failure.thread).__module__.startswith("tensorboard"):
            self._hook(failure)
