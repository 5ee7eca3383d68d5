"""Checkpoints: safetensors for tensors, JSON for counters; written atomically, verified on reading, never pickled.

A checkpoint is a pair ``step-N.safetensors`` and ``step-N.json``. The JSON is written last and holds the tensors'
SHA-256, so a checkpoint that was cut off or damaged is recognised and the one before it is used. ``best.json`` names
the best one.

Where an evaluation is due the checkpoint comes first, so that nothing is lost when the evaluation fails or never ends.
Until that is done the JSON also holds the update's metrics (``pending``), and a resumed run begins with the evaluation.
"""

from __future__ import annotations

import hashlib
import json
import logging
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load, save
from torch import Tensor

from hmarl.runtime.bundle import replace_file
from hmarl.runtime.plain_json import read_json
from hmarl.trainer.records.problems import CheckpointError

FORMAT = 1
_ADVICE = "; if another version of hmarl wrote it (config.json names it), go on with that one, or train again"
_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Counters:
    """Where a run stands: everything in a checkpoint that is not a tensor.

    Attributes:
        update: finished updates; steps: environment steps of the team.
        episodes: finished training episodes.
        best_return: best evaluation so far, None before the first.
        last_evaluation: steps at the last evaluation.
        rolled_back: updates in a row, the last one among them, that diverged.
    """

    update: int = 0
    steps: int = 0
    episodes: int = 0
    best_return: float | None = None
    last_evaluation: int = 0
    rolled_back: int = 0


@dataclass(frozen=True)
class Checkpoint:
    """A verified checkpoint in memory.

    Attributes:
        pending: the update's metrics where its evaluation is still to be done, else None.
    """

    path: Path
    counters: Counters
    tensors: dict[str, Tensor]
    sha256: str
    pending: dict[str, float] | None = None


def flatten(components: Mapping[str, Any]) -> dict[str, Tensor]:
    """All tensors of nested components under dotted names.

    Args:
        components: values are tensors, dictionaries of the same, or objects with ``state_dict``.
    """
    flat: dict[str, Tensor] = {}
    for name, part in components.items():
        if isinstance(part, Tensor):
            flat[name] = part
        else:
            inner = part if isinstance(part, Mapping) else part.state_dict()
            flat |= {f"{name}.{key}": value for key, value in flatten(inner).items()}
    return flat


def restore(components: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> None:
    """Put the tensors that ``flatten`` returned back into the components, in place.

    Raises:
        CheckpointError: a tensor is missing or has another shape.
    """
    for name, part in components.items():
        if isinstance(part, Tensor):
            if name not in tensors or tensors[name].shape != part.shape:
                got = tuple(tensors[name].shape) if name in tensors else "nothing"
                raise CheckpointError(f"checkpoint: '{name}' has shape {got}, expected {tuple(part.shape)}")
            part.copy_(tensors[name])
        else:
            inner = {k.removeprefix(f"{name}."): v for k, v in tensors.items() if k.startswith(f"{name}.")}
            if isinstance(part, Mapping):
                restore(part, inner)
            else:
                _load(name, part, inner)


def _load(name: str, part: Any, tensors: Mapping[str, Tensor]) -> None:
    """``part.load_state_dict`` with what is wrong named; an optimiser that has not stepped yet has no tensors.

    Where one number was kept for what now has a number each, as the first checkpoints kept counts, it is that of all.
    """
    tensors = dict(tensors)
    for key, current in flatten(part.state_dict()).items():
        if key in tensors and not tensors[key].ndim:
            tensors[key] = tensors[key].expand(current.shape).clone()
        if key in tensors and tensors[key].shape != current.shape:
            got, expected = tuple(tensors[key].shape), tuple(current.shape)
            raise CheckpointError(f"checkpoint: '{name}.{key}' has shape {got}, expected {expected}{_ADVICE}")
    try:
        part.load_state_dict(_nested(tensors))
    except KeyError as error:
        raise CheckpointError(f"checkpoint: '{name}' lacks {error}{_ADVICE}") from error


def _nested(flat: Mapping[str, Tensor]) -> dict[str, Any]:
    """Dotted names -> nested dictionaries."""
    nested: dict[str, Any] = {}
    for name, value in flat.items():
        *parents, leaf = name.split(".")
        place = nested
        for parent in parents:
            place = place.setdefault(parent, {})
        place[leaf] = value
    return nested


def checkpoint_path(folder: Path, steps: int) -> Path:
    """Where the tensors after so many steps are kept."""
    return folder / f"step-{steps:012d}.safetensors"


def write_checkpoint(
    folder: Path,
    tensors: Mapping[str, Tensor],
    counters: Counters,
    pending: Mapping[str, float] | None = None,
) -> Path:
    """Write one checkpoint; returns the path of its tensors.

    Args:
        folder: where to.
        tensors: its tensors.
        counters: everything else.
        pending: the update's metrics where its evaluation is still to be done.
    """
    content = save({name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()})
    path = checkpoint_path(folder, counters.steps)
    sha256 = hashlib.sha256(content).hexdigest()
    replace_file(path, content)
    _describe(path, sha256, counters, pending)
    return path


def settle_checkpoint(path: Path, counters: Counters) -> None:
    """Nothing is pending any more: write what the evaluation changed, beside tensors that stay as they are.

    Raises:
        CheckpointError: the checkpoint's description is damaged.
    """
    _describe(path, _sha256(path), counters, None)


def reopen_checkpoint(path: Path, counters: Counters, pending: Mapping[str, float]) -> None:
    """An evaluation of it is pending after all; see ``write_checkpoint``.

    Raises:
        CheckpointError: the checkpoint's description is damaged.
    """
    _describe(path, _sha256(path), counters, pending)


def _sha256(path: Path) -> str:
    """Of the tensors, as the description has it."""
    return str(read_object(path.with_suffix(".json")).get("sha256"))


def _describe(path: Path, sha256: str, counters: Counters, pending: Mapping[str, float] | None) -> None:
    description: dict[str, Any] = {"format": FORMAT, "sha256": sha256, **asdict(counters)}
    if pending is not None:
        description["pending"] = dict(pending)
    replace_file(path.with_suffix(".json"), (json.dumps(description, indent=1) + "\n").encode())


def read_checkpoint(path: Path, device: torch.device | str = "cpu") -> Checkpoint:
    """Read and verify one checkpoint, given the path of its tensors.

    Raises:
        CheckpointError: unreadable, cut off, or not what was written.
    """
    try:
        description = read_json(path.with_suffix(".json").read_bytes())
        content = path.read_bytes()
        sha256 = hashlib.sha256(content).hexdigest()
        if description.pop("sha256") != sha256:
            raise CheckpointError(
                f"checkpoint {path}: the file is damaged (its SHA-256 does not match {path.stem}.json)"
            )
        if (version := description.pop("format")) != FORMAT:
            raise CheckpointError(
                f"checkpoint {path}: got format {version}, expected format {FORMAT}: another version of hmarl wrote "
                "it; go on with that version, or train again"
            )
        pending = description.pop("pending", None)
        tensors = {name: tensor.to(device) for name, tensor in load(content).items()}
        return Checkpoint(path, Counters(**description), tensors, sha256, pending)
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise CheckpointError(f"checkpoint {path}: unreadable ({error})") from error


def checkpoints_in(folder: Path) -> list[Path]:
    """The tensors' files of all checkpoints, damaged or not, oldest first; other files do not count."""
    return sorted(path for path in folder.glob("step-*.safetensors") if path.stem.removeprefix("step-").isdecimal())


def read_object(path: Path) -> dict[str, Any]:
    """One JSON object from a run's directory.

    Raises:
        CheckpointError: damaged, or not to be read.
    """
    try:
        return dict(read_json(path.read_bytes()))
    except (OSError, ValueError, TypeError) as error:
        raise CheckpointError(f"{path}: damaged ({error})") from error


def any_written(folder: Path) -> bool:
    """Whether a checkpoint was ever finished in a folder."""
    return described_steps(folder) > 0


def described_steps(folder: Path) -> int:
    """Steps of the newest checkpoint that was finished, of which the description is written last; 0 without one."""
    found = [_steps_of(path) for path in checkpoints_in(folder) if path.with_suffix(".json").exists()]
    return max(found, default=0)


def _steps_of(path: Path) -> int:
    return int(path.stem.removeprefix("step-"))


def newest_path(folder: Path) -> Path | None:
    """Where the newest checkpoint that is whole is, None when there is none."""
    for path in reversed(checkpoints_in(folder)):
        try:
            return read_checkpoint(path).path
        except CheckpointError:
            continue
    return None


def newest_checkpoint(folder: Path, device: torch.device | str = "cpu") -> Checkpoint:
    """The newest checkpoint that is whole; damaged newer ones are named in the log and passed over.

    Raises:
        CheckpointError: there is none.
    """
    paths = checkpoints_in(folder)
    for path in reversed(paths):
        try:
            return read_checkpoint(path, device)
        except CheckpointError as error:
            _log.warning("%s; trying the one before it", error)
    found = f"{len(paths)} damaged ones" if paths else "none"
    raise CheckpointError(f"run directory {folder.parent}: no usable checkpoint in {folder} (found {found})")


def find_checkpoint(run: Path, which: str, device: torch.device | str = "cpu") -> Checkpoint:
    """A run's checkpoint by name: ``last``, ``best`` or a number of steps.

    Raises:
        CheckpointError: not there; the message lists those that are.
    """
    folder = run / "checkpoints"
    if which == "last":
        return newest_checkpoint(folder, device)
    return read_checkpoint(_named(folder, which), device)


def check_there(run: Path, which: str) -> None:
    """Whether a run has a checkpoint of that name; ``find_checkpoint`` finds out whether it is whole.

    Raises:
        CheckpointError: as ``find_checkpoint``.
    """
    folder = run / "checkpoints"
    if which != "last":
        _named(folder, which)
    elif not checkpoints_in(folder):
        newest_checkpoint(folder)


def _named(folder: Path, which: str) -> Path:
    if which == "best":
        return folder / _best_name(folder)
    steps = [_steps_of(path) for path in checkpoints_in(folder)]
    if not which.isdecimal() or int(which) not in steps:
        raise CheckpointError(f"--checkpoint: got '{which}', expected best, last or one of {steps}")
    return checkpoint_path(folder, int(which))


def mark_best(folder: Path, path: Path, evaluation_return: float) -> None:
    """Record which checkpoint evaluated best."""
    content = {"file": path.name, "return_mean": evaluation_return}
    replace_file(folder / "best.json", (json.dumps(content) + "\n").encode())


def best_steps(folder: Path) -> int | None:
    """After how many steps the checkpoint was written that evaluated best; None where none is marked."""
    try:
        return _steps_of(Path(_best_name(folder)))
    except (CheckpointError, ValueError):
        return None


def _best_name(folder: Path) -> str:
    """File name of the checkpoint that evaluated best.

    Raises:
        CheckpointError: none is marked, or the mark is damaged.
    """
    mark = folder / "best.json"
    try:
        return str(read_json(mark.read_bytes())["file"])
    except FileNotFoundError as error:
        raise CheckpointError(
            f"run directory {folder.parent}: no best checkpoint: it has not been evaluated yet; use --checkpoint last"
        ) from error
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise CheckpointError(f"{mark}: damaged ({error}); use --checkpoint last") from error


def prune(folder: Path, keep: int, steps: int) -> None:
    """Delete all but the newest ``keep`` checkpoints and the best one; nothing when it is not known which that is.

    Args:
        folder: RUN/checkpoints.
        keep: how many.
        steps: of the one that was written last. Later ones are damaged, or resuming would not have passed over them:
            they are neither counted nor deleted, and the run will write them anew.
    """
    kept: set[str] = set()
    if (folder / "best.json").exists():
        try:
            kept = {_best_name(folder)}
        except CheckpointError as error:
            _log.warning("%s; old checkpoints are kept", error)
            return
    for path in [each for each in checkpoints_in(folder) if _steps_of(each) <= steps][:-keep]:
        if path.name not in kept:
            path.with_suffix(".json").unlink(missing_ok=True)
            path.unlink(missing_ok=True)
