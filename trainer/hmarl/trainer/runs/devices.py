"""Which of torch's devices can be trained on, found by trying: torch knows names of many that this machine lacks."""

from __future__ import annotations

import warnings

import torch

from hmarl.sdk.errors import UsageError


def device_named(name: str) -> torch.device:
    """The torch device, once it has computed something.

    Raises:
        UsageError: no device's name, none of this machine, or one that holds no numbers.
    """
    try:
        with warnings.catch_warnings():  # of names that torch will forget: the error says enough
            warnings.simplefilter("ignore")
            device = torch.device(name)
    except RuntimeError as error:
        raise UsageError(f"run.device: got '{name}', expected e.g. cpu or cuda:0 (here: {_usable()})") from error
    if device.type == "cuda" and (device.index or 0) >= (count := torch.cuda.device_count()):
        raise UsageError(
            f"run.device: got '{name}', but this torch ({torch.__version__}) sees {count or 'no'} CUDA devices "
            f"(here: {_usable()})"
        )
    problem = _problem(device)
    if problem:
        raise UsageError(
            f"run.device: got '{name}', on which this torch ({torch.__version__}) cannot train: {problem}; "
            f"expected one of {_usable()}"
        )
    return device


def check_precision(precision: str, device: torch.device) -> None:
    """Whether matrix products can be of that precision there.

    Raises:
        UsageError: they cannot.
    """
    if precision != "highest" and device.type != "cuda":
        raise UsageError(
            f"run.matmul_precision: got '{precision}' with run.device={device}, expected highest: TF32 and bfloat16 "
            "need a CUDA device"
        )


def _problem(device: torch.device) -> str:
    """What comes of drawing numbers and reading their sum; empty when all is well."""
    try:
        generator = torch.Generator(device).manual_seed(0)
        torch.randn(2, generator=generator, device=device).sum().item()
    except (RuntimeError, NotImplementedError, AssertionError) as error:
        return (str(error).splitlines() or [type(error).__name__])[0].partition(". ")[0].rstrip(".")
    return ""


def _usable() -> str:
    """The devices of this machine."""
    found = ["cpu", *(f"cuda:{index}" for index in range(torch.cuda.device_count()))]
    found += [kind for kind in ("mps", "xpu") if not _problem(torch.device(kind))]
    return ", ".join(found)
