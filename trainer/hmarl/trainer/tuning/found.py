"""What a search has found: its best trials, the preset, and the suite that confirms it."""

from __future__ import annotations

import json
import shlex
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from hmarl.sdk.files import write_text
from hmarl.trainer.runs.preset_files import write_preset
from hmarl.trainer.tuning.plan import SearchPlan, confirming_suite

_SHOWN = 5
_REPORT_SEEDS = 3
_STATES = {"COMPLETE": "done", "PRUNED": "pruned", "FAIL": "failed", "RUNNING": "open"}


@dataclass(frozen=True)
class Found:
    """What there is.

    Attributes:
        counts: of trials by what became of them.
        best: the best trials with number, value and settings, the best one first.
        before: value of the trial with the settings as they were, None where it has not come to its end.
        preset, confirm: files, None where no trial has come to its end.
        command: trains with the preset.
    """

    counts: dict[str, int]
    best: list[dict[str, Any]]
    before: float | None
    preset: str | None
    confirm: str | None
    command: str | None

    def told(self) -> str:
        """The counts in words."""
        return ", ".join(f"{count} {name}" for name, count in self.counts.items()) + " trials"


def write_found(plan: SearchPlan, study: Any, folder: Path, before: dict[str, Any]) -> Found:
    """Write best.toml, confirm.toml and trials.json.

    Args:
        plan: of the search.
        study: Optuna's.
        folder: the search's directory.
        before: the settings as they are without a search.
    """
    trials = [trial for trial in study.get_trials(deepcopy=False) if trial.state.name in _STATES]
    names = [_STATES[trial.state.name] for trial in trials]
    done = sorted((t for t in trials if t.state.name == "COMPLETE"), key=lambda t: (-t.value, t.number))
    best = [{"number": t.number, "value": t.value, "settings": t.user_attrs["settings"]} for t in done]
    rows = [
        {"number": t.number, "state": _STATES[t.state.name], "value": t.value, "settings": t.user_attrs.get("settings"),
         "curve": [[step, value] for step, value in sorted(t.intermediate_values.items())],
         "error": t.user_attrs.get("error")}
        for t in trials
    ]  # fmt: skip
    write_text(folder / "trials.json", json.dumps(rows, indent=1) + "\n")
    counts = {name: names.count(name) for name in _STATES.values() if name in names}
    of_before = next((trial["value"] for trial in best if trial["settings"] == before), None)
    if not best:
        return Found(counts, [], None, None, None, None)
    preset, confirm = folder / "best.toml", folder / "confirm.toml"
    value, number = best[0]["value"], best[0]["number"]
    about = f"hmarl-tune: {plan.measure} {value:.4g} in trial {number} of {len(trials)}"
    write_preset(preset, plan.preset_of(best[0]["settings"], about))
    write_text(confirm, confirming_suite(plan, preset, _REPORT_SEEDS))
    words = ["hmarl-train", plan.algorithm, "--env", plan.environment, "--preset", str(preset), "--seed", "1"]
    return Found(counts, best[:_SHOWN], of_before, str(preset), str(confirm), shlex.join(words))
