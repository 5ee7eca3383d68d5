"""One base of all errors that reach a user, with the exit code on the class."""

from __future__ import annotations

import ast
import builtins
import importlib
import subprocess
import sys
from pathlib import Path

from hmarl.runtime.errors import BundleError, HmarlError, RecordingError, UsageError

ROOT = Path(__file__).parents[2]
# What never leaves hmarl, each caught where it is known what it means for a user; by name, because modules move.
INTERNAL = {
    "CallFailed",  # a remote call ended: the client's scripts catch it
    "ContractError",  # between a worker process and its pool, as text
    "Ended",  # a CallFailed: a connection of frames was closed
    "EntryError",  # between a worker process and its pool, as text
    "LengthError",  # of a frame: the protocol knows no part of hmarl
    "Interrupted",  # a KeyboardInterrupt
    "UnsavableError",  # a simulator's state that has no form to be saved in
    "Violation",  # a check of an environment that failed, told as its result
    "WireError",  # the protocol knows no part of hmarl: server and client make it one of theirs
    "_Ended",  # within the door of frames: a connection is closed
}


def exceptions() -> set[type[BaseException]]:
    """All exception classes that modules of hmarl define, found in the text: importing all modules takes long."""
    kinds = {
        name for name, value in vars(builtins).items() if isinstance(value, type) and issubclass(value, BaseException)
    }
    classes = []
    for part in ("proto", "runtime", "sdk", "trainer"):
        for path in (ROOT / part / "hmarl").rglob("*.py"):
            module = ".".join(path.relative_to(ROOT / part).with_suffix("").parts).removesuffix(".__init__")
            for node in ast.walk(ast.parse(path.read_text())):
                if isinstance(node, ast.ClassDef):
                    bases = {ast.unparse(base).rpartition(".")[2] for base in node.bases}
                    classes.append((module, node.name, bases))
    for _ in range(5):  # levels of inheritance
        kinds |= {name for _, name, bases in classes if bases & kinds}
    return {getattr(importlib.import_module(module), name) for module, name, bases in classes if bases & kinds}


def test_every_error_has_the_one_base_and_an_exit_code() -> None:
    found = exceptions()
    assert {"UsageError", "AgentError", "FleetError", "CheckpointError"} <= {error.__name__ for error in found}
    outside = {error.__name__ for error in found if not issubclass(error, HmarlError)}
    assert outside == INTERNAL
    for error in found:
        if issubclass(error, HmarlError):
            expected = (
                2 if issubclass(error, UsageError) else 3 if issubclass(error, BundleError | RecordingError) else 4
            )
            assert error.exit_code == expected, error


def test_the_errors_are_importable_without_anything_else() -> None:
    program = (
        "import sys; import hmarl.sdk.errors as sdk, hmarl.runtime.errors as runtime; "
        "assert sdk.HmarlError is runtime.HmarlError and sdk.UsageError is runtime.UsageError; "
        "print(*sorted({'numpy', 'grpc', 'msgspec', 'onnxruntime', 'gymnasium', 'torch'} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True, timeout=120)
    assert done.stdout.split() == []
