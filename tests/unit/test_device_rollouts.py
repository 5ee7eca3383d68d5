"""What environments compute on a device stays there: tensors as they are, JAX's arrays by DLPack."""

from __future__ import annotations

from importlib.util import find_spec
from typing import Any

import numpy as np
import pytest
import torch

from hmarl.sdk.environment import as_array
from hmarl.sdk.environments import make
from hmarl.sdk.errors import UsageError
from hmarl.trainer.experience.rollout import as_tensor
from hmarl.trainer.runs.training import Training
from training_runs import tiny_config

CPU = torch.device("cpu")
NO_JAX = pytest.mark.skipif(find_spec("jaxmarl") is None, reason="jaxmarl is not installed")
# Compiling takes seconds for each map, set of arguments and batch size: as in test_smax.py.
SHORT = {"max_steps": 30}


class Lent:
    """Memory that is lent by DLPack, as another library's array lends its own."""

    def __init__(self, tensor: torch.Tensor) -> None:
        self.tensor = tensor

    def __dlpack__(self, **told: Any) -> Any:
        return self.tensor.__dlpack__(**told)

    def __dlpack_device__(self) -> Any:
        return self.tensor.__dlpack_device__()


@pytest.mark.parametrize("dtype", [torch.float32, torch.int64, torch.bool])
def test_what_lies_on_the_device_is_taken_without_a_copy(dtype: torch.dtype) -> None:
    tensor = torch.ones(3, dtype=dtype)
    assert as_tensor(tensor, CPU) is tensor
    lent = as_tensor(Lent(tensor), CPU)
    assert lent.dtype == dtype
    assert lent.data_ptr() == tensor.data_ptr()
    array = np.ones(3)
    assert as_tensor(array, CPU).data_ptr() == array.ctypes.data


def test_lists_and_numbers_are_taken_as_well() -> None:
    assert as_tensor([True, False], CPU).tolist() == [True, False]


@NO_JAX
def test_jax_lends_the_same_battles(recwarn: pytest.WarningsRecorder) -> None:
    plain, lending = make("smax/3m", 2, **SHORT), make("smax/3m", 2, arrays="jax", **SHORT)
    seen, lent = plain.reset(np.array([5, 11])), lending.reset(np.array([5, 11]))
    generator, ends = np.random.default_rng(0), 0
    for _ in range(45):
        masks = seen.action_masks[0]
        assert masks is not None
        action = np.where(masks, generator.random(masks.shape), -1.0).argmax(-1)
        expected, got = plain.step((action,)), lending.step((torch.from_numpy(action),))
        pairs = [
            (expected.rewards, got.rewards),
            (expected.terminated, got.terminated),
            (expected.truncated, got.truncated),
            (expected.success, got.success),
            (expected.observation.state, got.observation.state),
            (expected.observation.observations[0], got.observation.observations[0]),
            (expected.observation.action_masks[0], got.observation.action_masks[0]),
        ]
        if expected.final is not None:
            assert got.final is not None
            ends += 1
            pairs.append((expected.final.observations[0], got.final.observations[0]))
            pairs.append((expected.final.active, got.final.active))
        for first, second in pairs:
            assert not isinstance(second, np.ndarray)
            np.testing.assert_array_equal(as_array(second), first)
            torch.testing.assert_close(as_tensor(second, CPU), torch.from_numpy(np.asarray(first)), rtol=0, atol=0)
        seen, lent = expected.observation, got.observation
    assert ends, "no battle ended"
    assert as_array(lent.state).flags.writeable
    assert not [warning for warning in recwarn if "writable" in str(warning.message)]


@NO_JAX
def test_what_jax_cannot_take_is_refused() -> None:
    with pytest.raises(UsageError, match="arrays: got 'torch', expected 'numpy' or 'jax'"):
        make("smax/3m", 2, arrays="torch")
    lending = make("smax/3m", 2, arrays="jax", **SHORT)
    lending.reset(np.array([5, 11]))
    with pytest.raises(UsageError, match=r"actions: got \[\(2, 4\)\], expected one int64 tensor \[2, 3\]"):
        lending.step((torch.zeros(2, 4, dtype=torch.int64),))


@NO_JAX
def test_learning_from_what_jax_lends_is_learning_from_copies() -> None:
    learnt = []
    for arguments in (SHORT, {**SHORT, "arrays": "jax"}):
        run = {"environments": 2, "rollout_length": 35}
        training = Training(tiny_config("mappo", "smax/3m", {}, run, arguments))
        statistics = [training.collect()]
        training.update(0.0)
        statistics.append(training.collect())
        learnt.append((statistics, training.tensors()))
        training.close()
    (first, tensors), (second, others) = learnt
    assert first == second
    assert first[1].returns, "no battle ended"
    for name, tensor in tensors.items():
        assert torch.equal(tensor, others[name]), name


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device here")
@pytest.mark.parametrize(
    ("environment", "arguments"),
    [("vmas/navigation", {"device": "cuda"}), ("mpe/simple_spread", {"backend": "torch", "device": "cuda"})],
)
def test_a_rollout_on_a_gpu_stays_there(environment: str, arguments: dict[str, Any]) -> None:
    training = Training(tiny_config("mappo", environment, {}, {"device": "cuda"}, arguments))
    taken: list[str] = []
    step = training.source.environment.step

    def watched(actions: tuple[Any, ...]) -> Any:
        result = step(actions)
        blocks = (*actions, *result.observation.observations, result.observation.state, result.rewards)
        taken.extend(str(block.device.type) for block in blocks)
        return result

    training.source.environment.step = watched  # type: ignore[method-assign]
    training.collect()
    training.close()
    assert set(taken) == {"cuda"}
