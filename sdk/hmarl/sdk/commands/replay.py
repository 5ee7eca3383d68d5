"""hmarl-replay: run a recording again, and compare what comes out bit for bit."""

from __future__ import annotations

import shlex
import sys
from collections.abc import Sequence
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hmarl.runtime.bundle import load_bundle
from hmarl.runtime.command_line import AS_JSON, PATH, argument, command, flag, integer, option, run, trust_option
from hmarl.runtime.errors import DifferenceError
from hmarl.runtime.settings import PROVIDER
from hmarl.sdk.commands._common import print_json
from hmarl.sdk.errors import UsageError

if TYPE_CHECKING:
    from hmarl.runtime.bundle import Bundle
    from hmarl.runtime.recording.beside import Beside
    from hmarl.runtime.recording.reader import BoxFile
    from hmarl.runtime.recording.replay import ReplayReport
    from hmarl.runtime.session import Policy


@command(
    "hmarl-replay",
    argument("recording", "file, or folder with all that is below it", PATH),
    option(
        "--bundle",
        "on which it was played; repeatable, for agents that were given another one meanwhile",
        PATH,
        many=True,
        shown="BUNDLE",
        parameter="bundles",
    ),
    flag("--any-bundle", "run it on the first --bundle, whichever it was played on, and show what differs"),
    trust_option(),
    option(
        "--html",
        "write a page that shows an episode there (extra 'eval'); --bundle may be left out",
        PATH,
        shown="PAGE",
    ),
    option("--seed", "of the episode that the page shows; by default one in which something went wrong", integer(0)),
    option("--provider", "where the policy is computed, as for hmarl-agent", default=PROVIDER, shown="NAME"),
    AS_JSON,
    examples=(
        "hmarl-replay /var/log/team --bundle models/simple-spread-hcpo",
        "hmarl-replay agent_0.mcap --bundle changed --any-bundle",
        "hmarl-replay /var/log/team --html team.html",
    ),
)
def replay(
    recording: Path,
    bundles: tuple[Path, ...],
    any_bundle: bool,
    trust: tuple[Path, ...],
    html: Path | None,
    seed: int | None,
    provider: str,
    as_json: bool,
) -> None:
    """Run a recording of agents or clients again, and compare what comes out bit for bit.

    Exit code 0: the same; 4: something differs, the first of it is named; 3: a bad recording, or another bundle.
    """
    if not bundles and html is None:
        raise UsageError("--bundle: got none, expected the bundle that was recorded; or --html, to look at it alone")
    if any_bundle and not bundles:
        raise UsageError("--any-bundle: got no --bundle, expected one to run the recording on")
    from hmarl.runtime.recording.beside import laid_beside  # noqa: PLC0415 - the record extra
    from hmarl.runtime.recording.reader import open_recording, read_recording  # noqa: PLC0415 - likewise
    from hmarl.runtime.recording.replay import Replayer  # noqa: PLC0415 - likewise

    files = open_recording(recording)
    beside = laid_beside(files)
    report = None
    if bundles:
        loaded = [load_bundle(path, trust or None) for path in bundles]
        report = Replayer(loaded, any_bundle, partial(_tried, provider)).run(read_recording(files))
    if html is not None:
        _write_page(html, recording, files, report, seed)
    if as_json:
        print_json(_document(recording, files, report, beside))
    else:
        _tell(recording, files, report, beside)
    if html is not None and not as_json:
        print(f"wrote {html}")
    if report is not None and not report.same:
        raise DifferenceError(
            f"{recording}: {report.differing_acts} of {report.compared} acts differ, first {report.differences[0]}"
        )
    if beside is not None and not beside.same:
        raise DifferenceError(
            f"{recording}: {beside.different_inputs} observations or masks are not what clients sent, "
            f"{beside.different_actions} actions not what agents computed"
        )


def _write_page(
    html: Path, recording: Path, files: Sequence[BoxFile], report: ReplayReport | None, seed: int | None
) -> None:
    from hmarl.runtime.recording.reader import read_recording  # noqa: PLC0415 - part of the record extra
    from hmarl.sdk.reports.recorded_episodes import chosen, collected, summaries  # noqa: PLC0415
    from hmarl.sdk.reports.recording_page import PageContent, write_recording_page  # noqa: PLC0415

    found = summaries(read_recording(files))
    differing = [] if report is None else [each.seed for each in report.differences]
    shown = collected(read_recording(files), chosen(found, seed, differing)) if found else []
    command = shlex.join(["hmarl-replay", *sys.argv[1:]])
    about = next((file.recorder for file in files if file.recorder), {})
    write_recording_page(html, PageContent(recording.absolute(), list(found.values()), shown, report, command, about))


def _tried(provider: str, bundle: Bundle, agent_id: str, like: str | None) -> Policy:
    """An agent's policy, whose graph is run in a process of its own first."""
    from hmarl.runtime.session import Policy  # noqa: PLC0415 - wrong options and damaged files are told without it
    from hmarl.runtime.trial import try_graphs  # noqa: PLC0415

    bundle.agent(agent_id, like)  # that there is one
    try_graphs(bundle, {agent_id: like})
    return Policy(bundle, agent_id, provider, like)


def _document(
    recording: Path, files: Sequence[BoxFile], report: ReplayReport | None, beside: Beside | None
) -> dict[str, Any]:
    return {
        "recording": str(recording),
        "files": len(files),
        "cut_off": {str(file.path): file.cut_at for file in files if file.cut_at is not None},
        **({} if report is None else {"same": report.same, **asdict(report)}),
        "beside": None if beside is None else asdict(beside),
    }


def _tell(recording: Path, files: Sequence[BoxFile], report: ReplayReport | None, beside: Beside | None) -> None:
    for file in files:
        if file.cut_at is not None:
            print(f"{file.path}: was not finished; read up to byte {file.cut_at}, the end of its last whole chunk")
    if beside is not None:
        print(f"{beside.acts} acts of clients: {_side_by_side(beside)}")
    if report is None:
        return
    print(f"{recording}: {len(files)} files, {report.episodes} episodes, {report.acts} acts")
    for why, count in report.skipped.items():
        print(f"{count} acts are not compared: {why}")
    if report.missing:
        print(f"{report.missing} acts were not recorded")
    for difference in report.differences[1:]:
        print(f"differs as well: {difference}")
    verdict = "the same" if report.same else "not the same"
    print(
        f"{verdict}: {report.compared} acts run again, {report.compared_bytes:,} bytes compared, "
        f"{report.differing_bytes:,} differ"
    )
    _remark_on_machines(files, report)


def _side_by_side(beside: Beside) -> str:
    """What clients sent and agents received, in words."""
    parts = [f"{beside.in_time} in time"]
    if beside.way_us:
        parts[0] += f" (above the policy's own time {beside.way_us['p50']:,.0f} µs, p99 {beside.way_us['p99']:,.0f} µs)"
    parts += [f"{beside.late} received, but answered too late", f"{beside.not_received} in no agent's recording"]
    if beside.there_us:
        parts.append(f"the way there took {beside.there_us['p50']:,.0f} µs, at most {beside.there_us['max']:,.0f} µs")
    return "; ".join(parts)


def _remark_on_machines(files: Sequence[BoxFile], report: ReplayReport) -> None:
    """Other libraries or machines round otherwise: say so where that may be why something differs."""
    if report.same:
        return
    from hmarl.runtime.recording.agent import about_process  # noqa: PLC0415 - part of the record extra

    here = about_process()
    names = ("onnxruntime_version", "machine", "system")
    others = {
        name: said for file in files for name in names if (said := file.recorder.get(name)) not in (None, here[name])
    }
    for name, said in others.items():
        print(f"{name}: {here[name]} here, {said} where it was recorded: numbers may differ in their last bits")


def main(arguments: Sequence[str] | None = None) -> int:
    """Entry point; returns the exit code."""
    return run(replay, arguments)


if __name__ == "__main__":
    sys.exit(main())
