"""Settings that change nothing unless another one has a certain value: said of those that a user gives, and true."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from hmarl.trainer.algorithms import ALGORITHMS
from hmarl.trainer.networks.settings import conditions, idle, validate
from training_runs import final_hash, tiny_config, train

pytestmark = pytest.mark.usefixtures("single_thread", "without_pictures")

TASK = "mpe/simple_spread"
GUIDER: dict[str, Any] = {"embedding_size": 8, "epochs": 2}
COMMON: dict[str, Any] = {"conductor_sees": "nothing"}
FLAT: dict[str, Any] = {"levels": 1, "embedding_size": 8}
IDLE: list[tuple[str, dict[str, Any], dict[str, Any]]] = [
    ("happo", {}, {"memory_size": 5}),
    ("hcpo", {"instruction_space": "continuous"}, {"instructions": 3}),
    ("hcpo", {}, {"instruction_size": 3, "conductor_remembers": False, "common_search": 2}),
    ("hcpo", {}, {"instruction_roles": True}),
    ("hcpo", COMMON, {"distillation_learning_rate": 0.1, "distillation_epochs": 3, "distillation_minibatches": 2}),
    ("hcpo", {"conductor_learns": False}, {"conductor_kl_limit": 0.5, "conductor_entropy_coefficient": 0.7}),
    ("magpo", GUIDER, {"imitation_gap": 1.0, "team_value": False}),
    ("magpo", {**GUIDER, "shuffle_agents": False}, {"reshuffle": False}),
    (
        "magpo",
        {**GUIDER, "guider": "factorised"},
        {"blocks": 2, "initial_gains": "small", "value_encoder": "own"},
    ),
    ("magpo", {**GUIDER, "guider": "factorised", "credit": "own"}, {"team_value": False}),
    ("hamdpo", {"step_size_schedule": "linear"}, {"kl_target": 0.001, "learning_rate_follows": True}),
    ("hamdpo", {}, {"step_size_floor": 0.5}),
    ("hamdpo", {"sequential_factor": False}, {"sequential_factor_clip": 0.1}),
    ("himpo", FLAT, {"goal_interval": 2, "manager_interval": 3, "local_rewards": False}),
    ("himpo", {"graph": "all", "embedding_size": 8}, {"radius": 0.1, "neighbours": 1}),
]
Call = Callable[..., tuple[int, str, str]]


@pytest.mark.parametrize(("algorithm", "settings", "given"), IDLE)
def test_what_is_said_to_change_nothing_does_not(
    algorithm: str, settings: dict[str, Any], given: dict[str, Any], tmp_path: Path
) -> None:
    checked = validate(ALGORITHMS[algorithm].settings_class, {**settings, **given}, "algorithm")
    said = idle(checked, given)
    assert {line.partition(":")[0] for line in said} == {f"algorithm.{name}" for name in given}

    hashes = []
    for name, more in (("without", {}), ("with", given)):
        train(tiny_config(algorithm, TASK, {**settings, **more}, {"steps": 80}), tmp_path / name)
        hashes.append(final_hash(tmp_path / name))
    assert hashes[0] == hashes[1]


def test_every_condition_is_tried() -> None:
    kinds = [kind.settings_class for kind in ALGORITHMS.values()]
    stated = {
        (name, condition.setting)
        for kind in kinds
        for name in kind.model_fields.keys() - kind.without_effect
        for condition in conditions(kind, name)
    }
    tried = {
        (name, condition.setting)
        for algorithm, settings, given in IDLE
        for checked in [validate(ALGORITHMS[algorithm].settings_class, {**settings, **given}, "algorithm")]
        for name in given
        for condition in conditions(type(checked), name)
        if getattr(checked, condition.setting) not in condition.values
    }
    assert tried == stated


def test_nothing_is_said_of_what_has_an_effect_or_was_not_given() -> None:
    checked = validate(ALGORITHMS["happo"].settings_class, {"recurrent": True, "memory_size": 5}, "algorithm")
    assert idle(checked, ["recurrent", "memory_size"]) == []
    assert idle(validate(ALGORITHMS["happo"].settings_class, {}, "algorithm"), []) == []


def test_the_command_says_it_and_trains(call: Call, tmp_path: Path) -> None:
    words = ("--steps", "100", "--set", "run.environments=4", "--set", "run.evaluation_episodes=1")
    given = ("--set", "algorithm.memory_size=5", "--set", "algorithm.gamma=0.9", "--out", str(tmp_path / "run"))
    code, _, errors = call("train", "happo", "--env", TASK, *words, *given)
    assert code == 0, errors
    assert errors.count("has no effect") == 1
    assert "algorithm.memory_size: got 5, which has no effect with recurrent=false, only with recurrent=true" in errors


def test_the_listing_says_with_what_a_setting_has_an_effect(call: Call) -> None:
    code, output, errors = call("algorithms", "himpo")
    assert code == 0, errors
    assert "only with graph=radius or auto" in " ".join(output.split())
