"""hmarl-export: write a run's local policies, one per agent, as ONNX."""

from __future__ import annotations

import logging
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.console import Console

from hmarl.runtime.command_line import AS_JSON, PATH, argument, command, flag, option
from hmarl.runtime.signing.keys import Signer, read_passphrase
from hmarl.sdk.commands import _common
from hmarl.sdk.commands._common import CHECKPOINT, parse_settings, print_json, settings_option
from hmarl.sdk.commands._console import make_console, print_table
from hmarl.sdk.errors import UsageError
from hmarl.trainer.commands.shared import need_extra, need_torch, read_config

if TYPE_CHECKING:
    from hmarl.runtime.bundle import Bundle, StudentsModel


@command(
    "hmarl-export",
    argument("run", "run directory of hmarl-train", PATH),
    option("--out", "bundle to write: a directory, or a file ending in .zip; by default RUN/bundle", PATH),
    option("--checkpoint", "best, last or a number of steps", CHECKPOINT, default="best"),
    option("--name", "the bundle's name; by default the run's"),
    option("--sign", "sign the bundle with this private key, see hmarl-sign", PATH, shown="FILE"),
    option("--certificate", "with --sign, as of hmarl-sign", PATH, shown="FILE"),
    option("--passphrase-file", "with --sign, as of hmarl-sign", PATH, shown="FILE"),
    flag("--distil", "export local students of the team that knows more"),
    settings_option("distillation.KEY=VALUE", "with --distil, see hmarl-algorithms ALGORITHM"),
    flag("--restart-students", "discard the students in RUN/students, distil anew"),
    flag(
        "--redistil/--no-redistil",
        "distil local conductors once more where the deployed team comes; kept if it plays no worse",
        default=True,
    ),
    flag("--leapp", "describe each agent's graph for NVIDIA's LEAPP too, in leapp/ of the bundle"),
    AS_JSON,
    examples=("hmarl-export runs/mine", "hmarl-export runs/mine --checkpoint last --out bundle.zip"),
)
def export(
    run: Path,
    out: Path | None,
    checkpoint: str,
    name: str | None,
    sign: Path | None,
    certificate: Path | None,
    passphrase_file: Path | None,
    distil: bool,
    settings: tuple[str, ...],
    restart_students: bool,
    redistil: bool,
    leapp: bool,
    as_json: bool,
) -> None:
    """Write a run's local policies, one per agent, as ONNX, check them against torch, and put them into a bundle.

    Refuses to write a bundle whose ONNX Runtime outputs differ from torch's by more than the stated tolerance.

    Of an algorithm that acts for the whole team at once (hmarl-algorithms marks them) students are exported, with
    --distil (himpo without it as well): one recurrent student per agent learns to do from its own observations what the
    team does that knows more. The gap between both is printed, and kept in the bundle. A distillation that was cut off
    goes on with the same command. With --set distillation.told=team (or state) students see more than their agents:
    they are reported on, not exported.

    HCPO's local conductors, where it has any, are distilled once more on states that the deployed team visits. They are
    kept if they follow the conductor better and the team plays no worse; both are printed. The run stays as it is.
    """
    need_extra("hmarl-export")
    read_config(run)  # is there a run?
    signer = _signer(sign, certificate, passphrase_file)  # a wrong key is reported before hours of distilling
    need_torch("hmarl-export")
    logging.basicConfig(level=logging.ERROR, format="%(levelname)s: %(message)s")
    logging.getLogger("hmarl").setLevel(logging.WARNING)  # and of others errors alone
    from hmarl.trainer.export.export import check_exportable, export_run

    console = make_console(stderr=True)
    distillation = _distillation(console, run, distil, settings, restart_students)
    if distillation is not None and distillation.told != "nothing":
        _refuse_of_bundles(distillation.told, {"--out": out, "--name": name, "--sign": sign, "--leapp": leapp or None})
        _diagnose(console, run, checkpoint, distillation, restart_students, as_json)
        return
    check_exportable(run, checkpoint, distillation)
    target = out or run / "bundle"
    console.print(f"exporting {run} ({checkpoint} checkpoint) to {target}")
    with _saying_what_is_kept(console, run, distillation, restart_students):
        bundle = export_run(run, target, checkpoint, name, distillation, restart_students, redistil, signer, leapp)
    _report(console, bundle, target, signer)
    if as_json:
        print_json(_document(bundle, target))


def _refuse_of_bundles(told: str, given: dict[str, Any]) -> None:
    """Refuse what is given for a bundle where none is written.

    Raises:
        UsageError: so it is.
    """
    for name, value in given.items():
        if value is not None:
            raise UsageError(
                f"{name}: got {value}, expected nothing with distillation.told={told}: students who are told more "
                "than their agents see are reported on, and no bundle is written"
            )


def _report(console: Console, bundle: Bundle, target: Path, signer: Signer | None) -> None:
    """What the bundle has, and what to do next."""
    parity, students = bundle.manifest.parity[0], bundle.manifest.students
    if students is not None:
        _report_students(console, students)
    again = bundle.manifest.training.get("redistillation")
    if again is not None:
        _report_redistillation(console, again)
    console.print(
        f"wrote {target}: {len(bundle.manifest.agents)} agents, parity with torch on {parity.samples:,} inputs: "
        f"largest error {parity.max_error:.2e}, {parity.action_mismatches} differing actions, "
        f"{parity.near_ties} near ties{'' if signer is None else f'; signed by {signer.name}'}\n"
        f"next: hmarl-verify {target}\n      hmarl-fleet {target} --out endpoints.json",
    )


def _document(bundle: Bundle, target: Path) -> dict[str, Any]:
    """The same for programs."""
    from hmarl.runtime.bundle import to_plain

    manifest = bundle.manifest
    document = {"bundle": str(target), "sha256": bundle.sha256, "parity": to_plain(manifest.parity[0])}
    document |= {} if manifest.students is None else {"students": to_plain(manifest.students)}
    again = manifest.training.get("redistillation")
    return document | ({} if again is None else {"redistillation": again})


def _signer(key: Path | None, certificate: Path | None, passphrase_file: Path | None) -> Signer | None:
    if key is None:
        for option, given in (("--certificate", certificate), ("--passphrase-file", passphrase_file)):
            if given is not None:
                raise UsageError(f"{option}: got {given} without --sign, expected both")
        return None
    return Signer(key, read_passphrase(passphrase_file), certificate)


def _distillation(console: Console, run: Path, distil: bool, settings: tuple[str, ...], restart: bool) -> Any:
    """The settings of the distillation, checked; None where nothing is distilled."""
    from hmarl.trainer.algorithms import find_algorithm
    from hmarl.trainer.networks.settings import validate
    from hmarl.trainer.runs.config import RunConfig
    from hmarl.trainer.runs.environment_count import fitted_count
    from hmarl.trainer.students.kept import begun_with
    from hmarl.trainer.students.settings import DistillationSettings

    given = parse_settings(settings, ("distillation",))["distillation"]
    config = RunConfig.read(run)
    algorithm = config.algorithm
    checked = validate(DistillationSettings, given, "distillation", algorithm)
    if distil or find_algorithm(algorithm).distils:
        if "environments" in given:
            return checked
        begun = None if restart else begun_with(run / checked.folder, "environments")
        if begun is not None:  # the same command goes on, whatever this machine has room for now
            return validate(DistillationSettings, {**given, "environments": begun}, "distillation")
        name, arguments = config.environment, config.environment_arguments
        count = fitted_count(name, arguments, checked.environments, console.print)
        return checked.model_copy(update={"environments": count})
    if given or restart:
        option = "--set distillation.*" if given else "--restart-students"
        raise UsageError(
            f"{option}: got it without --distil, and {algorithm} is not distilled unless --distil is given"
        )
    return None


@contextmanager
def _saying_what_is_kept(console: Console, run: Path, distillation: Any, restart: bool) -> Iterator[None]:
    """When a distillation is stopped."""
    try:
        yield
    except KeyboardInterrupt:
        if distillation is not None:
            folder, command = run / distillation.folder, "the same command" + " without --restart-students" * restart
            kept = f"the rounds that are done are kept in {folder}: {command} goes on"
            if not any(folder.glob("checkpoints/step-*.json")):
                kept = f"no round is done yet: {command} begins again"
            console.print(f"\nstopped; {kept}")
        raise


def _diagnose(console: Console, run: Path, checkpoint: str, distillation: Any, restart: bool, as_json: bool) -> None:
    """Report on students that see more than their agents will; there is nothing to export."""
    from hmarl.runtime.bundle import to_plain
    from hmarl.trainer.runs.loaded_run import load_run
    from hmarl.trainer.students.dagger import distil_run

    loaded = load_run(run, checkpoint)
    with _saying_what_is_kept(console, run, distillation, restart):
        distilled = distil_run(run, loaded.algorithm, loaded.config, loaded.checkpoint, distillation, restart=restart)
    report = distilled.report
    _report_students(console, report)
    console.print(
        f"no bundle: these students saw more than their agents will (distillation.told={distillation.told}). If they "
        "keep clearly more of the return than local students do, it is information that those lack",
    )
    if as_json:
        print_json({"students": to_plain(report)})


def _report_students(console: Console, students: StudentsModel) -> None:
    from hmarl.trainer.students.report import figures

    print_table(console, f"students of the {students.teacher}", ("", ""), figures(students))


def _report_redistillation(console: Console, again: dict[str, Any]) -> None:
    from hmarl.trainer.export.redistillation import STANDINGS, standings, verdict

    title = f"local conductors, distilled once more in {again['rounds']} rounds ({verdict(again)})"
    print_table(console, title, STANDINGS, standings(again))


def export_main() -> None:
    """Entry point of hmarl-export."""
    sys.exit(_common.run(export))
