"""Settings: defaults, limits, and errors that name the key, what was got and what was expected."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import pytest
from pydantic import ValidationError

from hmarl.sdk.errors import UsageError
from hmarl.trainer.algorithms import ALGORITHMS, find_algorithm
from hmarl.trainer.algorithms.hatrpo import HatrpoSettings
from hmarl.trainer.algorithms.hcpo import HcpoSettings
from hmarl.trainer.algorithms.magpo import MagpoSettings
from hmarl.trainer.algorithms.mat import MatSettings
from hmarl.trainer.hierarchy.settings import HierarchySettings
from hmarl.trainer.networks.settings import Settings, validate
from hmarl.trainer.runs.config import RunConfig, make_config
from hmarl.trainer.runs.presets import PRESETS, find_preset, named_preset
from hmarl.trainer.runs.settings import RunSettings


@pytest.mark.parametrize(
    ("key", "suggestion"), [("gama", "gamma"), ("instruction", "instructions"), ("kl_limits", "kl_limit")]
)
def test_an_unknown_key_is_refused_with_a_suggestion(key: str, suggestion: str) -> None:
    with pytest.raises(UsageError, match=f"unknown setting 'algorithm.{key}'; did you mean 'algorithm.{suggestion}'"):
        validate(HcpoSettings, {key: 1}, "algorithm")


OUT_OF_RANGE: list[tuple[type[Settings], str, Any, str]] = [
    (HatrpoSettings, "gamma", 1.5, "a number of at most 1"),
    (HatrpoSettings, "gamma", -0.1, "a number of at least 0"),
    (HatrpoSettings, "gamma", "high", "a number"),
    (HatrpoSettings, "gamma", float("nan"), "a finite number"),
    (HatrpoSettings, "critic_learning_rate", float("inf"), "a finite number"),
    (HatrpoSettings, "critic_learning_rate", 0, "a number above 0"),
    (HatrpoSettings, "activation", "sigmoid", "one of 'relu', 'tanh', 'elu' or 'silu'"),
    (HatrpoSettings, "critic_loss", "l1", "one of 'mse' or 'huber'"),
    (HatrpoSettings, "hidden_sizes", 64, "a list"),
    (HatrpoSettings, "normalise_values", "perhaps", "true or false"),
    (HcpoSettings, "instructions", 0, "a number of at least 1"),
    (HcpoSettings, "instruction_interval", 0, "a number of at least 1"),
    (HcpoSettings, "instruction_weight", "none", "one of 'ratio' or 'paper'"),
    (HcpoSettings, "backtrack_coefficient", 1.0, "a number below 1"),
    (HcpoSettings, "curvature_fraction", 0.0, "a number above 0"),
    (RunSettings, "steps", -5, "a number of at least 1"),
    (RunSettings, "seed", -1, "a number of at least 0"),
    (RunSettings, "seed", 2**31, f"a number below {2**31}"),
    (RunSettings, "environments", 0, "a number of at least 1"),
    (RunSettings, "environments", 2.5, "an integer"),
    (RunSettings, "checkpoint_interval", 0, "a number of at least 1"),
    (RunSettings, "environments", True, "a value that is neither true nor false"),
    (HatrpoSettings, "gamma", False, "a value that is neither true nor false"),
    (HatrpoSettings, "chunk_length", "x", "an integer"),
    (MagpoSettings, "delta", "car", "a number or 'auto'"),
    (MagpoSettings, "delta", 1, "a number above 1 or 'auto'"),
    (MatSettings, "guider", "sable", "'mat'"),
    (RunSettings, "workers", 300, "at most one an environment (run.environments=256)"),
    (HierarchySettings, "levels", True, "a value that is neither true nor false"),
]


@pytest.mark.parametrize(
    ("algorithm", "settings", "said"),
    [
        ("hcpo", {"local_share": 0.05}, r"local_share: got 0.05, which of run.environments=8 is none; .* 0.125"),
        ("hcpo", {"local_share_end": 0.06}, "local_share_end: got 0.06, which of run.environments=8 is none"),
        ("happo", {"recurrent": True, "chunk_length": 4}, r"chunk_length: got 4, expected a divisor of .* \(10\)"),
        ("himpo", {"goal_interval": 11, "levels": 2}, r"goal_interval: got 11, expected at most .* \(10\)"),
        (
            "himpo",
            {"goal_interval": 4, "manager_interval": 3},
            r"manager_interval: got 3 times goal_interval=4 steps, expected at most .* \(10\)",
        ),
    ],
)
def test_settings_that_do_not_go_with_the_rollouts_are_refused(
    algorithm: str, settings: dict[str, Any], said: str
) -> None:
    rollouts = {"rollout_length": 10, "environments": 8}
    with pytest.raises(UsageError, match=rf"^algorithm\.{said}"):
        make_config(algorithm, "lbfws/hard", settings, rollouts, {})
    fitting = {
        "chunk_length": 5, "goal_interval": 5, "manager_interval": 2, "local_share": 0.125, "local_share_end": 0.1
    }  # fmt: skip
    fitted = settings | {name: value for name, value in fitting.items() if name in settings}
    make_config(algorithm, "lbfws/hard", fitted, rollouts, {})
    make_config("himpo", "lbfws/hard", {"levels": 1, "goal_interval": 99}, {"rollout_length": 10}, {})


@pytest.mark.parametrize("algorithm", ["hcpo", "guided-hcpo"])
def test_interchangeable_agents_have_one_local_conductor(algorithm: str) -> None:
    settings = {"share_parameters": True, "agent_identity": False}
    make_config(algorithm, "mpe/simple_spread", settings, {}, {})
    with pytest.raises(UsageError, match=r"^algorithm\.share_local_conductors: got False, expected True .*identity=F"):
        make_config(algorithm, "mpe/simple_spread", settings | {"share_local_conductors": False}, {}, {})


@pytest.mark.parametrize(("model", "key", "value", "expected"), OUT_OF_RANGE)
def test_a_value_out_of_range_names_key_got_and_expected(
    model: type[Settings], key: str, value: Any, expected: str
) -> None:
    with pytest.raises(UsageError) as error:
        validate(model, {key: value}, "group")
    assert str(error.value) == f"group.{key}: got {value!r}, expected {expected}"
    assert error.value.exit_code == 2


def test_a_hidden_layer_needs_a_unit() -> None:
    with pytest.raises(UsageError, match=r"algorithm\.hidden_sizes\.1: got 0, expected a number of at least 1$"):
        validate(HatrpoSettings, {"hidden_sizes": [64, 0]}, "algorithm")


def test_settings_never_change_after_they_were_checked() -> None:
    settings = RunSettings()
    with pytest.raises(ValidationError, match="frozen"):
        settings.steps = 5  # type: ignore[misc]


def test_every_setting_has_a_meaning_and_a_valid_default() -> None:
    for model in (RunSettings, *(algorithm.settings_class for algorithm in ALGORITHMS.values())):
        for name, field in model.model_fields.items():
            assert field.description, f"{model.__name__}.{name}"
        assert validate(model, model().model_dump(), "x") == model()


def test_a_config_read_back_from_json_is_the_same() -> None:
    config = make_config("hcpo", "mpe/simple_spread", {"hidden_sizes": [3, 4]}, {"seed": 9}, {"N": 2})
    again = RunConfig.model_validate_json(config.model_dump_json())
    assert again.settings() == config.settings()
    assert again.run_settings() == config.run_settings()
    assert config.settings().hidden_sizes == (3, 4)
    assert config.run["steps"] == RunSettings().steps, "defaults are saved too"


def test_unknown_algorithms_are_refused_with_a_suggestion() -> None:
    with pytest.raises(UsageError, match="unknown algorithm 'hatpro'; did you mean 'hatrpo'"):
        find_algorithm("hatpro")


@pytest.mark.parametrize(
    ("device", "message"), [("gpu", "expected e.g. cpu or cuda:0"), ("cuda:99", "cuda:99")]
)  # the second also where there is a CUDA device
def test_a_device_that_is_not_there_is_refused(device: str, message: str) -> None:
    with pytest.raises(UsageError, match=f"run.device: got '{device}'.*") as error:
        make_config("happo", "mpe/simple_spread", {}, {"device": device}, {})
    assert message in str(error.value)


@pytest.mark.parametrize(
    ("algorithm", "setting", "value"),
    [
        ("mat", "hidden_sizes", (8,)),
        ("mat", "recurrent", True),
        ("sable", "memory_size", 8),
        ("himpo", "chunk_length", 5),
    ],
)
def test_settings_without_effect_are_refused_and_not_listed(
    algorithm: str, setting: str, value: Any, call: Callable[..., tuple[int, str, str]]
) -> None:
    with pytest.raises(UsageError, match=rf"algorithm\.{setting}: got .*, which has no effect"):
        make_config(algorithm, "mpe/simple_spread", {setting: value}, {}, {})
    listed = json.loads(call("algorithms", algorithm, "--json")[1].splitlines()[-1])
    assert f"algorithm.{setting}" not in listed
    assert "algorithm.gamma" in listed


def test_every_preset_is_a_valid_configuration() -> None:
    for preset in PRESETS:
        environment = preset.environment.replace("*", "simple_spread")
        run = {**preset.run_settings, "steps": preset.steps}
        make_config(preset.algorithm, environment, preset.algorithm_settings, run, preset.environment_arguments)
        found = (
            find_preset(preset.algorithm, environment)
            if preset.name is None
            else named_preset(preset.name, preset.algorithm)
        )
        assert found is preset
    assert find_preset("hcpo", "rware/tiny-2ag") is None


@pytest.mark.parametrize(
    ("name", "kl_limit", "gamma", "batch", "width", "backtrack"),
    [
        ("paper-smac", 0.06, 0.95, 3200, 64, 0.5),
        ("paper-smac-corridor", 0.06, 0.99, 3200, 64, 0.5),
        ("paper-mamujoco", 0.005, 0.99, 4000, 128, 0.8),
        ("paper-mpe", 0.005, 0.99, 4000, 128, 0.8),
    ],
)
def test_the_papers_presets_hold_its_tables(
    name: str, kl_limit: float, gamma: float, batch: int, width: int, backtrack: float
) -> None:
    """Tables 1, 3 and 4 of the HCPO paper, whose hidden layer 1 is two layers in the code that it builds on."""
    preset = named_preset(name, "hcpo")
    settings = validate(HcpoSettings, preset.algorithm_settings, "algorithm")
    assert (settings.kl_limit, settings.gamma, settings.backtrack_coefficient) == (kl_limit, gamma, backtrack)
    sizes = (settings.hidden_sizes, settings.critic_hidden_sizes, settings.conductor_hidden_sizes)
    assert sizes == ((width, width),) * 3
    assert (settings.normalise_layers, settings.damping) == (True, 0.1)
    assert (settings.conductor_kl_limit, settings.instructions, settings.accept_ratio) == (0.01, 10, 0.5)
    assert preset.run_settings["environments"] * preset.run_settings["rollout_length"] == batch


def test_magpos_named_presets_hold_its_public_settings() -> None:
    """One row of each family by hand, and what all share."""
    rows = {
        "paper-magpo-spread-5": (8, 0.5, 128, 5, 0.1, 1, 0.001, 3, 5e-4, 4.0, 1.3),
        "paper-magpo-coordsum-3x30": (4, 0.5, 64, 15, 0.1, 1, 0.01, 1, 5e-4, 8.0, 1.2),
        "paper-magpo-lbf-8x8": (4, 10.0, 32, 15, 0.2, 4, 0.001, 2, 2.5e-4, 2.0, 1.5),
        "paper-magpo-rware-4": (2, 0.5, 128, 5, 0.2, 2, 0.01, 3, 5e-4, 8.0, 1.3),
        "paper-magpo-smax-2s3z": (4, 10.0, 128, 5, 0.2, 2, 0.01, 1, 5e-4, 4.0, 1.3),
    }
    for name, row in rows.items():
        preset = named_preset(name, "magpo")
        made = validate(MagpoSettings, preset.algorithm_settings, "algorithm")
        assert row == (
            made.minibatches,
            made.max_gradient_norm,
            made.embedding_size,
            made.epochs,
            made.clip,
            made.attention_heads,
            made.entropy_coefficient,
            made.blocks,
            made.learning_rate,
            made.reinforcement_weight,
            made.delta,
        )
        assert (made.guider, made.credit, made.share_parameters, made.recurrent) == ("sable", "own", True, True)
        assert made.learner_learning_rate is None, "one step size for both"
        assert (preset.steps, preset.run_settings["rollout_length"]) == (20_000_000, 128)
    assert named_preset("paper-magpo-coordsum-3x30", "magpo").environment_arguments == {"record": "reference"}
    assert named_preset("paper-magpo-spread-5", "magpo").environment_arguments == {"N": 5}


def test_named_presets_are_used_only_by_name() -> None:
    found = find_preset("hcpo", "mpe/simple_spread")
    assert found is not None
    assert found.name is None
    assert find_preset("hcpo", "smac/3s5z") is None
    with pytest.raises(UsageError, match="unknown preset 'paper-smax'; did you mean 'paper-smac'"):
        named_preset("paper-smax", "hcpo")
    with pytest.raises(UsageError, match="--preset paper-mpe: is for hcpo, got happo"):
        named_preset("paper-mpe", "happo")
