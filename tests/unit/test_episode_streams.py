"""An environment's random streams from its first reset on, and what is said before it."""

from __future__ import annotations

import numpy as np
import pytest

from hmarl.sdk import UsageError, make_environment
from hmarl.sdk.environments.authoring import EpisodeStreams, RandomStreams

SEEDS = np.array([3, 4])
# One of each family whose episodes are drawn from streams, and both of its backends where it has two.
ENVIRONMENTS = {
    "coordsum/3x10-30": ("numpy", "torch"),
    "mpe/simple_spread": ("numpy", "torch"),
    "lbfws/easy": ("numpy",),
    "mamujoco/Hopper-3x1": ("numpy",),
}


def drawn(streams: RandomStreams) -> np.ndarray:
    return streams.uniforms(np.arange(2), 3)


def test_there_are_none_before_an_episode_begins_and_then_those_of_its_seeds() -> None:
    streams = EpisodeStreams(2)
    with pytest.raises(UsageError) as refused:
        streams.running("get_state")
    assert str(refused.value) == "get_state: the environment has no episode yet; call reset(seeds) first"
    begun = streams.begin(SEEDS)
    assert streams.running("step") is begun
    assert np.array_equal(drawn(begun), drawn(RandomStreams(SEEDS, 2)))


def test_seeds_that_are_refused_leave_the_episodes_as_they_are() -> None:
    streams = EpisodeStreams(2)
    begun = streams.begin(SEEDS)
    with pytest.raises(UsageError, match="seeds: got int64"):
        streams.begin(np.array([1, 2, 3]))
    assert streams.running("step") is begun


def test_they_go_on_where_they_were_saved() -> None:
    streams, other = EpisodeStreams(2), EpisodeStreams(2)
    drawn(streams.begin(SEEDS))
    saved = streams.running("get_state").get_state()
    layout = other.layout()
    assert {name: (array.shape, array.dtype) for name, array in layout.items()} == {
        name: (array.shape, array.dtype) for name, array in saved.items()
    }
    with pytest.raises(UsageError, match="step: "):
        other.running("step")  # the layout alone begins nothing
    other.resume(saved)
    assert np.array_equal(drawn(other.running("step")), drawn(streams.running("step")))


@pytest.mark.parametrize(
    ("name", "backend"), [(name, backend) for name, backends in ENVIRONMENTS.items() for backend in backends]
)
def test_every_environment_says_so_before_its_first_reset(name: str, backend: str) -> None:
    environment = make_environment(name, 2, **({"backend": backend} if backend != "numpy" else {}))
    actions = tuple(
        np.zeros((2, len(group.agents), *group.example.action_shape), group.example.action_dtype)
        for group in environment.spec.groups
    )
    for method, call in (("step", lambda: environment.step(actions)), ("get_state", environment.get_state)):
        with pytest.raises(UsageError, match=rf"^{method}: the environment has no episode yet"):
            call()
    environment.close()
