"""hmarl-verify: check a bundle and all of its graphs."""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING

from hmarl.runtime.bundle import load_bundle
from hmarl.runtime.command_line import AS_JSON, command, trust_option
from hmarl.runtime.commands._common import bundle_argument, provider_option, run
from hmarl.runtime.errors import BundleError

if TYPE_CHECKING:
    from hmarl.runtime.verify import AgentReport


@command(
    "hmarl-verify",
    bundle_argument(),
    trust_option(variable=True),
    provider_option(),
    AS_JSON,
    examples=("hmarl-verify models/simple-spread-hcpo", "hmarl-verify bundle.zip --trust team.pub.pem"),
)
def verify(bundle: Path, provider: str, as_json: bool, trust: tuple[Path, ...] = ()) -> None:
    """Check a bundle: hashes, schema, graphs, batching, parity with the trainer's recorded outputs; with --trust its
    signature first.
    """
    loaded = load_bundle(bundle, trust or None)
    from hmarl.runtime.verify import verify_bundle  # noqa: PLC0415 - a damaged bundle is reported without ONNX Runtime

    reports = verify_bundle(loaded, provider)
    if as_json:
        document = {
            "bundle": str(loaded.path),
            "bundle_sha256": loaded.sha256,
            "signed_by": loaded.signed_by,
            "files": len(loaded.manifest.files),
            "ok": not any(report.problems for report in reports),
            "agents": [asdict(report) for report in reports],
        }
        print(json.dumps(document))
    else:
        print(f"{loaded.path}: {len(loaded.manifest.files)} files, all hashes right")
        if loaded.signed_by is not None:
            print(f"signed by {loaded.signed_by}")
        for report in reports:
            print(f"{report.agent}: {'wrong' if report.problems else 'ok'}; {_found(report)}")
    problems = [f"agent '{report.agent}': {problem}" for report in reports for problem in report.problems]
    if problems:
        raise BundleError(f"bundle {loaded.path}: " + "; ".join(problems))


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
    return run(verify, arguments)


if __name__ == "__main__":
    sys.exit(main())
