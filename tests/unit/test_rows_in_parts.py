"""Many rows go through a network some at a time, and come to what they come to together."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from hmarl.trainer.networks.flat import ROWS, Mlp, in_parts


@pytest.mark.parametrize("networks", [1, 3])
@pytest.mark.parametrize("rows", [2 * ROWS + 5, ROWS])
def test_outputs_and_gradients_are_those_of_all_rows_at_once(networks: int, rows: int) -> None:
    network = Mlp(4, (6,), 2, normalise_layers=True, output_gain=1.0)
    theta = torch.stack([network.initialise(torch.Generator().manual_seed(seed)) for seed in range(networks)])
    x = torch.randn(networks, rows, 4, generator=torch.Generator().manual_seed(9))
    if networks == 1:
        theta, x = theta[0], x[0]
    theta.requires_grad_()
    weight = torch.randn(*x.shape[:-1], 2, generator=torch.Generator().manual_seed(10))

    def both(output: Tensor) -> tuple[Tensor, Tensor]:
        return output.detach(), torch.autograd.grad((output * weight).mean(), theta)[0]

    ours, gradient = both(network(theta, x))
    expected, expected_gradient = both(network.apply(network.named(theta), x))
    torch.testing.assert_close(ours, expected, rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(gradient, expected_gradient, rtol=1e-4, atol=1e-7)


@pytest.mark.parametrize(
    ("shape", "sizes"),
    [
        ((ROWS, 2), [ROWS]),
        ((ROWS + 1, 2), [ROWS, 1]),
        ((3, 2 * ROWS + 1, 2), [ROWS, ROWS, 1]),
        ((2 * ROWS,), [None]),
    ],
)
def test_no_part_is_larger_than_told(shape: tuple[int, ...], sizes: list[int | None]) -> None:
    seen = []

    def evaluate(rows: Tensor) -> Tensor:
        seen.append(rows.shape[-2] if rows.dim() > 1 else None)
        return rows + 1.0

    x = torch.randn(shape)
    assert torch.equal(in_parts(evaluate, x), x + 1.0)
    assert seen == sizes
