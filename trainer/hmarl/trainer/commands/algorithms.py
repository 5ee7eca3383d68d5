"""hmarl-algorithms: what there is to train with."""

from __future__ import annotations

import json
from typing import Annotated, Any

import typer
from pydantic import BaseModel

from hmarl.sdk.commands._common import print_json, run_command
from hmarl.sdk.commands._console import make_console, print_listing
from hmarl.trainer.commands.shared import need_torch


def algorithms(
    name: Annotated[str | None, typer.Argument(help="show this algorithm's settings")] = None,
    presets: Annotated[bool, typer.Option("--presets", help="list the presets")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="print a JSON object as the last line of stdout")] = False,
) -> None:
    """List the algorithms, the settings of one, or the presets."""
    need_torch("hmarl-algorithms")
    from hmarl.trainer.algorithms import ALGORITHMS, find_algorithm
    from hmarl.trainer.contract.algorithm import Algorithm
    from hmarl.trainer.runs.presets import PRESETS
    from hmarl.trainer.runs.settings import RunSettings
    from hmarl.trainer.students.settings import DistillationSettings

    columns: tuple[str, ...]
    rows: list[tuple[str, ...]]
    if presets:
        title, columns = "presets", ("algorithm", "environment", "--preset", "steps", "about")
        rows = [
            (preset.algorithm, preset.environment, preset.name or "by itself", f"{preset.steps:,}", preset.about)
            for preset in PRESETS
        ]
        document: dict[str, Any] = {"presets": [vars(preset) for preset in PRESETS]}
    elif name is not None:
        algorithm = find_algorithm(name)
        classes: dict[str, type[BaseModel]] = {"algorithm": algorithm.settings_class, "run": RunSettings}
        if algorithm.teacher is not Algorithm.teacher:
            classes["distillation"] = DistillationSettings
        title, columns = f"settings of {name} (--set SETTING=VALUE)", ("setting", "default", "meaning")
        rows, document = [], {}
        for prefix, model in classes.items():
            for key, field in model.model_fields.items():
                if prefix == "algorithm" and key in algorithm.settings_class.without_effect:
                    continue
                rows.append((f"{prefix}.{key}", json.dumps(field.default), field.description or ""))
                document[f"{prefix}.{key}"] = field.default
    else:
        title, columns = "algorithms", ("algorithm", "acts", "about")
        rows = [
            (key, "agent by agent" if each.exportable else "centrally", (each.__doc__ or "").splitlines()[0])
            for key, each in ALGORITHMS.items()
        ]
        central = [key for key, each in ALGORITHMS.items() if not each.exportable]
        document = {"algorithms": list(ALGORITHMS), "central": central}
    print_listing(make_console(), columns, rows, title)
    if as_json:
        print_json(document)


def algorithms_main() -> None:
    """Entry point of hmarl-algorithms."""
    run_command(algorithms)
