"""What ``scripts/fuzz_parsers.py`` fuzzes: all that reads what strangers wrote, by the functions that programs call.

    python scripts/fuzz_targets.py TARGET FOLDER [libFuzzer's options] [corpus]    # with atheris: fuzz
    python scripts/fuzz_targets.py TARGET FOLDER --replay CORPUS                   # without: run what is there

A target is given bytes and may raise what its reader documents; anything else is a finding, and so is a message that is
not one printable line.
"""

from __future__ import annotations

import hashlib
import io
import json
import random
import sys
import zipfile
from collections.abc import Callable
from contextlib import nullcontext
from pathlib import Path
from typing import Any

Target = Callable[[bytes], object]
LONGEST_MESSAGE = 4000
GRAPH = "agents/a.onnx"
FUZZING = __name__ == "__main__" and "--replay" not in sys.argv

instrumented: Any = nullcontext()
if FUZZING:
    import atheris

    instrumented = atheris.instrument_imports(include=["hmarl", "zipfile"])

with instrumented:
    from google.protobuf.message import DecodeError

    from hmarl.agent.v1 import agent_pb2
    from hmarl.agent.v1.messages import read_act
    from hmarl.agent.v1.tensors import WireError
    from hmarl.runtime._onnx import checked_graph
    from hmarl.runtime.bundle import SIGNATURE, load_bundle
    from hmarl.runtime.endpoints_file import _owner
    from hmarl.runtime.errors import HmarlError
    from hmarl.runtime.recording.reader import KINDS, BoxFile, Entry, open_recording, read_recording
    from hmarl.runtime.recording.replay import Replayer
    from hmarl.runtime.session import Policy
    from hmarl.runtime.signing.envelope import Envelope, signed_bytes, write_envelope
    from hmarl.runtime.signing.keys import Trust, fingerprint
    from hmarl.runtime.verify import _read_npy
    from hmarl.sdk.clients.endpoints import bundle_of_endpoints, load_endpoints


def _hash_line(manifest: bytes) -> bytes:
    return f"{hashlib.sha256(manifest).hexdigest()}  manifest.json\n".encode()


def _write(folder: Path, files: dict[str, bytes]) -> Path:
    for name, content in files.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(content)
    return folder


def _zip(folder: Path) -> Target:
    """A bundle's zip, byte by byte."""
    path = folder / "b.zip"

    def target(data: bytes) -> None:
        path.write_bytes(data)
        load_bundle(path)

    return target


def _members(folder: Path) -> Target:
    """A zip that is in order, of members that are not: name, a NUL, length in two bytes, content, and so on."""
    path = folder / "b.zip"

    def target(data: bytes) -> None:
        buffer, rest = io.BytesIO(), data
        with zipfile.ZipFile(buffer, "w") as archive:
            while rest:
                name, _, rest = rest.partition(b"\0")
                size, content, rest = rest[:2], rest[2:], b""
                length = int.from_bytes(size, "little")
                content, rest = content[:length], content[length:]
                entry = zipfile.ZipInfo(name.decode(errors="replace")[:2000] or "x")
                archive.writestr(entry, content)
                if entry.filename == "manifest.json":
                    archive.writestr("manifest.sha256", _hash_line(content))
        path.write_bytes(buffer.getvalue())
        load_bundle(path)

    return target


def _manifest(folder: Path) -> Target:
    """A manifest of the right hash; what passes is loaded as far as a policy."""
    path = _write(folder / "b", {GRAPH: (folder / "seed.onnx").read_bytes()})

    def target(data: bytes) -> None:
        _write(path, {"manifest.json": data, "manifest.sha256": _hash_line(data)})
        bundle = load_bundle(path)
        Policy(bundle, bundle.agent_ids[0]).session()

    return target


def _graph(folder: Path) -> Target:
    """What is read of a graph before ONNX Runtime gets it; that runs in a process of its own."""
    return lambda data: checked_graph(GRAPH, data)


def _parity(folder: Path) -> Target:
    return lambda data: _read_npy("parity/a.npy", data)


def _endpoints(folder: Path) -> Target:
    path = folder / "endpoints.json"

    def target(data: bytes) -> None:
        _owner(data)
        path.write_bytes(data)
        bundle_of_endpoints(path)
        load_endpoints(path)

    return target


def _signature(folder: Path) -> Target:
    """A signature file of a bundle that is in order."""
    path, trust = folder / "signed", Trust([folder / "trusted.pem"])

    def target(data: bytes) -> None:
        (path / SIGNATURE).write_bytes(data)
        load_bundle(path, trust)

    return target


def _sealed(folder: Path) -> tuple[Any, Trust]:
    """A key that signs whatever it is given, and is trusted."""
    from cryptography.hazmat.primitives.serialization import load_pem_private_key  # noqa: PLC0415

    return load_pem_private_key((folder / "key.pem").read_bytes(), None), Trust([folder / "trusted.pem"])


def _statement(folder: Path) -> Target:
    """A statement with a good signature."""
    from cryptography.hazmat.primitives import hashes  # noqa: PLC0415
    from cryptography.hazmat.primitives.asymmetric import ec  # noqa: PLC0415

    path, (key, trust) = folder / "signed", _sealed(folder)
    hint = fingerprint(key.public_key())

    def target(data: bytes) -> None:
        made = key.sign(signed_bytes(data), ec.ECDSA(hashes.SHA256()))
        (path / SIGNATURE).write_bytes(write_envelope(Envelope(data, made, hint)))
        load_bundle(path, trust)

    return target


def _certificate(folder: Path) -> Target:
    """The signer's certificate (DER)."""
    path, (_, trust) = folder / "signed", _sealed(folder)

    def target(data: bytes) -> None:
        (path / SIGNATURE).write_bytes(write_envelope(Envelope(b"{}", b"\0", None, (data or b"\0",))))
        load_bundle(path, trust)

    return target


def _trust(folder: Path) -> Target:
    """A file of keys that are to be trusted."""
    path = folder / "trust.pem"

    def target(data: bytes) -> None:
        path.write_bytes(data)
        Trust([path])

    return target


def _frame(folder: Path) -> Target:
    """An act, as it comes over the wire."""
    return lambda data: read_act(agent_pb2.ActRequest.FromString(data), [6], [5])


def _recording(folder: Path) -> Target:
    """A recording's file, byte by byte, as far as it can be run again."""
    path, bundle = folder / "box.mcap", load_bundle(folder / "signed")

    def target(data: bytes) -> None:
        path.write_bytes(data)
        Replayer([bundle], any_bundle=True).run(read_recording(open_recording(path)))

    return target


def _messages(folder: Path) -> Target:
    """The messages of a recording whose file is in order: a kind in one byte, length in two, content, and so on."""
    bundle, file, kinds = load_bundle(folder / "signed"), BoxFile(folder / "box.mcap"), list(KINDS.values())

    def target(data: bytes) -> None:
        entries, rest = [], data
        while rest:
            kind, length = kinds[rest[0] % len(kinds)], int.from_bytes(rest[1:3], "little")
            entries.append(Entry(file, "/agent/a", kind.FromString(rest[3 : 3 + length])))
            rest = rest[3 + length :]
        Replayer([bundle], any_bundle=True).run(entries)

    return target


TARGETS: dict[str, Callable[[Path], Target]] = {
    "zip": _zip,
    "members": _members,
    "manifest": _manifest,
    "graph": _graph,
    "parity": _parity,
    "endpoints": _endpoints,
    "signature": _signature,
    "statement": _statement,
    "certificate": _certificate,
    "trust": _trust,
    "frame": _frame,
    "recording": _recording,
    "messages": _messages,
}


# Whose input is JSON: half of it is mutated as a tree, which bytes seldom survive.
TREES = ("manifest", "endpoints", "signature", "statement")
_ODD: tuple[Any, ...] = (
    None, True, 0, -1, 1, 2**31, 2**63, 2**64, 10**400, 1e308, -0.0, 0.5, float("inf"), float("nan"),
    "", "a", "\0", "\ud800", "../x", "/x", "a/b", "\u202e", "x" * 5000, [], {}, [[]], {"": {}},
)  # fmt: skip


def mutated_tree(data: bytes, limit: int, seed: int) -> bytes:
    """A document with one to four of its parts replaced, left out, doubled, moved or buried; bytes where it is none."""
    draw = random.Random(seed)
    if draw.random() < 0.5:
        return bytes(atheris.Mutate(data, limit))
    try:
        root = [json.loads(data)]
        for _ in range(draw.randint(1, 4)):
            _mutate_once(root, draw)
        return json.dumps(root[0]).encode()[:limit]
    except ValueError:
        return bytes(atheris.Mutate(data, limit))
    except RecursionError:  # what was buried; readers get it as a text, which needs no depth
        return (draw.choice([b"[", b'{"a":']) * 2000 + data)[:limit]


def _mutate_once(root: list[Any], draw: random.Random) -> None:
    places = _places(root)
    holder, key = draw.choice(places)
    match draw.randrange(6):
        case 0:
            holder[key] = draw.choice(_ODD)
        case 1 if holder is not root:
            del holder[key]
        case 2 if isinstance(holder, list) and holder is not root:
            holder.insert(key, holder[key])
        case 3:
            other, there = draw.choice(places)
            holder[key] = json.loads(json.dumps(other[there]))
        case 4:
            for _ in range(draw.choice([1, 10, 2000])):
                holder[key] = [holder[key]] if draw.random() < 0.5 else {"a": holder[key]}
        case 5 if isinstance(holder, dict):
            holder[draw.choice(["a", "", str(key) + "_", *map(str, holder)])] = holder[key]


def _places(root: list[Any]) -> list[tuple[Any, Any]]:
    """All (list or object, key) of a document."""
    found, waiting = [], [root]
    while waiting:
        node: Any = waiting.pop()
        for key in list(node) if isinstance(node, dict) else range(len(node)) if isinstance(node, list) else ():
            found.append((node, key))
            waiting.append(node[key])
    return found


def judged(target: Target) -> Target:
    """Takes what readers may raise; a message has to be one line that can be shown."""

    def run(data: bytes) -> None:
        try:
            target(data)
        except (WireError, DecodeError):
            return
        except HmarlError as error:
            said = str(error)
            assert said.isprintable(), f"a message that cannot be shown: {said[:500]!a}"
            assert len(said) < LONGEST_MESSAGE, f"a message of {len(said)} characters: {said[:500]}"

    return run


def main(words: list[str]) -> None:
    """See the module."""
    name, folder, *more = words
    target = judged(TARGETS[name](Path(folder)))
    if more[:1] == ["--replay"]:
        for path in sorted(Path(more[1]).iterdir()):
            target(path.read_bytes())
        return
    atheris.Setup([sys.argv[0], *more], target, custom_mutator=mutated_tree if name in TREES else None)
    atheris.Fuzz()


if __name__ == "__main__":
    main(sys.argv[1:])
