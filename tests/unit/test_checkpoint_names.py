"""What checkpoints hold has names that stay: those that users have are loaded by them."""

from __future__ import annotations

import pytest
import torch

from hmarl.sdk.environments import make
from hmarl.trainer.algorithms import ALGORITHMS
from hmarl.trainer.networks.settings import validate
from training_runs import CPU, new_algorithm, of_use, tiny_networks

pytestmark = pytest.mark.usefixtures("single_thread")

EVERYWHERE = {"observation_normalisers.0", "state_normaliser"}
# Of one group of two agents, who remember where they can; what is learnt, and what acting remembers.
NAMES = {
    "a2po": (
        "critic optimisers.0.0 optimisers.0.1 policies.0",
        "memories.0",
    ),
    "ctds": (
        "delta guider guider_optimiser optimisers.0 policies.0 value_moments",
        "guider_memory memories.0",
    ),
    "guided-hcpo": (
        (
            "conductor delta distillers.0 guider guider_optimiser local_conductors.0 optimisers.0 policies.0 "
            "value_moments"
        ),
        "episode_step guider_memory instruction memories.0 remaining",
    ),
    "haa2c": (
        "critic optimisers.0.0 optimisers.0.1 policies.0",
        "memories.0",
    ),
    "hamdpo": (
        "critic optimisers.0.0 optimisers.0.1 policies.0 step_sizes",
        "memories.0",
    ),
    "happo": (
        "critic optimisers.0.0 optimisers.0.1 policies.0",
        "memories.0",
    ),
    "hasac": (
        "critic log_temperatures optimisers.0.0 optimisers.0.1 policies.0 step_moments temperature_optimiser",
        "",
    ),
    "hatrpo": (
        "critic policies.0",
        "memories.0",
    ),
    "hcpo": (
        "conductor critic distillers.0 instruction_critic local_conductors.0 monitor policies.0",
        "episode_step instruction memories.0 remaining",
    ),
    "himpo": (
        (
            "manager manager_optimiser manager_value manager_value_moments manager_value_optimiser "
            "sub_managers sub_managers_optimiser sub_managers_value sub_managers_value_moments "
            "sub_managers_value_optimiser workers workers_optimiser workers_value workers_value_moments "
            "workers_value_optimiser"
        ),
        "centres clock cluster edges fresh goal sub_goal",
    ),
    "ippo": (
        "critics.0 optimisers.0.0 policies.0",
        "memories.0",
    ),
    "magpo": (
        "delta guider guider_optimiser optimisers.0 performance policies.0 value_moments",
        "guider_memory memories.0",
    ),
    "mappo": (
        "critic optimisers.0.0 policies.0",
        "memories.0",
    ),
    "mat": (
        "guider guider_optimiser value_moments",
        "guider_memory",
    ),
    "maven": (
        (
            "discriminator frames latent_policy mixer optimisers.0 optimisers.1 optimisers.2 policies.0 "
            "step_moments targets.0 targets.1"
        ),
        "drawn earned first_state latent memories.0",
    ),
    "qmix": (
        "frames mixer optimisers.0 optimisers.1 policies.0 step_moments targets.0 targets.1",
        "memories.0",
    ),
    "sable": (
        "guider guider_optimiser value_moments",
        "guider_memory",
    ),
    "vdn": (
        "frames optimisers.0 policies.0 step_moments targets.0",
        "memories.0",
    ),
}


@pytest.mark.parametrize("name", list(ALGORITHMS))
def test_the_names_in_checkpoints_stay(name: str) -> None:
    environment = make("toy_environments:masked_discrete", 2)
    chosen = of_use(name, {"critic": "q", "embedding_size": 8, "recurrent": name != "himpo"})
    settings = validate(ALGORITHMS[name].settings_class, {**tiny_networks(name), **chosen}, "algorithm")
    algorithm = ALGORITHMS[name](environment.spec, settings, torch.Generator().manual_seed(0), CPU)
    algorithm.begin_rollout(2, 2)
    learnt, remembered = NAMES[name]
    assert set(algorithm.components()) == EVERYWHERE | set(learnt.split())
    assert set(algorithm.acting_state()) == set(remembered.split())


@pytest.mark.parametrize("name", ["hcpo", "guided-hcpo"])
def test_what_was_remembered_before_steps_were_counted_is_taken(name: str) -> None:
    algorithm, rollout, collector = new_algorithm(
        name, "toy_environments:masked_discrete", 2, 3, None, instruction_interval=7, conductor_hidden_sizes=(8,)
    )
    collector.collect(algorithm)
    older = {key: value for key, value in algorithm.acting_state().items() if key != "episode_step"}
    algorithm.load_acting_state(older)
    assert algorithm.acting_state()["episode_step"].tolist() == [0, 0]
    assert torch.equal(algorithm.acting_state()["remaining"], older["remaining"])
    collector.collect(algorithm)
    assert rollout.extras["decided"].sum() == 2  # one episode's end in three steps, each of two
