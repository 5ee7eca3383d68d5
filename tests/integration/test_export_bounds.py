"""Continuous actions of any range: trained, exported, verified and served, within bounds and as torch computes them."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import numpy_helper

from hmarl.runtime.verify import verify_bundle
from hmarl.sdk.environments import make
from hmarl.sdk.errors import UsageError
from hmarl.sdk.evaluation.closed_loop import evaluate
from hmarl.sdk.evaluation.deployed_teams import BundleTeam
from hmarl.trainer.export import export
from hmarl.trainer.export.policy_source import load_team
from training_runs import tiny_config, train

TEAM = "pettingzoo/named_teams:make"
# Micrometres to newtons, one-sided and far off zero, no range at all, and no float32 in between.
BOUNDS = [
    (-1e-6, 1e-6), (-0.1, 0.1), (-1.0, 1.0), (-100.0, 100.0), (-180.0, 180.0), (-1e4, 1e4), (-1e8, 1e8),
    (0.0, 0.1), (-3.0, 5.0), (10.0, 1000.0), (1e6, 1e6 + 1.0), (0.1, 0.1), (0.0, 0.0),
]  # fmt: skip


def trained(folder: Path, **arguments: object) -> Path:
    config = tiny_config("happo", TEAM, {"squash": "clip"}, None, {"workers": 0, **arguments})
    train(config, folder / "run")
    return folder / "run"


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_actions_of_any_range_are_exported_and_stay_within_it(dtype: str, tmp_path: Path) -> None:
    arguments = {"workers": 0, "bounds": BOUNDS, "dtype": dtype, "names": ["arm"]}
    run = trained(tmp_path, **arguments)
    bundle = export.export_run(run, tmp_path / "bundle")
    assert bundle.manifest.parity[0].max_error < 2e-6
    assert [report.problems for report in verify_bundle(bundle)] == [[]]
    environment = make(TEAM, 4, **arguments)
    low, high = np.array(BOUNDS, dtype).T
    half = (high - low).astype(np.float64) / 2
    for sample in (False, True):
        make_team, *_ = load_team(run, sample=sample)
        teams = [BundleTeam(bundle, environment.spec, sample=sample), make_team(environment.spec)]
        served, torchs = (evaluate(environment, team, 8, seed=3, record=True) for team in teams)
        assert served.actions is not None
        assert torchs.actions is not None
        off = np.abs(served.actions[0].astype(np.float64) - torchs.actions[0])
        assert (off <= 1e-5 * half + np.spacing(np.abs(high).astype(np.float32))).all()
        # As the policy hands it out, before an adapter cuts it off; where no float32 lies between, the nearest one.
        room = low.astype(np.float32) < high.astype(np.float32)
        assert ((served.actions[0] >= low) & (served.actions[0] <= high))[..., room].all()
    environment.close()


def test_a_wrong_range_is_still_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A thousandth of the range, with bounds of ±100: not for being large in the environment's units."""
    run = trained(tmp_path, bounds=[(-100.0, 100.0), (-1e-6, 1e-6)], names=["arm"])
    honest = export.onnx_bytes
    changed = 0

    def tampered(graph: export.Graph) -> bytes:
        nonlocal changed
        model = onnx.load_from_string(honest(graph))
        for tensor in model.graph.initializer:
            values = numpy_helper.to_array(tensor)
            if values.shape == (2,) and np.allclose(values, [100.0, 1e-6], rtol=1e-3):
                wrong = values * np.array([1.0, 1.001], np.float32)
                tensor.CopyFrom(numpy_helper.from_array(wrong, tensor.name))
                changed += 1
        return bytes(model.SerializeToString())

    monkeypatch.setattr(export, "onnx_bytes", tampered)
    with pytest.raises(export.ParityError, match=r"'action' differs by .* is allowed"):
        export.export_run(run, tmp_path / "bundle")
    assert changed
    assert not (tmp_path / "bundle").exists()


@pytest.mark.parametrize(
    ("bounds", "dtype", "message"),
    [
        ((-3.4e38, 3.4e38), "float32", r"low\[0\] is -3.4e\+38"),
        ((-1.0, 1e39), "float64", r"high\[0\] is 1e\+39"),
        ((0.0, np.finfo(np.float32).max), "float32", r"high\[0\] is 3.40282e\+38"),
        ((-np.inf, 1.0), "float32", r"low\[0\] is -inf"),
    ],
)
def test_bounds_that_stand_for_none_are_refused_by_name(
    bounds: tuple[float, float], dtype: str, message: str, tmp_path: Path
) -> None:
    config = tiny_config("happo", TEAM, None, None, {"workers": 0, "bounds": [bounds], "dtype": dtype})
    with pytest.raises(UsageError, match=rf"agent 'a': got the unbounded action space .*{message}.*±1.7e\+38"):
        train(config, tmp_path / "run")
