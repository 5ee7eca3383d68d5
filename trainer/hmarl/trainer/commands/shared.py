"""What the trainer's commands share."""

from __future__ import annotations

import importlib.util
import logging
import os
import sys
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click
from rich.console import Console

from hmarl.runtime.command_line import Kind, option
from hmarl.sdk.commands._console import make_console
from hmarl.sdk.environments import check_request
from hmarl.sdk.errors import MissingExtraError
from hmarl.trainer.runs.ray_session import LOCAL, checked_address, ray_module
from hmarl.trainer.runs.stopping import stop_on_signals

if TYPE_CHECKING:
    from hmarl.trainer.runs.config import RunConfig

# Read when PyTorch is loaded. OpenMP's threads spin while they wait: the default spins so long that a machine that is
# shared grinds to a halt, none at all halves the speed of one that is not.
os.environ.setdefault("GOMP_SPINCOUNT", "5000")

RAY_ADDRESS = Kind("ADDRESS", "auto, HOST:PORT of a Ray cluster, or nothing", checked_address)


def ray_option(about: str) -> click.Option:
    """``--ray``: None without it, ``local`` without an address."""
    return option("--ray", about, RAY_ADDRESS, bare=LOCAL, shown="[ADDRESS]", parameter="ray_address")


def check_ray(address: str | None) -> None:
    """Refuse to go on without Ray where there is an address.

    Raises:
        MissingExtraError: it is not installed.
    """
    if address is not None:
        ray_module("--ray")


def announce_ray(console: Console, address: str | None) -> None:
    """Say that Ray is started, or joined, where there is an address: it takes its time."""
    if address is not None:
        console.print("starting Ray" if address == LOCAL else f"joining the Ray cluster at {address}")


@contextmanager
def said_when_slow(what: str, at_once: bool = False) -> Iterator[None]:
    """Say what is being done, unless it is done very soon.

    Args:
        what: is done.
        at_once: a terminal is told without waiting; in a log it only matters when it takes long.

    Raises:
        KeyboardInterrupt: asked to stop, also where what is loaded made an error of that.
    """
    console = make_console(stderr=True)
    notice = threading.Timer(0.0 if at_once and console.is_terminal else 1.5, console.print, [what])
    notice.daemon = True
    notice.start()
    try:
        with stop_on_signals() as stop:
            try:
                yield
            except Exception as error:
                if stop():  # the initialisation of a library in C may turn the interrupt into an error of its own
                    raise KeyboardInterrupt from error
                raise
    finally:
        notice.cancel()


def need_extra(purpose: str) -> None:
    """Refuse to go on without the trainer's packages; loads none of them.

    Raises:
        MissingExtraError: one is not installed.
    """
    for package in ("onnx", "pydantic", "safetensors", "torch"):
        if importlib.util.find_spec(package) is None:
            raise MissingExtraError(package, "train", purpose)


def need_torch(purpose: str) -> None:
    """Load what takes long of the trainer's packages, and say so; onnx is left to what exports."""
    need_extra(purpose)
    with said_when_slow(f"{purpose}: loading PyTorch", at_once="torch" not in sys.modules):
        import torch  # noqa: F401


def check_makeable(purpose: str, name: str, arguments: Mapping[str, Any]) -> None:
    """Refuse an environment that cannot be made, before what takes longer is begun.

    Raises:
        UsageError: unknown family, task or argument, or a wrong value.
        MissingExtraError: the family needs a package that is not installed.
    """
    with said_when_slow(f"{purpose}: loading {name}"):  # some are written in PyTorch or JAX
        check_request(name, arguments)


def read_config(run: Path) -> RunConfig:
    """The configuration of a run; needs no PyTorch.

    Raises:
        CheckpointError: there is none, or it is damaged.
    """
    from hmarl.trainer.runs.config import RunConfig

    return RunConfig.read(run)


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
