import random

import numpy as np
import pytest

from hmarl.sdk.environments import make
from hmarl.sdk.environments.conformance import check_environment
from hmarl.sdk.errors import EnvironmentFault, UsageError
from hmarl.sdk.evaluation.closed_loop import evaluate
from hmarl.sdk.reports.video import record_played
from hmarl.sdk.team import RandomTeam

torch = pytest.importorskip("torch")
vmas = pytest.importorskip("vmas")

SEEDS = np.array([1, 2, 3])
# With its standard grid every reset of sampling visits 1600 cells in a Python loop.
COARSE = {"vmas/sampling": {"grid_spacing": 0.2}}


@pytest.fixture(autouse=True)
def _one_thread():
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def make_small(name, batch, max_steps):
    return make(name, batch, max_steps=max_steps, **COARSE.get(name, {}))


def play(environment, observation, steps, key=0):
    """What happened in some steps of random play, as a list of tensors."""
    team, happened = RandomTeam(environment.spec), []
    team.reset(np.array([key]))
    for _ in range(steps):
        result = environment.step(team.act(observation, np.ones(environment.batch_size, bool)))
        observation = result.observation
        happened += [*observation.observations, observation.state, result.rewards, result.terminated, result.truncated]
        happened += [] if result.final is None else [result.final.state]
    return happened


def assert_same(left, right):
    assert len(left) == len(right)
    assert all(torch.equal(one, other) for one, other in zip(left, right, strict=True))


@pytest.mark.parametrize("task", ["navigation", "sampling", "balance"])
def test_the_part_called_position_is_where_an_agent_is(task):
    environment = make_small(f"vmas/{task}", 3, 12)
    observation = environment.reset(SEEDS)
    for agent, spec in enumerate(environment.spec.agents):
        names = [name for name, _ in spec.observation_layout]
        start = sum(length for _, length in spec.observation_layout[: names.index("position")])
        seen = observation.observations[0][:, agent, start : start + 2]
        assert torch.equal(seen, environment._environment.agents[agent].state.pos)


# Beyond plain positions these hold shaping values, joints and gravity, distributions and grids, and a goal that is
# another landmark in every episode.
@pytest.mark.parametrize("task", ["navigation", "balance", "sampling", "mpe/simple_adversary"])
def test_a_saved_state_continues_bit_for_bit_in_a_fresh_instance(task):
    environment = make_small(f"vmas/{task}", 3, 12)
    play(environment, environment.reset(SEEDS), 7)
    saved = {name: array.copy() for name, array in environment.get_state().items()}
    assert all(isinstance(array, np.ndarray) and not array.dtype.hasobject for array in saved.values())
    seen = environment.set_state(saved)
    continued = play(environment, seen, 30, key=1)
    fresh = make_small(f"vmas/{task}", 3, 12)
    restored = fresh.set_state(saved)
    assert torch.equal(restored.state, seen.state)
    assert_same(continued, play(fresh, restored, 30, key=1))


def test_saving_does_not_disturb_the_run():
    environment, other = make_small("vmas/sampling", 3, 12), make_small("vmas/sampling", 3, 12)
    seen, other_seen = environment.reset(SEEDS), other.reset(SEEDS)
    play(environment, seen, 5)
    play(other, other_seen, 5)
    environment.get_state()
    assert_same(play(environment, seen, 20, key=1), play(other, other_seen, 20, key=1))


@pytest.mark.parametrize("change", ["task", "batch", "missing"])
def test_a_state_that_does_not_fit_is_refused(change):
    environment = make("vmas/navigation", 3)
    environment.reset(SEEDS)
    saved = dict(environment.get_state())
    if change == "missing":
        del saved["storage_0"]
    other = make("vmas/balance" if change == "task" else "vmas/navigation", 2 if change == "batch" else 3)
    with pytest.raises(UsageError, match="does not fit this environment"):
        other.set_state(saved)


def zeros(environment):
    return tuple(
        np.zeros((environment.batch_size, len(group.agents), *group.example.action_shape), group.example.action_dtype)
        for group in environment.spec.groups
    )


def test_instances_do_not_disturb_each_other():
    # Every fourth step resets, which draws random numbers.
    alone, one, other = (make_small("vmas/sampling", 3, 4) for _ in range(3))
    alone.reset(SEEDS)
    one.reset(SEEDS)
    other.reset(SEEDS + 7)
    for _ in range(12):
        expected = alone.step(zeros(alone)).observation.state
        other.step(zeros(other))
        assert torch.equal(one.step(zeros(one)).observation.state, expected)


def test_the_episodes_of_one_run_differ():
    environment = make("vmas/navigation", 3, max_steps=2)
    starts = [environment.reset(SEEDS).state]
    for _ in range(4):
        result = environment.step(zeros(environment))
        starts += [] if result.final is None else [result.observation.state]
    assert len(starts) == 3
    assert not any(torch.equal(one, other) for one, other in [starts[:2], starts[1:], starts[::2]])


def test_environments_that_others_make_with_vmas_keep_their_stream():
    bare = vmas.make_env("navigation", 2, seed=3)
    bare.reset(seed=3)
    expected = bare.reset()[0]
    bare.reset(seed=3)
    make("vmas/navigation", 3).reset(SEEDS)
    assert torch.equal(bare.reset()[0], expected)


def seed_process():
    torch.manual_seed(5)
    np.random.seed(5)  # noqa: NPY002 - the stream that must be left alone
    random.seed(5)


def draw_from_process():
    return torch.rand(3).tolist() + np.random.rand(3).tolist() + [random.random()]  # noqa: NPY002


def test_the_random_streams_of_the_process_are_left_alone():
    environment = make("vmas/navigation", 3, max_steps=2)
    seed_process()
    expected = draw_from_process()
    seed_process()
    environment.reset(SEEDS)
    environment.step(zeros(environment))
    environment.step(zeros(environment))
    with pytest.raises(EnvironmentFault, match="vmas/navigation: got actions that are not numbers"):
        environment.step(tuple(block * np.nan for block in zeros(environment)))
    assert draw_from_process() == expected


def test_environments_that_end_alone_are_reset_alone():
    # One agent whose radius covers much of the world: episodes end by termination, at different steps.
    environment = make("vmas/navigation", 4, n_agents=1, collisions=False, agent_radius=0.4, max_steps=50)
    observation = environment.reset(np.array([3, 4, 5, 6]))
    steps = np.zeros(4, int)
    partly_ended = 0
    for _ in range(60):
        goal = observation.observations[0][:, 0, 4:6]
        result = environment.step((-goal.unsqueeze(1).clamp(-1, 1),))
        steps += 1
        ended = (result.terminated | result.truncated).numpy()
        if ended.any() and not ended.all():
            partly_ended += 1
            running = ~ended
            assert torch.equal(result.final.state[running], result.observation.state[running])
            assert not torch.equal(result.final.state[ended], result.observation.state[ended])
        observation = result.observation
        # An episode's first observation stands still, a running one moves.
        assert (observation.observations[0][ended][..., 2:4] == 0).all()
        steps[ended] = 0
        np.testing.assert_array_equal(environment._environment.steps.numpy(), steps)
    assert partly_ended > 0


def test_rewards_and_observations_are_those_of_vmas():
    environment = make("vmas/balance", 2, n_agents=3)
    environment.reset(np.array([8, 9]))
    seed = int(np.random.SeedSequence([8, 9]).generate_state(1)[0] >> 1)
    bare = vmas.make_env("balance", 2, n_agents=3, terminated_truncated=True, clamp_actions=True, seed=seed)
    bare.reset(seed=seed)
    generator = np.random.default_rng(0)
    for _ in range(10):
        actions = generator.uniform(-1, 1, (2, 3, 2)).astype(np.float32)
        result = environment.step((actions,))
        seen, rewards, terminated, *_ = bare.step([torch.as_tensor(actions[:, agent]) for agent in range(3)])
        if terminated.any():
            break
        assert torch.equal(result.observation.observations[0], torch.stack(seen, dim=1))
        assert torch.equal(result.rewards, torch.stack(rewards, dim=1))


def test_the_spec_of_unlike_agents():
    environment = make("vmas/mpe/simple_tag", 2, continuous_actions=False, max_steps=9)
    spec = environment.spec
    assert len(spec.groups) == 2
    assert (spec.horizon, spec.team_reward, spec.has_success) == (9, "mean", False)
    assert spec.control_period_s == pytest.approx(0.1)
    assert spec.agents[0].action_space.n == 9
    assert spec.state_size == sum(agent.observation_size for agent in spec.agents)
    assert spec.arguments["max_steps"] == 9
    assert make("vmas/simple_tag", 1, continuous_actions=False, multidiscrete_actions=True).spec.agents[
        0
    ].action_space.nvec.tolist() == [3, 3]


@pytest.mark.parametrize(
    ("task", "arguments", "message"),
    [
        ("navgation", {}, "unknown vmas scenario 'navgation'; did you mean 'navigation'"),
        (
            "navigation",
            {"n_agent": 3},
            "unknown argument 'n_agent'; did you mean 'n_agents'.*the scenario takes: n_agents",
        ),
        ("navigation", {"agents_with_same_goal": 9}, "agents_with_same_goal=9.*the scenario takes"),
        ("navigation", {"seed": 3}, "'seed' cannot be set"),
        ("navigation", {"max_steps": 0}, "max_steps: got 0"),
        ("navigation", {"device": "abacus"}, "device: got 'abacus'"),
    ],
)
def test_wrong_use_is_explained(task, arguments, message):
    with pytest.raises(UsageError, match=message):
        make(f"vmas/{task}", 2, **arguments)


@pytest.mark.parametrize("arguments", [{}, {"continuous_actions": False}])
def test_every_conformance_check_passes(arguments):
    results = check_environment(lambda batch: make("vmas/navigation", batch, max_steps=12, **arguments))
    assert [result for result in results if not result.passed] == []


@pytest.mark.parametrize("task", ["navigation", "balance"])
def test_without_opengl_a_plain_picture_is_drawn(task):
    environment = make(f"vmas/{task}", 2)
    environment.reset(np.array([1, 2]))
    environment._opengl = False
    picture = environment.render(1)
    assert (picture.shape, picture.dtype) == ((400, 400, 3), np.uint8)
    agent = environment._environment.world.agents[0]
    colour = (np.array(agent.color[:3]) * 255).astype(np.uint8)
    assert (picture == colour).all(-1).sum() > 10
    assert not np.array_equal(picture, environment.render(0))
    environment.close()
    environment.close()


def test_a_film_is_of_the_episode_that_was_played():
    environment = make("vmas/navigation", 4, max_steps=8)
    team = RandomTeam(environment.spec)
    evaluation = evaluate(environment, team, 6, 0)
    for episode in (0, 3, 5):
        recording = record_played(environment, team, evaluation, episode, max_frames=2)
        assert recording.differs is None
        assert recording.rewards.sum() == pytest.approx(evaluation.returns[episode], rel=1e-9)
    environment.close()
