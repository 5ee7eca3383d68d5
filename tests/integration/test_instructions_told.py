"""Which instructions deployed agents follow: told alike in process and by a fleet, drawn into films and reports."""

from __future__ import annotations

from contextlib import ExitStack, closing

import numpy as np

from agent_process import AgentProcess
from hmarl.runtime.bundle import Bundle
from hmarl.sdk.clients.agent import agent_spec
from hmarl.sdk.environment import Observation
from hmarl.sdk.evaluation.annotation import TeamAnnotation
from hmarl.sdk.evaluation.deployed_teams import BundleTeam, FleetTeam
from hmarl.sdk.reports.annotation_plots import annotation_plots
from hmarl.sdk.spaces import EnvironmentSpec
from hmarl.sdk.team import Team

ROWS = 2
AWAY = (2, 3)


def told(team: Team, spec: EnvironmentSpec) -> list[TeamAnnotation | None]:
    """What is said of row 1, before the first act and after each of five; one agent is away at the third and fourth."""
    generator = np.random.default_rng(3)
    team.reset(np.array([4, 5]))
    said = [team.explain(1)]  # type: ignore[attr-defined]
    for step in range(5):
        blocks = tuple(
            generator.normal(size=(ROWS, len(group.agents), group.example.observation_size)).astype(np.float32)
            for group in spec.groups
        )
        masks = tuple(None for _ in spec.groups)
        active = np.ones((ROWS, len(spec.agents)), np.bool_)
        active[1, 0] = step not in AWAY
        team.act(Observation(blocks, masks, np.zeros((ROWS, 1), np.float32), active), np.ones(ROWS, np.bool_))
        said.append(team.explain(1))  # type: ignore[attr-defined]
    return said


def test_a_fleet_tells_what_the_bundle_does_where_it_is_asked(toy_bundle: Bundle) -> None:
    spec = EnvironmentSpec("toy", tuple(map(agent_spec, toy_bundle.manifest.agents)), 6, None, "sum")
    expected = told(BundleTeam(toy_bundle, spec, instruction_choice="common"), spec)
    with ExitStack() as served:
        addresses = {
            agent: served.enter_context(AgentProcess(toy_bundle.path, agent)).address for agent in spec.agent_ids
        }
        fleets = [
            served.enter_context(closing(FleetTeam(addresses, spec, instruction_choice="common", diagnostics=wanted)))
            for wanted in (True, False)
        ]
        asked, silent = (told(fleet, spec) for fleet in fleets)
    assert expected[0] is asked[0] is None
    assert silent == [None] * 6
    instructions = set()
    for step, (ours, theirs) in enumerate(zip(expected[1:], asked[1:], strict=True)):
        assert ours is not None
        assert theirs is not None
        assert (ours.told, ours.discrete) == ("instruction", True)
        assert ours.goals is not None
        np.testing.assert_array_equal(ours.goals, theirs.goals)
        for each in (ours, theirs):
            assert each.active.tolist() == [step not in AWAY, *(True for _ in spec.agents[1:])]
        instructions.add(int(ours.goals[1].argmax()))
    assert len(instructions) > 1


def test_figures_call_them_instructions_and_show_no_messages(toy_bundle: Bundle) -> None:
    spec = EnvironmentSpec("toy", tuple(map(agent_spec, toy_bundle.manifest.agents)), 6, None, "sum")
    annotations = [each for each in told(BundleTeam(toy_bundle, spec), spec) if each is not None]
    assert [plot.title for plot in annotation_plots(annotations)] == [
        "Instructions over time",
        "Use of the instructions",
    ]
