"""Who acts for an agent that was not trained."""

from __future__ import annotations

from pathlib import Path

import pytest
from gymnasium import spaces

from hmarl.runtime.bundle import AgentModel, Bundle, UsageError
from hmarl.sdk.evaluation.assignment import assign
from hmarl.sdk.spaces import AgentSpec, EnvironmentSpec
from toy_bundle import write_toy_bundle


def environment(*names: str, size: int = 6, actions: int = 5, masked: bool = True) -> EnvironmentSpec:
    agents = tuple(AgentSpec(name, size, spaces.Discrete(actions), masked) for name in names)
    return EnvironmentSpec("toy/toy", agents, 1, None, "sum")


def models(bundle: Bundle) -> dict[str, AgentModel]:
    return {agent.id: agent for agent in bundle.manifest.agents}


def test_every_agent_acts_for_itself_and_an_interchangeable_one_for_the_others(interchangeable_bundle: Bundle) -> None:
    assigned = assign("toy", environment("agent_1", "bob"), models(interchangeable_bundle))
    assert assigned == {"agent_1": "agent_1", "bob": "agent_0"}
    assert assign("toy", environment("bob", masked=False), models(interchangeable_bundle)) == {"bob": "agent_0"}


def test_agents_of_their_own_stand_in_for_no_other(toy_bundle: Bundle) -> None:
    with pytest.raises(UsageError, match=r"toy: no agent 'bob'.*there: agent_0, agent_1\), and none of them is inter"):
        assign("toy", environment("agent_0", "bob"), models(toy_bundle))


@pytest.mark.parametrize(
    ("spec", "problem"),
    [
        (environment("bob", size=7), "observation size: got 6, the environment expects 7"),
        (environment("bob", actions=4), r"action space: got Discrete\(5\), the environment expects Discrete\(4\)"),
    ],
)
def test_what_does_not_fit_is_named(interchangeable_bundle: Bundle, spec: EnvironmentSpec, problem: str) -> None:
    with pytest.raises(UsageError, match=f"no agent 'bob'.* no interchangeable one fits: 'agent_0': {problem}"):
        assign("toy", spec, models(interchangeable_bundle))


def test_a_policy_without_a_mask_input_does_not_fit_where_actions_are_illegal(tmp_path: Path) -> None:
    bundle = write_toy_bundle(tmp_path / "b", plain=True, interchangeable=("agent",))
    with pytest.raises(UsageError, match="'agent_0': action mask: got a policy without a mask input"):
        assign("toy", environment("bob"), models(bundle))
    assert assign("toy", environment("bob", masked=False), models(bundle)) == {"bob": "agent_0"}


def test_two_kinds_that_fit_are_ambiguous(tmp_path: Path) -> None:
    bundle = write_toy_bundle(tmp_path / "b", agents=("red_0", "blue_0"), interchangeable=("red", "blue"))
    with pytest.raises(UsageError, match=r"like any of red_0, blue_0: say which .* --agents bob=red_0"):
        assign("toy", environment("bob"), models(bundle))
