"""A session: step rules, noise, input checks, isolation."""

from __future__ import annotations

import sys
import threading
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from msgspec.structs import replace

from hmarl.runtime._graph import _load_libraries
from hmarl.runtime._onnx_runtime import ort
from hmarl.runtime.bundle import (
    Bundle,
    BundleError,
    NoiseModel,
    ObservationError,
    SessionError,
    StepOrderError,
    UsageError,
    write_bundle,
)
from hmarl.runtime.session import Action, Policy, PolicySession, noise_for
from toy_bundle import ACTION_SPACES, toy_agent, toy_graph, toy_manifest, write_toy_bundle

LEGAL = np.ones(5, np.bool_)


def observation(step: int, size: int = 6) -> np.ndarray:
    return np.random.default_rng(step).normal(size=size).astype(np.float32)


def play(session: PolicySession, steps: range, mask: np.ndarray | None = LEGAL) -> list[Action]:
    return [session.act(observation(step), mask, step=step) for step in steps]


def same(first: Action, second: Action) -> bool:
    return bool(np.array_equal(first.action, second.action)) and all(
        np.array_equal(first.diagnostics[name], second.diagnostics[name]) for name in first.diagnostics
    )


@pytest.fixture(scope="module")
def policy(toy_bundle: Bundle) -> Policy:
    return Policy(toy_bundle, "agent_0")


@pytest.fixture
def session(policy: Policy) -> PolicySession:
    session = policy.session()
    session.reset(7)
    return session


@pytest.mark.parametrize("action", list(ACTION_SPACES))
def test_acting_equals_running_the_graph_row_by_row(tmp_path: Path, action: Any) -> None:
    policy = Policy(write_toy_bundle(tmp_path / "b", action=action), "agent_1")
    session = policy.session()
    session.reset(3, sample=True)
    state = np.full((1, 8), 0.25, np.float32)
    mask = None if action == "box" else np.array([False, True, True, True, True])
    for step in range(5):
        got = session.act(observation(step), mask)
        feeds = {"observation": observation(step)[None], "state": state}
        for noise in policy.agent.noises:
            feeds[noise.name] = noise_for(noise, "agent_1", np.array([3]), step)
        if mask is not None:
            feeds["action_mask"] = mask[None]
        want = policy.run_batch(feeds)
        state = want["next_state"]
        np.testing.assert_array_equal(got.action, want["action"][0])
        np.testing.assert_array_equal(got.diagnostics["action_logits"], want["action_logits"][0])
        np.testing.assert_array_equal(got.diagnostics["instruction"], want["instruction"][0])
    if action == "discrete":
        assert type(got.action) is int
    else:
        assert got.action.dtype == (np.float32 if action == "box" else np.int64)
        assert got.action.shape == (2,)


def test_a_policy_says_where_it_comes_from_and_what_it_runs_on(policy: Policy, toy_bundle: Bundle) -> None:
    assert policy.bundle is toy_bundle
    assert policy.execution_provider == "CPUExecutionProvider"


def test_an_agent_that_was_not_trained_acts_like_another_with_numbers_of_its_own(
    interchangeable_bundle: Bundle,
) -> None:
    alike = Policy(interchangeable_bundle, "agent_7", like="agent_0")
    assert alike.agent.id == "agent_7"
    model, guest = Policy(interchangeable_bundle, "agent_0").session(), alike.session()
    for each in (model, guest):
        each.reset(7)
    assert all(same(*pair) for pair in zip(play(model, range(5)), play(guest, range(5)), strict=True))
    for each in (model, guest):
        each.reset(7, sample=True)
    drawn = [[action.action for action in play(each, range(30))] for each in (model, guest)]
    assert drawn[0] != drawn[1]


def test_nothing_of_a_drawn_episode_is_left_in_one_that_is_not(tmp_path: Path) -> None:
    bundle = write_toy_bundle(tmp_path / "b", action="box")
    fresh, used = (Policy(bundle, "agent_0").session() for _ in range(2))
    used.reset(3, sample=True)
    play(used, range(3), None)
    for each in (fresh, used):
        each.reset(3)
    for first, second in zip(play(fresh, range(3), None), play(used, range(3), None), strict=True):
        assert np.isfinite(first.action).all()
        np.testing.assert_array_equal(first.action, second.action)


def test_diagnostics_can_be_done_without(session: PolicySession) -> None:
    wanted = session.act(observation(0), LEGAL)
    session.reset(7, diagnostics=False)
    assert session.act(observation(0), LEGAL).diagnostics == {}
    session.reset(7)
    assert session.act(observation(0), LEGAL).diagnostics.keys() == wanted.diagnostics.keys() != set()


def test_replies_do_not_change_when_the_session_goes_on(session: PolicySession) -> None:
    first = session.act(observation(0), LEGAL)
    kept = first.diagnostics["action_logits"].copy()
    session.act(observation(1), LEGAL)
    np.testing.assert_array_equal(first.diagnostics["action_logits"], kept)


def test_the_state_is_carried_and_reset(policy: Policy, session: PolicySession) -> None:
    first = play(session, range(3))
    again = session.act(observation(0), LEGAL, step=3)
    assert not same(again, first[0])
    session.reset(7)
    assert all(same(*pair) for pair in zip(play(session, range(3)), first, strict=True))


def test_steps_count_up_by_themselves_and_gaps_are_reported(session: PolicySession) -> None:
    assert [session.act(observation(step), LEGAL).step for step in range(2)] == [0, 1]
    late = session.act(observation(5), LEGAL, step=5)
    assert (late.step, late.missed_steps, late.replayed) == (5, 3, False)
    assert (session.steps, session.missed_steps) == (3, 3)
    assert session.act(observation(6), LEGAL).step == 6
    assert session.act(observation(9), LEGAL, step=9).missed_steps == 2
    assert (session.steps, session.missed_steps) == (5, 5)


def test_an_episode_may_start_late_and_a_late_first_step_is_a_gap(session: PolicySession) -> None:
    session.reset(7, first_step=40)
    assert session.act(observation(0), LEGAL, step=42).missed_steps == 2
    with pytest.raises(StepOrderError, match="got 39"):
        session.act(observation(0), LEGAL, step=39)


@pytest.mark.parametrize("step", [0, 1, 2])
def test_nothing_of_the_episode_before_is_replayed(session: PolicySession, step: int) -> None:
    play(session, range(3))
    session.reset(7, first_step=3)
    with pytest.raises(StepOrderError):
        session.act(observation(2), LEGAL, step=step)  # what the buffers still hold


def test_a_policy_that_draws_actions_only_has_no_instructions_to_choose(toy_bundle: Bundle) -> None:
    policy = Policy(toy_bundle, "agent_0")
    session = policy.session()
    policy.agent = replace(policy.agent, noises=[each for each in policy.agent.noises if each.purpose == "action"])
    session.reset(7, sample=True)
    with pytest.raises(UsageError, match="got 'sample', but agent 'agent_0' has no instructions to choose"):
        session.reset(7, instruction_choice="sample")


def test_a_repeated_step_returns_the_recorded_reply_and_leaves_the_state(policy: Policy) -> None:
    plain, repeating = policy.session(), policy.session()
    for each in (plain, repeating):
        each.reset(7, sample=True)
    for step in (0, 1, 4, 5):
        want = plain.act(observation(step), LEGAL, step=step)
        got = repeating.act(observation(step), LEGAL, step=step)
        for _ in range(2):
            again = repeating.act(observation(step), LEGAL, step=step)
            assert (again.step, again.replayed) == (step, True)
            assert again.missed_steps == got.missed_steps
            assert same(again, want)
        assert same(got, want)
    assert repeating.steps == 4


@pytest.mark.parametrize("what", ["observation", "mask", "older"])
def test_a_repeated_step_with_other_content_and_an_older_step_are_refused(session: PolicySession, what: str) -> None:
    play(session, range(3))
    other = np.array([True, False, True, True, True])
    arguments = {
        "observation": (observation(9), LEGAL),
        "mask": (observation(2), other),
        "older": (observation(1), LEGAL),
    }
    step = 1 if what == "older" else 2
    with pytest.raises(StepOrderError, match="expected 3 or later" if what == "older" else "other content"):
        session.act(*arguments[what], step=step)
    assert session.act(observation(2), LEGAL, step=2).replayed
    assert session.act(observation(3), LEGAL).step == 3


def test_acting_before_reset_says_what_to_do(policy: Policy) -> None:
    with pytest.raises(SessionError, match="call reset"):
        policy.session().act(observation(0), LEGAL)


BAD_OBSERVATIONS = {
    "shape": (np.zeros(7, np.float32), r"got float32 \(7,\), expected float32 \(6,\)"),
    "batched": (np.zeros((1, 6), np.float32), r"\(1, 6\)"),
    "float64": (np.zeros(6), r"got float64, .*cast it with \.astype\(np\.float32\)"),
    "big-endian float64": (np.zeros(6, ">f8"), "got >f8"),
    "integers of the same width": (np.zeros(6, np.int32), "got int32"),
    "list": ([0.0] * 6, "got a list"),
    "nan": (np.array([0, 0, 0, np.nan, 0, 0], np.float32), r"observation\[3\]: got nan, expected finite"),
    "inf": (np.array([0, 0, 0, 0, 0, -np.inf], np.float32), r"observation\[5\]: got -inf"),
}
BAD_MASKS = {
    "none": (None, "action_mask: got nothing"),
    "shape": (np.ones(4, np.bool_), r"got bool \(4,\), expected bool \(5,\)"),
    "dtype": (np.ones(5, np.int64), r"got int64.*\.astype\(np\.bool_\)"),
    "empty": (np.zeros(5, np.bool_), "no legal action"),
}


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("kind", [*BAD_OBSERVATIONS, *(f"mask {kind}" for kind in BAD_MASKS)])
def test_bad_inputs_are_refused_and_leave_the_state_alone(session: PolicySession, policy: Policy, kind: str) -> None:
    clean = policy.session()
    clean.reset(7)
    play(clean, range(2))
    play(session, range(2))
    if kind.startswith("mask "):
        bad, message = BAD_MASKS[kind.removeprefix("mask ")]
        arguments: tuple[Any, Any] = (observation(2), bad)
    else:
        bad_observation, message = BAD_OBSERVATIONS[kind]
        arguments = (bad_observation, LEGAL)
    with pytest.raises(ObservationError, match=message):
        session.act(*arguments)
    assert session.act(observation(1), LEGAL, step=1).replayed
    assert same(session.act(observation(2), LEGAL), clean.act(observation(2), LEGAL))


def test_every_branch_of_a_multi_discrete_mask_needs_a_legal_action(tmp_path: Path) -> None:
    session = Policy(write_toy_bundle(tmp_path / "b", action="multi_discrete"), "agent_0").session()
    session.reset(0)
    with pytest.raises(ObservationError, match="in branch 1"):
        session.act(observation(0), np.array([True, True, True, False, False]))
    only = session.act(observation(0), np.array([False, False, True, False, True]))
    np.testing.assert_array_equal(only.action, [2, 1])


def test_a_mask_for_a_policy_without_one_is_refused(tmp_path: Path) -> None:
    session = Policy(write_toy_bundle(tmp_path / "b", plain=True), "agent_0").session()
    session.reset(0)
    assert session.act(observation(0)).diagnostics == {}
    with pytest.raises(ObservationError, match="no mask input"):
        session.act(observation(1), LEGAL)
    with pytest.raises(UsageError, match="no instructions"):
        session.reset(0, instruction_choice="common")


def test_sampled_numbers_depend_on_seed_agent_step_and_input_only(policy: Policy) -> None:
    action_noise, instruction_noise = policy.agent.noises
    seeds, steps = np.array([1, 2, 2**62]), np.array([5, 5, 5])
    batch = noise_for(action_noise, "agent_0", seeds, steps)
    assert batch.shape == (3, 5)
    assert batch.dtype == np.float32
    np.testing.assert_array_equal(noise_for(action_noise, "agent_0", seeds[1:2], 5)[0], batch[1])
    private = [
        noise_for(action_noise, "agent_0", seeds[:1], 5),
        noise_for(action_noise, "agent_0", seeds[1:2], 5),
        noise_for(action_noise, "agent_0", seeds[:1], 6),
        noise_for(action_noise, "agent_1", seeds[:1], 5),
        noise_for(action_noise, "agent_0", seeds[:1], 5, stream="common"),
        noise_for(replace(action_noise, name="other"), "agent_0", seeds[:1], 5),
    ]
    assert len({array.tobytes() for array in private}) == len(private)
    common = [noise_for(instruction_noise, agent, seeds, 5) for agent in ("agent_0", "agent_1")]
    np.testing.assert_array_equal(*common)


def test_drawn_numbers_are_stable_across_versions() -> None:
    noise = NoiseModel(name="n", shape=[2], distribution="uniform", stream="common", purpose="action")
    drawn = noise_for(noise, "a", np.array([1]), 2)[0]
    np.testing.assert_array_equal(drawn, np.array(STABLE, np.float32))


STABLE = [0.8094431757926941, 0.7918546795845032]


def test_uniform_numbers_lie_strictly_inside_and_normal_ones_are_normal() -> None:
    shape = [100_000]
    uniform = NoiseModel(name="u", shape=shape, distribution="uniform", stream="private", purpose="action")
    drawn = noise_for(uniform, "a", np.array([0]), 0)[0]
    assert 0.0 < drawn.min() < 1e-3
    assert 1.0 - 1e-3 < drawn.max() < 1.0
    assert abs(drawn.mean() - 0.5) < 0.005
    normal = noise_for(replace(uniform, distribution="normal"), "a", np.array([0]), 0)[0]
    assert abs(normal.mean()) < 0.02
    assert abs(normal.std() - 1.0) < 0.02
    assert np.isfinite(normal).all()


def test_the_extreme_words_stay_inside_the_open_interval() -> None:
    from hmarl.runtime.noise import _normal, _uniform  # noqa: PLC0415 - private: the generator will not draw these

    words = np.array([0, 2**64 - 1], np.uint64)
    low, high = _uniform(words)
    assert 0.0 < low < high < 1.0
    assert np.isfinite(_normal(words, words)).all()


def instructions(policy: Policy, seed: int, **options: Any) -> list[int]:
    session = policy.session()
    session.reset(seed, **options)
    return [int(each.diagnostics["instruction"]) for each in play(session, range(40))]


def test_instruction_choices(policy: Policy) -> None:
    argmax = instructions(policy, 1)
    common = instructions(policy, 1, sample=True)
    assert argmax == instructions(policy, 2) == instructions(policy, 1, sample=True, instruction_choice="argmax")
    assert common == instructions(policy, 1, instruction_choice="common")
    assert len({tuple(each) for each in (argmax, common, instructions(policy, 1, instruction_choice="sample"))}) == 3
    with pytest.raises(UsageError, match="expected one of argmax, sample, common"):
        instructions(policy, 1, instruction_choice="best")


def test_equal_policies_agree_on_common_instructions_and_not_on_private_ones(tmp_path: Path) -> None:
    shape: dict[str, Any] = {"observation_size": 6, "action": "discrete", "sizes": (8,), "plain": False}
    files = {f"agents/{agent}.onnx": toy_graph() for agent in ("a", "b")}
    bundle = write_bundle(tmp_path / "b", toy_manifest([toy_agent(agent, **shape) for agent in ("a", "b")]), files)
    first, second = Policy(bundle, "a"), Policy(bundle, "b")
    assert instructions(first, 1, sample=True) == instructions(second, 1, sample=True)
    choice = {"sample": True, "instruction_choice": "sample"}
    assert instructions(first, 1, **choice) != instructions(second, 1, **choice)


def test_without_sampling_the_seed_does_not_matter(policy: Policy) -> None:
    def actions(seed: int, **options: Any) -> list[Any]:
        session = policy.session()
        session.reset(seed, **options)
        return [each.action for each in play(session, range(20))]

    assert actions(1) == actions(2)
    assert actions(1, sample=True) == actions(1, sample=True) != actions(2, sample=True)
    session = policy.session()
    session.reset(1, sample=True)
    play(session, range(3))
    session.reset(1)  # the noise of the first episode must be gone
    assert [each.action for each in play(session, range(20))] == actions(1)


@pytest.mark.parametrize(
    ("name", "value"), [("seed", -1), ("seed", 2**64), ("first_step", -1), ("seed", 1.5), ("seed", None)]
)
def test_arguments_of_reset_are_checked(session: PolicySession, name: str, value: Any) -> None:
    with pytest.raises(UsageError, match=f"{name}: got {value}"):
        session.reset(**{"seed": 1, name: value})


def test_sessions_in_several_threads_do_not_mix(policy: Policy) -> None:
    def actions(seed: int) -> list[Action]:
        session = policy.session()
        session.reset(seed, sample=True)
        return play(session, range(200))

    expected = [actions(seed) for seed in range(4)]
    got: dict[int, list[Action]] = {}
    interval = sys.getswitchinterval()
    sys.setswitchinterval(1e-5)
    try:
        threads = [threading.Thread(target=lambda seed=seed: got.update({seed: actions(seed)})) for seed in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    finally:
        sys.setswitchinterval(interval)
    for seed in range(4):
        assert all(same(*pair) for pair in zip(expected[seed], got[seed], strict=True))


def test_run_batch_fills_in_defaults_and_checks_names(policy: Policy) -> None:
    rows = np.stack([observation(step) for step in range(4)])
    outputs = policy.run_batch({"observation": rows})
    for step in range(4):
        session = policy.session()
        session.reset(0)
        assert session.act(rows[step], LEGAL).action == outputs["action"][step]
    for feeds, message in (
        ({}, "expected at least 'observation'"),
        ({"observation": rows, "obs": rows}, r"unknown \['obs'\]"),
        ({"observation": rows, "state": np.zeros((3, 8), np.float32)}, r"state: got float32 \(3, 8\)"),
        ({"observation": np.zeros((), np.float32)}, r"observation: got float32 \(\)"),
    ):
        with pytest.raises(ObservationError, match=message):
            policy.run_batch(feeds)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"observation": {"name": "obs", "shape": [6], "dtype": "float32", "meaning": ""}}, r"got inputs .* expects"),
        ({"observation": {"name": "observation", "shape": [5], "dtype": "float32", "meaning": ""}}, r"got shape .*6"),
        ({"action_mask": None}, "got inputs"),
        ({"diagnostics": []}, "got outputs"),
        ({"action_space": {"type": "discrete", "n": 6}}, r"action_mask\.shape: got \[5\], expected \[6\]"),
        ({"action": {"name": "action", "shape": [], "dtype": "float32", "meaning": ""}}, r"action\.dtype: got float32"),
    ],
)
def test_a_graph_that_is_not_what_the_manifest_says_is_refused(tmp_path: Path, change: Any, message: str) -> None:
    agent = toy_agent("a", observation_size=6, action="discrete", sizes=(8,), plain=False)
    bundle = write_bundle(tmp_path / "b", toy_manifest([{**agent, **change}]), {"agents/a.onnx": toy_graph()})
    with pytest.raises(BundleError, match=message):
        Policy(bundle, "a")


def test_a_graph_with_weights_outside_of_the_bundle_is_refused(tmp_path: Path) -> None:
    model = onnx.load_from_string(toy_graph())
    assert model.graph.initializer
    for tensor in model.graph.initializer:
        onnx.external_data_helper.set_external_data(tensor, location="../weights.bin")
        tensor.ClearField("raw_data")
    agent = toy_agent("a", observation_size=4, action="discrete", sizes=(3,), plain=False)
    bundle = write_bundle(tmp_path / "b", toy_manifest([agent]), {"agents/a.onnx": model.SerializeToString()})
    with pytest.raises(BundleError, match=r"agents/a\.onnx: the graph keeps weights in another file"):
        Policy(bundle, "a")


def test_a_file_that_is_no_graph_is_refused(tmp_path: Path) -> None:
    agent = toy_agent("a", observation_size=6, action="discrete", sizes=(8,), plain=False)
    bundle = write_bundle(tmp_path / "b", toy_manifest([agent]), {"agents/a.onnx": b"junk"})
    with pytest.raises(BundleError, match=r"agents/a\.onnx: not an ONNX file"):
        Policy(bundle, "a")


@pytest.mark.parametrize(
    ("provider", "message"),
    [
        ("cdua", "did you mean 'cuda'"),
        ("cpu:0", "expected 'cpu'"),
        ("cuda:x", "device number"),
    ],
)
def test_wrong_providers_are_named(toy_bundle: Bundle, provider: str, message: str) -> None:
    with pytest.raises(UsageError, match=message):
        Policy(toy_bundle, "agent_0", provider)


@pytest.mark.parametrize("provider", ["cuda", "tensorrt:1"])
def test_a_provider_that_is_not_installed_is_an_error_and_no_fallback(toy_bundle: Bundle, provider: str) -> None:
    import onnxruntime  # noqa: PLC0415 - only this test asks what is installed

    if "CUDAExecutionProvider" in onnxruntime.get_available_providers():
        pytest.skip("this ONNX Runtime has CUDA")
    with pytest.raises(UsageError, match="onnxruntime-gpu"):
        Policy(toy_bundle, "agent_0", provider)


@pytest.mark.parametrize("provider", ["cuda", "tensorrt"])
def test_a_provider_that_does_not_start_is_an_error_that_says_why(
    toy_bundle: Bundle, provider: str, capfd: pytest.CaptureFixture[str]
) -> None:
    """ONNX Runtime would fall back to another one and tell standard output, which is the agent's own."""
    import onnxruntime  # noqa: PLC0415 - only this test asks what is installed

    if "CUDAExecutionProvider" not in onnxruntime.get_available_providers() or Path("/dev/nvidia0").exists():
        pytest.skip("needs an ONNX Runtime with CUDA (pip install onnxruntime-gpu) on a machine without a GPU")
    with pytest.raises(UsageError, match=r"could not start (CUDA|Tensorrt)ExecutionProvider.*choose --provider cpu"):
        Policy(toy_bundle, "agent_0", provider)
    assert capfd.readouterr().out == ""


def test_libraries_are_looked_for_once_and_without_a_word(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """What ONNX Runtime says of those that are missing would stand among what an agent says of itself."""
    asked = []

    def preload() -> None:
        asked.append(True)
        print("Failed to load libcublasLt.so.13")

    monkeypatch.setattr(ort, "preload_dlls", preload)
    _load_libraries.cache_clear()
    for _ in range(2):
        _load_libraries()
    _load_libraries.cache_clear()
    assert asked == [True]
    assert capsys.readouterr().out == ""


def test_cuda_acts_like_the_cpu(toy_bundle: Bundle) -> None:
    import onnxruntime  # noqa: PLC0415 - only this test asks what is installed

    if "CUDAExecutionProvider" not in onnxruntime.get_available_providers():
        pytest.skip("this ONNX Runtime has no CUDA: pip install 'onnxruntime-gpu[cuda,cudnn]'")
    replies = []
    for provider in ("cpu", "cuda"):
        policy = Policy(toy_bundle, "agent_0", provider)
        session = policy.session()
        session.reset(1, sample=True)
        replies.append(play(session, range(20)))
    assert policy.execution_provider == "CUDAExecutionProvider"
    for first, second in zip(*replies, strict=True):
        np.testing.assert_allclose(first.diagnostics["action_logits"], second.diagnostics["action_logits"], atol=1e-3)
