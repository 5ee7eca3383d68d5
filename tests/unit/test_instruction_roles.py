"""Instructions that hand out roles: agent i of those who share a network sees (M + i) mod K."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from hmarl.sdk.errors import UsageError
from hmarl.trainer.algorithms.hcpo import Hcpo
from hmarl.trainer.contract.fixed import FixedNetwork
from hmarl.trainer.export.samples import example_inputs
from hmarl.trainer.networks.policies import role
from hmarl.trainer.runs.config import make_config
from hmarl.trainer.runs.loaded_run import load_run
from training_runs import new_hcpo, tiny_config, train

pytestmark = [pytest.mark.usefixtures("single_thread", "without_pictures")]

TASK = "coordsum/3x10-30"
ROLES: dict[str, Any] = {
    "share_parameters": True,
    "instruction_roles": True,
    "instructions": 4,
    "instruction_scale": 4.0,
    "conductor_sees": "common",
}


def with_roles() -> Hcpo:
    algorithm, *_ = new_hcpo(TASK, 6, 12, **ROLES)
    return algorithm


def test_what_each_agent_sees_by_hand() -> None:
    assert [role(4, member) for member in range(3)] == [[0, 1, 2, 3], [3, 0, 1, 2], [2, 3, 0, 1]]
    algorithm = with_roles()
    (policy,) = algorithm.policies
    features = torch.tensor([0.5, -1.0]).expand(1, 3, 2)
    seen = policy.inputs(features, algorithm.conductor.seen_of(torch.tensor([3])))
    assert seen.shape == (1, 3, 2 + 4), "there is no identity beside the role"
    assert seen[0, :, 2:].tolist() == [[0, 0, 0, 4], [4, 0, 0, 0], [0, 4, 0, 0]], "of M = 3: 3, 0 and 1"
    each_its_own = algorithm.conductor.seen_of(torch.tensor([[3, 2, 1]]))
    assert policy.inputs(features, each_its_own)[0, :, 2:].tolist() == [[0, 0, 0, 4]] * 3
    withheld = policy.inputs(features, torch.zeros(1, 4))
    assert withheld[0, :, 2:].abs().sum() == 0


def test_the_next_instruction_passes_the_roles_on() -> None:
    """Who observe the same: agent i under M + 1 acts as agent i + 1 does under M."""
    algorithm = with_roles()
    (policy,) = algorithm.policies
    features = torch.tensor([0.5, -1.0]).expand(4, 3, 2)
    seen = policy.inputs(features, algorithm.conductor.seen_of(torch.arange(4))).transpose(0, 1)
    probabilities = policy.all_distributions(seen).logits.softmax(-1)  # type: ignore[attr-defined]
    for instruction in range(4):
        torch.testing.assert_close(probabilities[:2, (instruction + 1) % 4], probabilities[1:, instruction])
    assert (probabilities[0, 0] - probabilities[0, 1]).abs().max() > 1e-3, "roles do not differ"


def test_a_copied_network_has_its_role_built_in() -> None:
    algorithm = with_roles()
    (policy,) = algorithm.policies
    features, context = torch.randn(5, 3, 2), torch.randn(5, 4)
    outputs = policy.network(policy.theta[0, : policy.network.size], policy.inputs(features, context))
    for member in range(3):
        copied = FixedNetwork.of(policy, member)
        torch.testing.assert_close(copied(torch.cat([features[:, member], context], dim=-1)), outputs[:, member])


def test_a_deployed_policy_acts_as_the_trained_one() -> None:
    """Of agent 2, whatever the copy of the conductor chooses."""
    algorithm = with_roles()
    (policy,) = algorithm.policies
    module = algorithm.deployable(2)
    given = example_inputs(module, 64, np.random.default_rng(0))
    with torch.no_grad():
        outputs = dict(zip(module.output_names, module(*(given[name] for name in module.input_names)), strict=True))
    features = module.normaliser(given["observation"]).unsqueeze(1).expand(64, 3, 2)
    seen = policy.inputs(features, algorithm.conductor.seen_of(outputs["instruction"])).transpose(0, 1)
    trained = policy.all_distributions(seen).logits[2]  # type: ignore[attr-defined]
    torch.testing.assert_close(outputs["action_logits"], trained)
    assert len(outputs["instruction"].unique()) == 4


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"instruction_space": "continuous"}, "algorithm.instruction_space: got 'continuous', expected 'discrete'"),
        ({"agent_identity": False}, "algorithm.agent_identity: got False, expected True with instruction_roles=true"),
    ],
)
def test_what_has_no_roles_is_refused(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(UsageError) as error:
        make_config("hcpo", TASK, {**ROLES, **settings}, {}, {})
    assert message in str(error.value)


@pytest.mark.parametrize("algorithm", ["hcpo", "guided-hcpo"])
def test_fewer_roles_than_agents_are_refused(algorithm: str, tmp_path: Path) -> None:
    settings = {"share_parameters": True, "instruction_roles": True, "instructions": 2}
    with pytest.raises(UsageError, match=r"algorithm.instructions: got 2, expected at least 3 with instruction_roles"):
        train(tiny_config(algorithm, TASK, settings), tmp_path / "run")


def test_a_guided_teams_deployed_policies_have_their_roles(tmp_path: Path) -> None:
    settings = {"share_parameters": True, "instruction_roles": True, "instructions": 3, "guider_epochs": 1}
    train(tiny_config("guided-hcpo", TASK, settings, {"steps": 100}), tmp_path / "run")
    algorithm = load_run(tmp_path / "run").algorithm
    for agent in range(3):
        built_in = algorithm.deployable(agent).actor.role
        assert built_in is not None
        assert built_in.tolist() == role(3, agent)
