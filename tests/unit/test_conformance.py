import dataclasses
from functools import partial

import numpy as np
import pytest
from gymnasium import spaces

from hmarl.sdk.environment import Observation, StepResult
from hmarl.sdk.environments import make
from hmarl.sdk.environments.conformance import check_environment
from hmarl.sdk.errors import UsageError
from hmarl.sdk.spaces import AgentSpec, EnvironmentSpec

HORIZON = 6


class Toy:
    """Two walkers with a mask and one helper with continuous actions, on a line; walker 1 leaves after step 3.

    ``broken`` names the one promise that this copy does not keep.
    """

    def __init__(self, batch_size, broken=""):
        self.batch_size, self.broken = batch_size, broken
        high = np.inf if broken == "unbounded" else 1.0
        layout = (("all", 1), ("more", 2))
        walkers = [AgentSpec(f"walker_{i}", 3, spaces.Discrete(3), True, layout) for i in range(2)]
        layout = (("own", 1), ("all", 1))
        helper = AgentSpec("helper", 2, spaces.Box(-1.0, high, (1,), np.float32), observation_layout=layout)
        self.spec = EnvironmentSpec("toy", (*walkers, helper), 2, HORIZON, "sum", common_observations=("all",))
        self._closed = False
        self._shared = np.zeros((batch_size, 2), np.float32)

    def reset(self, seeds):
        seeds = np.asarray(seeds)
        if self.broken == "seed ignored":
            seeds = np.zeros_like(seeds)
        if self.broken == "one seed for all":
            seeds = np.full_like(seeds, seeds[0])
        if self.broken == "batch seeds mixed":
            seeds = seeds + seeds.sum()
        if self.broken == "unseeded":
            seeds = np.random.default_rng().integers(2**31, size=seeds.shape)
        if not (self.broken == "state kept" and hasattr(self, "_carried")):
            self._carried = np.zeros(self.batch_size)
        self._streams = [np.random.PCG64(int(seed)) for seed in seeds]
        self._position = np.zeros(self.batch_size)
        self._steps = np.zeros(self.batch_size, int)
        self._begin(range(self.batch_size))
        return self._seen()

    def step(self, actions):
        walk, help_ = actions
        active = self._active()
        moves = np.where(active[:, :2], walk - 1, 0).sum(1)
        assert not (active[:, :2] & (walk == 2) & (self._steps % 2 == 1)[:, None]).any(), "an illegal action"
        self._position = self._position + 0.1 * moves + 0.01 * help_[:, 0, 0]
        self._carried = self._carried + 1
        self._steps = self._steps + 1
        rewards = np.where(active, self._position[:, None], 0.0).astype(np.float32)
        if self.broken == "paid after leaving":
            rewards[:] = self._position[:, None]
        rewards = rewards.astype(np.float64) if self.broken == "float64 rewards" else rewards
        horizon = HORIZON + (self.broken == "too long") - (self.broken == "cut early")
        truncated = self._steps >= (10**9 if self.broken == "endless" else horizon)
        terminated = truncated.copy() if self.broken == "both flags" else np.zeros_like(truncated)
        final = self._seen() if truncated.any() and self.broken != "no final" else None
        self._begin(np.flatnonzero(truncated))
        seen = self._seen()
        if self.broken == "final overwritten" and final is not None:
            final = seen
        if self.broken == "final always":
            final = final or seen
        return StepResult(seen, rewards, terminated, truncated, final)

    def get_state(self):
        if self.broken == "nothing saved":
            return None
        states = [stream.state["state"] for stream in self._streams]
        words = [[value >> 64, value & (2**64 - 1)] for one in states for value in (one["state"], one["inc"])]
        saved = {"position": self._position.copy(), "steps": self._steps.copy(), "carried": self._carried.copy()}
        if self.broken == "objects saved":
            saved["position"] = np.array([{}], dtype=object)
        return {**saved, "streams": np.array(words, np.uint64)}

    def set_state(self, saved):
        self._streams = [np.random.PCG64() for _ in range(self.batch_size)]
        if self.broken != "stream not restored":
            words = [[int(word) for word in pair] for pair in saved["streams"]]
            values = [high << 64 | low for high, low in words]
            for index, stream in enumerate(self._streams):
                whole = stream.state
                whole["state"] = {"state": values[2 * index], "inc": values[2 * index + 1]}
                stream.state = whole
        self._position, self._steps = saved["position"].copy(), saved["steps"].copy()
        self._carried = saved["carried"].copy()
        return self._seen()

    def render(self, index=0):
        return None

    def close(self):
        if self.broken == "closes once" and self._closed:
            raise RuntimeError("closed already")
        self._closed = True

    def _begin(self, rows):
        for row in rows:
            self._position[row] = np.random.Generator(self._streams[row]).uniform(-1, 1)
            self._steps[row] = 0

    def _active(self):
        active = np.ones((self.batch_size, 3), bool)
        active[:, 1] = self._steps < 3
        return active

    def _seen(self):
        active, odd = self._active(), self._steps % 2 == 1
        walkers = np.zeros((self.batch_size, 2, 3), np.float32)
        walkers[..., 0] = self._position[:, None]
        walkers[..., 1] = 1.0
        if self.broken == "state kept":
            walkers[..., 2] = self._carried[:, None]
        if self.broken != "ghost":
            walkers[~active[:, :2]] = 0.0
        masks = np.ones((self.batch_size, 2, 3), bool)
        masks[odd, :, 2] = False
        if self.broken == "no legal action":
            masks[odd] = False
        masks[~active[:, :2]] = self.broken != "mask of the absent"
        state = np.stack([self._position, self._steps / HORIZON], axis=1).astype(np.float32)
        if self.broken == "NaN":
            state[self._steps == 4] = np.nan
        if self.broken == "handed out":
            self._shared[...] = state
            state = self._shared
        if self.broken == "wide state":
            state = np.repeat(state, 2, axis=1)
        helper = state[:, None, 1::-1].copy()
        if self.broken == "seen otherwise":
            helper[odd, 0, 1] += 1.0
        return Observation((walkers, helper), (masks, None), state, active)


def failures(**broken):
    return [result.name for result in check_environment(lambda batch: Toy(batch, **broken)) if not result.passed]


def test_a_sound_environment_passes_every_check():
    results = check_environment(Toy)
    assert [result for result in results if not result.passed] == []
    assert [result.name for result in results] == [
        "spec",
        "random play",
        "shapes and dtypes",
        "finite values",
        "action masks",
        "active agents",
        "common observations",
        "results kept",
        "same seed, same episode",
        "different seeds differ",
        "batch size",
        "auto-reset and final",
        "terminated or truncated",
        "horizon",
        "save and restore",
        "agents in pictures",
        "close",
    ]


@pytest.mark.parametrize(
    ("broken", "check"),
    [
        ("unbounded", "spec"),
        ("float64 rewards", "shapes and dtypes"),
        ("wide state", "shapes and dtypes"),
        ("NaN", "finite values"),
        ("no legal action", "action masks"),
        ("mask of the absent", "action masks"),
        ("ghost", "active agents"),
        ("seen otherwise", "common observations"),
        ("paid after leaving", "active agents"),
        ("handed out", "results kept"),
        ("unseeded", "same seed, same episode"),
        ("state kept", "same seed, same episode"),
        ("seed ignored", "different seeds differ"),
        ("one seed for all", "different seeds differ"),
        ("batch seeds mixed", "batch size"),
        ("no final", "auto-reset and final"),
        ("final overwritten", "auto-reset and final"),
        ("final always", "auto-reset and final"),
        ("endless", "auto-reset and final"),
        ("both flags", "terminated or truncated"),
        ("too long", "horizon"),
        ("cut early", "horizon"),
        ("objects saved", "save and restore"),
        ("stream not restored", "save and restore"),
        ("closes once", "close"),
    ],
)
def test_each_broken_promise_is_caught_by_its_check(broken, check):
    assert check in failures(broken=broken)


class Pictured(Toy):
    """Knows where its pictures, of 30 by 20 pixels, show the agents."""

    def render(self, index=0):
        return None if self.broken == "no picture" else np.zeros((20, 30, 3), np.uint8)

    def agent_pixels(self, index=0):
        outside = 12.0 if self.broken == "outside" else 0.0
        places = np.array([[2.0, 3.0, 1.0], [29.0, 5.0, 1.0], [4.0, 19.0 + outside, 1.0]])
        if self.broken != "still shown":
            places[~self._active()[index]] = np.nan
        return places[:, :2] if self.broken == "no radius" else places


def test_an_environment_may_say_where_its_pictures_show_the_agents():
    assert [result.name for result in check_environment(Pictured) if not result.passed] == []


@pytest.mark.parametrize("broken", ["no picture", "outside", "still shown", "no radius"])
def test_but_then_agents_must_be_in_the_pictures_until_they_leave(broken):
    results = check_environment(lambda batch: Pictured(batch, broken))
    assert [result.name for result in results if not result.passed] == ["agents in pictures"]


def test_an_environment_that_cannot_save_itself_may_say_so():
    assert failures(broken="nothing saved") == []


def test_batch_size_independence_is_asked_only_of_those_that_promise_it():
    class Shared(Toy):
        independent_copies = False

    results = check_environment(lambda batch: Shared(batch, broken="batch seeds mixed"))
    assert [result.name for result in results if not result.passed] == []


def test_a_deterministic_task_is_excused_from_differing():
    def make(batch):
        return Toy(batch, broken="seed ignored")

    assert [result.name for result in check_environment(make, deterministic=True) if not result.passed] == []


def test_when_play_itself_fails_the_rest_is_left_out():
    class Crashing(Toy):
        def step(self, actions):
            raise ZeroDivisionError("the ground is missing")

    results = check_environment(Crashing)
    assert [(result.name, result.passed) for result in results] == [("spec", True), ("random play", False)]
    assert results[-1].detail == "ZeroDivisionError: the ground is missing"


def test_a_spec_that_contradicts_itself_is_named():
    class Mislabelled(Toy):
        def __init__(self, batch_size):
            super().__init__(batch_size)
            helper = dataclasses.replace(self.spec.agents[2], observation_layout=(("own", 6), ("all", 1)))
            self.spec = dataclasses.replace(self.spec, agents=(*self.spec.agents[:2], helper))

    (result, *_) = check_environment(Mislabelled)
    assert (result.name, result.passed) == ("spec", False)
    assert result.detail == "agent 'helper': observation_layout covers 7 numbers of 2"


def test_a_batch_of_one_is_too_small_to_check():
    with pytest.raises(UsageError, match="batch_size: got 1, expected at least 2"):
        check_environment(Toy, batch_size=1)


def test_errors_of_making_are_passed_on():
    def refuse(batch):
        raise UsageError("no such task")

    with pytest.raises(UsageError, match="no such task"):
        check_environment(refuse)


def test_what_was_found_is_counted_in_plain_words():
    found = {result.name: result.detail for result in check_environment(Toy)}
    assert found["spec"] == "3 agents in 2 groups, state of 2"
    assert found["action masks"] == "1 of 2 groups has masks, each with a legal action"
    found = {result.name: result.detail for result in check_environment(partial(make, "mpe/simple_spread"))}
    assert found["spec"].startswith("3 agents in 1 group, state of ")
    assert found["action masks"] == "no masks"
