"""A policy on a device is held to what the trainer recorded before it serves."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import pytest

from hmarl.runtime.bundle import Bundle
from hmarl.runtime.errors import BundleError
from hmarl.runtime.session import Policy
from hmarl.runtime.verify import hold_to_parity, random_feeds
from toy_bundle import write_toy_bundle


def npy(array: np.ndarray[Any, Any]) -> bytes:
    """As a file holds it."""
    buffer = io.BytesIO()
    np.save(buffer, array, allow_pickle=False)
    return buffer.getvalue()


def recorded(path: Path, error: float) -> Bundle:
    """A bundle whose recorded logits differ from its graph's by so much."""
    policy = Policy(write_toy_bundle(path / "plain"), "agent_0")
    feeds = random_feeds(policy.agent, 20, np.random.default_rng(1))
    outputs = policy.run_batch(feeds)
    outputs["action_logits"] = outputs["action_logits"] + np.float32(error)
    files = {f"parity/agent_0.{name}.npy": npy(array) for name, array in feeds.items()}
    files |= {f"parity/agent_0.expected.{name}.npy": npy(array) for name, array in outputs.items()}
    return write_toy_bundle(path / "recorded", more_files=files)


def test_what_a_device_computes_otherwise_is_refused_with_what_to_do(tmp_path: Path) -> None:
    policy = Policy(recorded(tmp_path, 0.1), "agent_0")
    with pytest.raises(BundleError) as refusal:
        hold_to_parity(policy, "cuda:1")
    message = str(refusal.value)
    assert message.startswith("agents/agent_0.onnx: with --provider cuda:1 (CPUExecutionProvider): parity with the")
    assert "'action_logits' differs" in message
    assert message.endswith("update the driver and onnxruntime-gpu, or choose --provider cpu")
    assert "\n" not in message


def test_what_it_computes_alike_is_served(tmp_path: Path) -> None:
    hold_to_parity(Policy(recorded(tmp_path, 0.0), "agent_0"), "cuda")


def test_on_the_processor_nothing_is_run_again(tmp_path: Path) -> None:
    hold_to_parity(Policy(recorded(tmp_path, 0.1), "agent_0"), "cpu")


@pytest.mark.skipif(
    "CUDAExecutionProvider" not in onnxruntime.get_available_providers(),
    reason="this ONNX Runtime has no CUDA: pip install 'onnxruntime-gpu[cuda,cudnn]'",
)
def test_on_a_gpu_the_graph_itself_is_held_to_it(tmp_path: Path) -> None:
    hold_to_parity(Policy(recorded(tmp_path / "right", 0.0), "agent_0", "cuda"), "cuda")
    with pytest.raises(BundleError, match=r"with --provider cuda \(CUDAExecutionProvider\)"):
        hold_to_parity(Policy(recorded(tmp_path / "wrong", 0.1), "agent_0", "cuda"), "cuda")
