"""hmarl-algorithms: what there is to train with."""

from __future__ import annotations

import json
import sys
from typing import Any

from hmarl.runtime.command_line import AS_JSON, argument, command, flag
from hmarl.sdk.commands._common import print_json, run
from hmarl.sdk.commands._console import make_console, print_listing
from hmarl.trainer.commands.shared import need_extra, need_torch


@command(
    "hmarl-algorithms",
    argument("algorithm", "show this algorithm's settings", required=False),
    flag("--presets", "list the presets"),
    AS_JSON,
    examples=("hmarl-algorithms", "hmarl-algorithms hcpo", "hmarl-algorithms --presets"),
)
def algorithms(algorithm: str | None, presets: bool, as_json: bool) -> None:
    """List the algorithms, the settings of one, or the presets."""
    need_extra("hmarl-algorithms")
    from hmarl.trainer.algorithms import check_algorithm

    if algorithm is not None:
        check_algorithm(algorithm)
    need_torch("hmarl-algorithms")
    from hmarl.trainer.algorithms import ALGORITHMS, find_algorithm
    from hmarl.trainer.contract.algorithm import Algorithm
    from hmarl.trainer.networks.settings import AlgorithmSettings, Settings, conditions
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
    elif algorithm is not None:
        found = find_algorithm(algorithm)
        classes: dict[str, type[Settings | AlgorithmSettings]] = {"algorithm": found.settings_class, "run": RunSettings}
        if found.teacher is not Algorithm.teacher:
            classes["distillation"] = DistillationSettings
        title, columns = f"settings of {algorithm} (--set SETTING=VALUE)", ("setting", "default", "meaning")
        rows, document = [], {}
        for prefix, model in classes.items():
            for key, field in model.model_fields.items():
                if prefix == "algorithm" and key in found.settings_class.without_effect:
                    continue
                meaning = "; ".join(
                    [field.description or "", *(f"only with {each}" for each in conditions(model, key))]
                )
                rows.append((f"{prefix}.{key}", json.dumps(field.default), meaning))
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
    sys.exit(run(algorithms))
