"""Regenerates the protocol's Python modules from the .proto files, or checks that they are up to date.

python proto/generate.py            write the modules beside the .proto files
python proto/generate.py --check    exit 1 when a committed module differs from what would be written
"""

from __future__ import annotations

import re
import sys
import tempfile
from pathlib import Path

import grpc_tools
from grpc_tools import protoc

from hmarl.runtime.command_line import command, flag, run

ROOT = Path(__file__).resolve().parent
SUFFIXES = ("_pb2.py", "_pb2.pyi", "_pb2_grpc.py")


def compile_into(out: Path) -> None:
    """Compile every .proto below the root into ``out``; a module's package is the folder of its file.

    What protoc writes for gRPC is kept where a file has a service: elsewhere it has nothing but an import of gRPC.

    Raises:
        RuntimeError: protoc refused a file (its own message is on standard error).
    """
    sources = sorted(str(path.relative_to(ROOT)) for path in ROOT.rglob("*.proto"))
    well_known = Path(grpc_tools.__file__).parent / "_proto"
    flags = [f"--{plugin}={out}" for plugin in ("python_out", "pyi_out", "grpc_python_out")]
    if protoc.main(["protoc", f"-I{ROOT}", f"-I{well_known}", *flags, *sources]) != 0:
        raise RuntimeError(f"protoc failed on {', '.join(sources)}")
    for source in sources:
        if not re.search(r"^service ", (ROOT / source).read_text(), re.MULTILINE):
            (out / source).with_name(f"{Path(source).stem}_pb2_grpc.py").unlink()


def generated(root: Path) -> dict[str, bytes]:
    """The generated modules below ``root``: relative path -> content."""
    files = (path for path in root.rglob("*") if path.name.endswith(SUFFIXES))
    return {path.relative_to(root).as_posix(): path.read_bytes() for path in files}


@command("proto/generate.py", flag("--check", "write nothing; exit with 1 when a module is out of date"))
def main(check: bool) -> int:
    """Generate the protocol's Python modules from the .proto files."""
    with tempfile.TemporaryDirectory() as scratch:
        compile_into(Path(scratch))
        expected, present = generated(Path(scratch)), generated(ROOT)
    drifted = sorted(name for name in expected.keys() | present.keys() if expected.get(name) != present.get(name))
    if check:
        for name in drifted:
            print(f"proto/{name} is out of date: run 'python proto/generate.py'", file=sys.stderr)
        return 1 if drifted else 0
    for name in drifted:
        if name in expected:
            (ROOT / name).write_bytes(expected[name])
        else:
            (ROOT / name).unlink()
        print(f"{'wrote' if name in expected else 'removed'} proto/{name}")
    return 0


if __name__ == "__main__":
    sys.exit(run(main))
