"""TF32 and bfloat16 are asked for by name, and only where there are any."""

from __future__ import annotations

import pytest
import torch

from hmarl.sdk.errors import UsageError
from hmarl.trainer.runs.devices import check_precision
from hmarl.trainer.runs.training import Training
from training_runs import tiny_config


@pytest.mark.parametrize("precision", ["high", "medium"])
def test_without_a_gpu_less_precision_is_refused_by_name(precision: str) -> None:
    with pytest.raises(UsageError) as refusal:
        tiny_config("happo", "mpe/simple_spread", {}, {"matmul_precision": precision})
    assert str(refusal.value) == (
        f"run.matmul_precision: got '{precision}' with run.device=cpu, expected highest: TF32 and bfloat16 need a CUDA "
        "device"
    )


def test_with_a_gpu_it_is_taken() -> None:
    for precision in ("highest", "high", "medium"):
        check_precision(precision, torch.device("cuda:0"))


def test_a_run_computes_in_its_own_precision_whatever_ran_before() -> None:
    before = torch.get_float32_matmul_precision()
    try:
        torch.set_float32_matmul_precision("medium")
        Training(tiny_config("happo", "mpe/simple_spread")).close()
        assert torch.get_float32_matmul_precision() == "highest"
    finally:
        torch.set_float32_matmul_precision(before)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device here")
@pytest.mark.parametrize("precision", ["high", "medium"])
def test_a_gpu_learns_with_less_precision(precision: str) -> None:
    config = tiny_config("happo", "mpe/simple_spread", {}, {"device": "cuda", "matmul_precision": precision})
    training = Training(config)
    training.collect()
    metrics, divergence = training.update(0.0)
    training.close()
    assert divergence is None
    assert metrics["agent_kl"] >= 0.0
