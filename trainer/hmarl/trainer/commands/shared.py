"""What the trainer's commands share."""

from __future__ import annotations

import logging
import os
import sys
import threading
from typing import Any

from hmarl.sdk.commands._console import make_console
from hmarl.sdk.errors import MissingExtraError


def need_torch(purpose: str) -> None:
    """Load the trainer's packages; raise the error that names the extra when they are missing."""
    # OpenMP's threads spin while they wait: the default spins so long that a machine that is shared grinds to a halt,
    # none at all halves the speed of one that is not.
    os.environ.setdefault("GOMP_SPINCOUNT", "5000")
    console = make_console(stderr=True)
    # A terminal is told at once; in a log that only matters when it takes long.
    patience_s = 0.0 if console.is_terminal else 2.0
    notice = threading.Timer(patience_s, console.print, [f"{purpose}: loading PyTorch"])
    notice.daemon = True
    notice.start()
    try:
        import onnx  # noqa: F401
        import safetensors  # noqa: F401
        import torch  # noqa: F401
    except ModuleNotFoundError as error:
        raise MissingExtraError(error.name or "torch", "train", purpose) from error
    finally:
        notice.cancel()


class _StandardError(logging.StreamHandler[Any]):
    """Logs to what standard error is at the moment: while a progress bar is shown, lines go above it."""

    def __init__(self) -> None:
        super().__init__()
        self.stream = sys.stderr

    def emit(self, record: logging.LogRecord) -> None:
        """Write one record."""
        self.stream = sys.stderr
        super().emit(record)


def log_to_standard_error() -> None:
    """Warnings on standard error, above a progress bar where there is one."""
    logging.basicConfig(level=logging.WARNING, format="%(levelname)s: %(message)s", handlers=[_StandardError()])
