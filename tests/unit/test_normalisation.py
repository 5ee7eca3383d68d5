"""Running statistics equal those of all the data at once."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from hmarl.trainer.networks.normalisation import RunningNormaliser, ValueNormaliser

pytestmark = pytest.mark.usefixtures("single_thread")
CPU = torch.device("cpu")


def batches() -> list[torch.Tensor]:
    """Three unequal batches [M, 2 agents, 3] far from zero, where naive sums of squares would lose digits."""
    generator = torch.Generator().manual_seed(0)
    scale = torch.tensor([0.01, 1.0, 50.0])
    return [1000.0 + scale * torch.randn(rows, 2, 3, generator=generator) + rows for rows in (1, 40, 7)]


def test_merged_moments_equal_those_of_the_concatenated_data() -> None:
    normaliser = RunningNormaliser((2, 3), CPU)
    for batch in batches():
        normaliser.update(batch)
    everything = torch.cat(batches()).double().numpy()
    assert (normaliser.count == 48).all()
    np.testing.assert_allclose(normaliser.mean.numpy(), everything.mean(0), rtol=1e-12)
    np.testing.assert_allclose(normaliser.variance.numpy(), everything.var(0), rtol=1e-9)


def test_rows_of_weight_zero_do_not_count() -> None:
    """Each agent has its own weights; one is not there in the whole second batch."""
    normaliser = RunningNormaliser((2, 3), CPU)
    generator = torch.Generator().manual_seed(1)
    weights = [torch.rand(len(batch), 2, generator=generator).round() for batch in batches()]
    weights[1][:, 1] = 0.0
    for batch, weight in zip(batches(), weights, strict=True):
        normaliser.update(torch.where(weight.unsqueeze(-1) > 0, batch, 1e6), weight)
    for agent in range(2):
        kept = torch.cat([b[w[:, agent] > 0, agent] for b, w in zip(batches(), weights, strict=True)]).double().numpy()
        np.testing.assert_allclose(normaliser.mean[agent].numpy(), kept.mean(0), rtol=1e-12)
        np.testing.assert_allclose(normaliser.variance[agent].numpy(), kept.var(0), rtol=1e-9)


@pytest.mark.parametrize("weighted", [False, True])
def test_pooled_agents_have_the_moments_of_all_their_data_together(weighted: bool) -> None:
    """One agent's data lie far from the other's; the one that has left does not count."""
    normaliser = RunningNormaliser((1, 3), CPU)
    kept = []
    for batch in batches():
        batch[:, 1] += 200.0
        weight = torch.ones(len(batch), 2)
        weight[::2, 1] = 0.0 if weighted else 1.0
        normaliser.update(batch, weight if weighted else None)
        kept.append(batch[weight > 0])
    everything = torch.cat(kept).double().numpy()
    assert normaliser.count.tolist() == [[len(everything)]]
    np.testing.assert_allclose(normaliser.mean[0].numpy(), everything.mean(0), rtol=1e-12)
    np.testing.assert_allclose(normaliser.variance[0].numpy(), everything.var(0), rtol=1e-9)
    x = batches()[1]
    assert torch.equal(normaliser(x)[:, 1], normaliser(x[:, 1:])[:, 0]), "both agents are normalised alike"


def test_weighted_and_unweighted_batches_mix() -> None:
    mixed, plain = RunningNormaliser((2, 3), CPU), RunningNormaliser((2, 3), CPU)
    for index, batch in enumerate(batches()):
        mixed.update(batch, torch.ones(len(batch), 2) if index % 2 else None)
        plain.update(batch)
    torch.testing.assert_close(mixed.mean, plain.mean)
    torch.testing.assert_close(mixed.variance, plain.variance)


def test_normalised_data_have_mean_zero_and_variance_one_and_are_clipped() -> None:
    normaliser = RunningNormaliser((3,), CPU, clip=4.0)
    data = 5.0 + 3.0 * torch.randn(5000, 3, generator=torch.Generator().manual_seed(2))
    normaliser.update(data)
    normalised = normaliser(data)
    assert normalised.mean(0).abs().max() < 0.01
    assert (normalised.std(0) - 1.0).abs().max() < 0.01
    assert normaliser(torch.full((1, 3), 1e9)).tolist() == [[4.0, 4.0, 4.0]]
    assert data.mean() > 4.0, "the input must not be overwritten"


def test_fresh_and_disabled_normalisers() -> None:
    x = torch.tensor([[2.0, -3.0]])
    torch.testing.assert_close(RunningNormaliser((2,), CPU)(x), x)
    disabled = RunningNormaliser((2,), CPU, enabled=False)
    disabled.update(torch.full((9, 2), 100.0))
    assert torch.equal(disabled(1000.0 * x), 1000.0 * x)
    assert disabled.count.item() == 0


def test_statistics_are_kept_in_double_precision() -> None:
    """A count of float32 would stand still at 16,777,216 samples."""
    normaliser, values = RunningNormaliser((2, 3), CPU), ValueNormaliser(CPU)
    for _ in range(2):
        state = normaliser.state_dict() | values.state_dict()
        assert {name: each.dtype for name, each in state.items()} == dict.fromkeys(state, torch.float64)
        normaliser.update(batches()[1])
        values.update(batches()[1])


def test_numbers_are_cut_off_at_ten_deviations() -> None:
    x = torch.tensor([[9.5, 10.5, -10.5, -9.5]])
    torch.testing.assert_close(RunningNormaliser((4,), CPU)(x), torch.tensor([[9.5, 10.0, -10.0, -9.5]]))


def test_what_never_varies_is_zero_and_nothing_else_is_lost() -> None:
    normaliser = RunningNormaliser((2,), CPU)
    normaliser.update(torch.tensor([[3.0, 1.0]]))
    assert normaliser.variance.tolist() == [0.0, 0.0]
    assert normaliser(torch.tensor([[3.0, 1.0]])).tolist() == [[0.0, 0.0]]
    assert normaliser(torch.tensor([[4.0, 0.0]])).tolist() == [[10.0, -10.0]]
    before = {name: each.clone() for name, each in normaliser.state_dict().items()}
    normaliser.update(torch.zeros(0, 2))
    assert all(torch.equal(each, before[name]) for name, each in normaliser.state_dict().items())


def test_an_agent_that_was_there_once_and_one_that_never_was() -> None:
    normaliser = RunningNormaliser((2, 1), CPU)
    normaliser.update(torch.tensor([[[5.0], [7.0]], [[6.0], [8.0]]]), torch.tensor([[1.0, 0.0], [0.0, 0.0]]))
    assert (normaliser.count.tolist(), normaliser.mean.tolist()) == ([[1.0], [0.0]], [[5.0], [0.0]])
    assert normaliser.variance.tolist() == [[0.0], [1.0]]
    torch.testing.assert_close(normaliser(torch.tensor([[[5.0], [7.0]]])), torch.tensor([[[0.0], [7.0]]]))


def test_state_round_trip() -> None:
    first, second = RunningNormaliser((2, 3), CPU), RunningNormaliser((2, 3), CPU)
    first.update(batches()[1])
    second.load_state_dict(first.state_dict())
    x = batches()[2]
    assert torch.equal(first(x), second(x))
    second.update(x)
    assert not torch.equal(first.mean, second.mean), "the loaded statistics must be a copy"


def test_value_normaliser_round_trip_and_moments_by_hand() -> None:
    normaliser = ValueNormaliser(CPU, decay=0.5)
    values = torch.tensor([-3.0, 0.0, 12.0])
    assert torch.equal(normaliser.normalise(values), values), "before the first update nothing is scaled"
    normaliser.update(torch.tensor([1.0, 3.0]))  # the first batch alone: mean 2, variance 1
    torch.testing.assert_close(normaliser.normalise(torch.tensor([2.0, 3.0])), torch.tensor([0.0, 1.0]))
    normaliser.update(torch.tensor([[5.0, 5.0]]))
    # Weights 1/4 and 1/2 of 3/4: mean (2 + 2·5)/3 = 4, second moment (5 + 2·25)/3 = 55/3, variance 7/3.
    torch.testing.assert_close(normaliser.normalise(torch.tensor([4.0])), torch.tensor([0.0]), atol=1e-6, rtol=0)
    expected = torch.tensor([(7 / 3) ** 0.5 + 4])
    torch.testing.assert_close(normaliser.denormalise(torch.tensor([1.0])), expected)
    torch.testing.assert_close(normaliser.denormalise(normaliser.normalise(values)), values)


def test_values_of_earlier_rollouts_weigh_a_hundredth_less_each() -> None:
    normaliser = ValueNormaliser(CPU)
    normaliser.update(torch.tensor([0.0]))
    normaliser.update(torch.tensor([1.99]))
    # Mean 1.99 / 1.99, second moment 1.99: variance 0.99.
    torch.testing.assert_close(normaliser.normalise(torch.tensor([1.0])), torch.tensor([0.0]), atol=1e-6, rtol=0)
    torch.testing.assert_close(normaliser.denormalise(torch.tensor([1.0])), torch.tensor([0.99**0.5 + 1.0]))


def test_no_values_at_all_change_nothing() -> None:
    normaliser = ValueNormaliser(CPU)
    normaliser.update(torch.tensor([1.0, 3.0]))
    before = normaliser.moments.clone()
    normaliser.update(torch.zeros(0))
    assert torch.equal(normaliser.moments, before)


def test_values_that_never_vary_have_a_thousandth_for_a_deviation() -> None:
    normaliser = ValueNormaliser(CPU)
    normaliser.update(torch.full((4,), 2.0))
    torch.testing.assert_close(normaliser.denormalise(torch.tensor([5.0])), torch.tensor([2.005]))


def test_restored_values_are_scaled_alike_and_a_copy() -> None:
    first, second = ValueNormaliser(CPU), ValueNormaliser(CPU)
    first.update(torch.tensor([1.0, 5.0]))
    kept = first.state_dict()
    second.load_state_dict(kept)
    kept["moments"].zero_()
    torch.testing.assert_close(second.normalise(torch.tensor([3.0, 5.0])), torch.tensor([0.0, 1.0]))


def test_disabled_value_normaliser_is_the_identity() -> None:
    normaliser = ValueNormaliser(CPU, enabled=False)
    normaliser.update(torch.full((5,), 70.0))
    values = torch.tensor([1.0, 2.0])
    assert torch.equal(normaliser.normalise(values), values)
    assert torch.equal(normaliser.denormalise(values), values)
