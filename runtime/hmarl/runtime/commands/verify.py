"""hmarl-verify: check a bundle and all of its graphs."""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING

from hmarl.runtime.bundle import load_bundle
from hmarl.runtime.commands._common import Parser, run
from hmarl.runtime.errors import BundleError
from hmarl.runtime.settings import PROVIDER

if TYPE_CHECKING:
    from hmarl.runtime.verify import AgentReport


def _parser() -> Parser:
    parser = Parser(
        prog="hmarl-verify",
        description="Check a bundle: hashes, schema, graphs, batching, parity with the trainer's recorded outputs.",
    )
    parser.option("bundle", help="bundle directory or zip")
    parser.option("--provider", default=PROVIDER, help="cpu, cuda[:DEVICE] or tensorrt[:DEVICE] (default %(default)s)")
    parser.add_argument("--json", action="store_true", help="print the result as one JSON object")
    return parser


def verify(arguments: Sequence[str] | None = None) -> int:
    """Run all checks and print what was found; returns the exit code."""
    options = _parser().parse_args(arguments)
    bundle = load_bundle(Path(options.bundle))
    from hmarl.runtime.verify import verify_bundle  # noqa: PLC0415 - a damaged bundle is reported without ONNX Runtime

    reports = verify_bundle(bundle, options.provider)
    if options.json:
        document = {
            "bundle": str(bundle.path),
            "bundle_sha256": bundle.sha256,
            "files": len(bundle.manifest.files),
            "ok": not any(report.problems for report in reports),
            "agents": [asdict(report) for report in reports],
        }
        print(json.dumps(document))
    else:
        print(f"{bundle.path}: {len(bundle.manifest.files)} files, all hashes right")
        for report in reports:
            print(f"{report.agent}: {'wrong' if report.problems else 'ok'}; {_found(report)}")
    problems = [f"agent '{report.agent}': {problem}" for report in reports for problem in report.problems]
    if problems:
        raise BundleError(f"bundle {bundle.path}: " + "; ".join(problems))
    return 0


def _found(report: AgentReport) -> str:
    """What the checks of one agent measured, in words."""
    if report.same_graph_as is not None:
        return f"the graph of {report.same_graph_as}"
    parity = "no parity samples"
    if report.parity_samples:
        parity = (
            f"{report.parity_samples} parity samples, largest error {report.parity_error:.2g}, "
            f"{report.near_ties} near ties"
        )
    return f"batch against single rows {report.batch_error:.2g}; {parity}"


def main(arguments: Sequence[str] | None = None) -> int:
    """Entry point; returns the exit code."""
    return run("hmarl-verify", lambda: verify(arguments))


if __name__ == "__main__":
    sys.exit(main())
