"""Coverage-guided fuzzing of all that reads bundles, signatures, endpoints files, frames and recordings.

    python scripts/fuzz_parsers.py --seconds 60                 # each target for a minute
    python scripts/fuzz_parsers.py --only manifest --seconds 600

Findings are exceptions that are none of hmarl's, messages that are not one printable line, hangs (10 s) and memory
above 1 GiB; each is kept in ``build/fuzz/findings`` and makes the exit code 4. The corpus in ``build/fuzz/corpus``
grows from run to run. Atheris (libFuzzer) is installed into a virtual environment of its own, ``build/fuzz/venv``.
"""

from __future__ import annotations

import io
import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path

import numpy as np
import onnx
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat, PublicFormat
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID
from fuzz_targets import GRAPH, TARGETS
from onnx import TensorProto, helper, numpy_helper

from hmarl.agent.v1 import agent_pb2
from hmarl.agent.v1.tensors import to_tensor
from hmarl.runtime.bundle import SIGNATURE, Bundle, write_bundle
from hmarl.runtime.command_line import choice, command, integer, option, run
from hmarl.runtime.errors import HmarlError
from hmarl.runtime.recording.agent import AgentRecorder
from hmarl.runtime.recording.library import CompressionType, MessageEncoding, Writer, build_file_descriptor_set
from hmarl.runtime.recording.reader import KINDS, open_recording, read_recording
from hmarl.runtime.recording.settings import RecordSettings
from hmarl.runtime.session import Policy
from hmarl.runtime.signing.envelope import read_envelope
from hmarl.runtime.signing.keys import Signer
from hmarl.runtime.signing.statement import write_statement

ROOT = Path(__file__).parents[1]
WORK = ROOT / "build" / "fuzz"
# Beside what hmarl needs; the Python that runs this has to be one that atheris has a wheel for.
REQUIREMENTS = ("atheris==3.0.0", "coverage")
NEEDED = (
    "numpy", "onnxruntime", "grpcio", "protobuf", "msgspec", "click", "gymnasium", "cryptography", "mcap",
    "mcap-protobuf-support", "lz4", "zstandard",
)  # fmt: skip
HANG_S, MEMORY_MIB, LONGEST_BYTES = 10, 1024, 8192
READERS = (
    "runtime/hmarl/runtime/bundle.py,runtime/hmarl/runtime/_source.py,runtime/hmarl/runtime/_zip_source.py,"
    "runtime/hmarl/runtime/manifest.py,runtime/hmarl/runtime/_manifest_checks.py,runtime/hmarl/runtime/_onnx.py,"
    "runtime/hmarl/runtime/signing/*,proto/hmarl/agent/v1/tensors.py,runtime/hmarl/runtime/recording/re*.py"
)


@dataclass
class Outcome:
    """Of one target: what libFuzzer counted."""

    target: str
    executions: int
    edges: int
    corpus: int
    peak_mib: int
    findings: int


# --- what fuzzing starts from ----------------------------------------------------------------------------------------


def tiny_graph() -> bytes:
    """argmax(observation W), of six numbers and five actions."""
    weights = numpy_helper.from_array(np.eye(6, 5, dtype=np.float32), "w")
    nodes = [
        helper.make_node("MatMul", ["observation", "w"], ["action_logits"]),
        helper.make_node("ArgMax", ["action_logits"], ["action"], axis=1, keepdims=0),
    ]
    graph = helper.make_graph(
        nodes,
        "a",
        [helper.make_tensor_value_info("observation", TensorProto.FLOAT, ["batch", 6])],
        [
            helper.make_tensor_value_info("action", TensorProto.INT64, ["batch"]),
            helper.make_tensor_value_info("action_logits", TensorProto.FLOAT, ["batch", 5]),
        ],
        [weights],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=8)
    onnx.checker.check_model(model)
    return bytes(model.SerializeToString())


def tiny_bundle(folder: Path) -> Bundle:
    """A whole bundle of one agent, with the shortest manifest that has all kinds of fields."""
    reference = json.loads((ROOT / "models" / "simple-spread-hcpo" / "manifest.json").read_text())
    tensor = {"shape": [], "dtype": "int64", "meaning": "m"}
    agent = {
        "id": "a",
        "file": GRAPH,
        "kind": "local",
        "action_space": {"type": "discrete", "n": 5},
        "observation": {"name": "observation", "shape": [6], "dtype": "float32", "meaning": "m"},
        "observation_layout": [["all", 6]],
        "action": {"name": "action", **tensor},
        "states": [],
        "noises": [],
        "diagnostics": [{**tensor, "name": "action_logits", "shape": [5], "dtype": "float32"}],
    }
    fields = {**reference, "agents": [agent], "parity": [], "training": {}, "evaluation": {}}
    return write_bundle(folder, fields, {GRAPH: tiny_graph()})


def tiny_recording(bundle: Bundle, folder: Path) -> tuple[bytes, bytes]:
    """A recording of three acts, packed so that a fuzzer can change it: the file, and its messages alone."""
    policy = Policy(bundle, "a")
    recorder = AgentRecorder(RecordSettings(folder), policy.agent)
    policy.observer = recorder
    session = policy.session()
    session.reset(1)
    for scale in (1.0, 2.0, 3.0):
        session.act(np.full(6, scale, np.float32))
    session.end()
    recorder.close()
    found = [entry.message for entry in read_recording(open_recording(folder))]
    stream = io.BytesIO()
    writer = Writer(stream, compression=CompressionType.NONE, enable_crcs=False)
    writer.start()
    for message in found:
        kind = type(message)
        schema = build_file_descriptor_set(kind).SerializeToString()[:64]  # which the reader does not go by
        schema_id = writer.register_schema(kind.DESCRIPTOR.full_name, "protobuf", schema)
        channel = writer.register_channel("/agent/a", MessageEncoding.Protobuf, schema_id)
        writer.add_message(channel, 1, message.SerializeToString(), 1)
    writer.finish()  # type: ignore[no-untyped-call]
    names = list(KINDS)
    contents = [(names.index(message.DESCRIPTOR.full_name), message.SerializeToString()) for message in found]
    return stream.getvalue(), b"".join(
        bytes([kind]) + len(content).to_bytes(2, "little") + content for kind, content in contents
    )


def certificate(key: ec.EllipticCurvePrivateKey) -> x509.Certificate:
    """Of an authority and a signer in one, for the fuzzer to take apart."""
    name, now = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "a")]), datetime.now(UTC)
    usage = ("content_commitment", "key_encipherment", "data_encipherment", "key_agreement", "crl_sign")
    return (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(1)
        .not_valid_before(now - timedelta(days=1))
        .not_valid_after(now + timedelta(days=36500))
        .add_extension(x509.BasicConstraints(ca=True, path_length=None), critical=True)
        .add_extension(
            x509.KeyUsage(
                digital_signature=True, key_cert_sign=True, encipher_only=False, decipher_only=False,
                **dict.fromkeys(usage, False),
            ),
            critical=True,
        )
        .add_extension(x509.ExtendedKeyUsage([ExtendedKeyUsageOID.CODE_SIGNING]), critical=False)
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(key.public_key()), critical=False)
        .add_extension(x509.AuthorityKeyIdentifier.from_issuer_public_key(key.public_key()), critical=False)
        .sign(key, hashes.SHA256())
    )  # fmt: skip


def dictionary(seeds: dict[str, list[bytes]]) -> list[str]:
    """What the fuzzer puts in: the names and texts of all seeds, and what JSON readers stumble over, each escaped."""
    texts = {
        word for contents in seeds.values() for each in contents for word in re.findall(rb'"[ -!#-\[\]-~]{1,60}"', each)
    }
    odd = [b"1e999", b"-0.0", b"9" * 30, b"null", b"true", b"NaN", b'"\\ud800"', b'"\\u0000"', b"[" * 64, b'{"a":' * 12]
    return ["".join(f"\\x{byte:02x}" for byte in word) for word in sorted(texts) + odd]


def prepare(folder: Path) -> None:
    """What the targets need beside their input, and the seeds of each target's corpus."""
    key = ec.generate_private_key(ec.SECP256R1())
    (folder / "key.pem").touch(mode=0o600)  # of which others may read nothing is signed
    (folder / "key.pem").write_bytes(key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()))
    public = key.public_key().public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo)
    authority = certificate(key)
    (folder / "trusted.pem").write_bytes(public + authority.public_bytes(Encoding.PEM))
    (folder / "seed.onnx").write_bytes(tiny_graph())
    bundle = tiny_bundle(folder / "signed")
    signature = Signer(folder / "key.pem").sign("signed", bundle.digests, SIGNATURE)
    manifest = (bundle.path / "manifest.json").read_bytes()
    tiny_bundle(folder / "seed.zip")
    members = b"".join(
        name.encode() + b"\0" + len(content).to_bytes(2, "little") + content
        for name, content in ((GRAPH, tiny_graph()), ("manifest.json", manifest))
    )
    shards = json.loads(write_statement("b", bundle.digests, SIGNATURE))
    shards["predicate"]["serialization"].update(method="shards", shard_size=10)
    act = agent_pb2.ActRequest(
        session_id="x", step=1, observation=to_tensor(np.ones(6, np.float32)), action_mask=to_tensor(np.ones(5, bool))
    )
    recording, messages = tiny_recording(bundle, folder / "box")
    endpoints = {"format": "hmarl-fleet endpoints", "pid": 1, "bundle_sha256": "ab", "agents": {"a": "127.0.0.1:1"}}
    seeds: dict[str, list[bytes]] = {
        "zip": [(folder / "seed.zip").read_bytes()],
        "members": [members],
        "manifest": [manifest, json.dumps(json.loads(manifest)).encode()],
        "graph": [tiny_graph()],
        "parity": [(ROOT / "models" / "simple-spread-hcpo" / "parity" / "agent_0.observation.npy").read_bytes()[:200]],
        "endpoints": [json.dumps(endpoints).encode(), b'{"agents": {"a": {"address": "unix:/x"}}}'],
        "signature": [signature, *(path.read_bytes() for path in (ROOT / "tests" / "vectors").rglob("*.json"))],
        "statement": [read_envelope(signature).payload, json.dumps(shards).encode()],
        "certificate": [authority.public_bytes(Encoding.DER)],
        "trust": [public, authority.public_bytes(Encoding.PEM)],
        "frame": [act.SerializeToString()],
        "recording": [recording],
        "messages": [messages],
    }
    (folder / "words").write_text("".join(f'"{word}"\n' for word in dictionary(seeds)))
    for name, contents in seeds.items():
        corpus = WORK / "corpus" / name
        corpus.mkdir(parents=True, exist_ok=True)
        for index, content in enumerate(contents):
            (corpus / f"seed-{index}").write_bytes(content)


# --- running ---------------------------------------------------------------------------------------------------------


def fuzzing_python() -> Path:
    """Python of the virtual environment with atheris, which is made once."""
    folder, wanted = WORK / "venv", "\n".join([*REQUIREMENTS, *NEEDED])
    stamp = folder / ".requirements"
    if not stamp.exists() or stamp.read_text() != wanted:
        shutil.rmtree(folder, ignore_errors=True)
        subprocess.run([sys.executable, "-m", "venv", str(folder)], check=True)
        install = [
            str(folder / "bin" / "python"),
            "-m",
            "pip",
            "install",
            "--quiet",
            "-c",
            str(ROOT / "constraints.txt"),
        ]
        subprocess.run([*install, *REQUIREMENTS, *NEEDED], check=True)
        stamp.write_text(wanted)
    return folder / "bin" / "python"


def surroundings() -> dict[str, str]:
    """Whose code is fuzzed: this checkout's."""
    path = os.pathsep.join(str(ROOT / part) for part in ("proto", "runtime", "sdk"))
    return {**os.environ, "PYTHONPATH": path, "PYTHONHASHSEED": "0"}


def fuzz(python: Path, target: str, folder: Path, seconds: int) -> Outcome:
    """One target, for so long; stops at its first finding."""
    corpus, findings = WORK / "corpus" / target, WORK / "findings"
    findings.mkdir(parents=True, exist_ok=True)
    before = set(findings.iterdir())
    done = subprocess.run(
        [
            str(python), str(ROOT / "scripts" / "fuzz_targets.py"), target, str(folder),
            f"-max_total_time={seconds}", f"-timeout={HANG_S}", f"-rss_limit_mb={MEMORY_MIB}",
            f"-max_len={LONGEST_BYTES}", f"-dict={folder}/words", "-len_control=0", "-print_final_stats=1",
            f"-artifact_prefix={findings}/{target}-", str(corpus),
        ],
        env=surroundings(), capture_output=True, text=True, errors="replace", check=False,
    )  # fmt: skip
    log = done.stdout + done.stderr
    (WORK / f"{target}.log").write_text(log)
    found = len(set(findings.iterdir()) - before)
    if done.returncode and not found:
        raise HmarlError(f"{target}: ended with exit code {done.returncode}: {log[-2000:]}")

    def last(pattern: str) -> int:
        numbers = re.findall(pattern, log)
        return int(numbers[-1]) if numbers else 0

    return Outcome(
        target,
        executions=last(r"stat::number_of_executed_units:\s+(\d+)") or last(r"#(\d+)"),
        edges=last(r"cov: (\d+)"),
        corpus=len(list(corpus.iterdir())),
        peak_mib=last(r"stat::peak_rss_mb:\s+(\d+)"),
        findings=found,
    )


def lines_reached(python: Path, targets: list[str], folder: Path) -> str:
    """Which share of the readers' lines and branches the corpus reaches, by module."""
    data = folder / "coverage"
    tool, plain = [str(python), "-m", "coverage"], ["--rcfile="]  # none: the tests' settings do not fit
    for target in targets:
        words = [
            str(ROOT / "scripts" / "fuzz_targets.py"),
            target,
            str(folder),
            "--replay",
            str(WORK / "corpus" / target),
        ]
        subprocess.run(
            [*tool, "run", *plain, "--branch", "--append", f"--data-file={data}", f"--include={READERS}", *words],
            env=surroundings(), cwd=ROOT, check=True,
        )  # fmt: skip
    report = [*tool, "report", *plain, f"--data-file={data}"]
    return subprocess.run(report, cwd=ROOT, capture_output=True, text=True, check=True).stdout


@command(
    "fuzz_parsers",
    option("--seconds", "for each target", integer(1), default=60),
    option("--only", "these targets; repeatable", choice(*TARGETS), many=True, shown="TARGET"),
    examples=("python scripts/fuzz_parsers.py --seconds 600 --only manifest",),
)
def fuzz_parsers(seconds: int, only: tuple[str, ...]) -> None:
    """Fuzz what reads bundles, signatures, endpoints files, frames and recordings, guided by its code's coverage."""
    os.nice(10)
    targets = list(only or TARGETS)
    python = fuzzing_python()
    with tempfile.TemporaryDirectory(
        prefix="hmarl-fuzz-", dir="/dev/shm" if Path("/dev/shm").is_dir() else None
    ) as place:
        prepare(Path(place))
        print("| target | executions | edges reached | corpus | memory at most, MiB | findings |")
        print("|---|---|---|---|---|---|")
        outcomes = []
        for target in targets:
            outcome = fuzz(python, target, Path(place), seconds)
            outcomes.append(outcome)
            print(
                f"| {outcome.target} | {outcome.executions:,} | {outcome.edges:,} | {outcome.corpus:,} | "
                f"{outcome.peak_mib} | {outcome.findings} |",
                flush=True,
            )
        found = [outcome.target for outcome in outcomes if outcome.findings]
        if found:
            raise HmarlError(f"findings of {', '.join(found)}: see {WORK / 'findings'} and the logs in {WORK}")
        print(lines_reached(python, targets, Path(place)))


if __name__ == "__main__":
    sys.exit(run(fuzz_parsers))
