"""Policies learn from pictures: by pixels alone, where chance is far below.

python -m pytest tests/learning/test_learning_pixels.py -m slow
"""

from __future__ import annotations

from contextlib import closing
from pathlib import Path
from typing import Any

import pytest

from hmarl.sdk.environments import make
from hmarl.sdk.evaluation.closed_loop import evaluate
from hmarl.sdk.evaluation.deployed_teams import BundleTeam
from hmarl.trainer.export.export import export_run
from hmarl.trainer.runs.config import make_config
from training_runs import train

pytestmark = [pytest.mark.slow, pytest.mark.timeout(900), pytest.mark.usefixtures("single_thread")]

RUN = {"environments": 16, "rollout_length": 16, "threads": 1, "evaluation_episodes": 32, "seed": 1}
SETTINGS: dict[str, dict[str, Any]] = {
    "mappo": {"share_parameters": True},
    "ippo": {"recurrent": True},
    "happo": {"image_encoder": "impala"},
    "hatrpo": {},
    "haa2c": {},
    "hamdpo": {},
    "a2po": {},
    "hcpo": {"instructions": 2},
}


@pytest.mark.parametrize("algorithm", SETTINGS)
def test_two_agents_name_the_quadrant_that_is_lit(algorithm: str, tmp_path: Path) -> None:
    """Chance earns 0.5 of 2, and so does who does not look; what is served does as well as what was trained."""
    arguments = {"workers": 0, "own_state": True}
    chosen = {"gamma": 0.5, "entropy_coefficient": 0.003, **SETTINGS[algorithm]}
    run = {**RUN, "steps": 20_000, "evaluation_interval": 20_000}
    train(make_config(algorithm, "pettingzoo/pixel_toys:Lit", chosen, run, arguments), tmp_path / "run")
    bundle = export_run(tmp_path / "run", tmp_path / "bundle", checkpoint="last")
    with closing(make("pettingzoo/pixel_toys:Lit", 32, **arguments)) as environment:
        played = evaluate(environment, BundleTeam(bundle, environment.spec), 64, seed=5)
    assert played.returns.mean() > 1.6
