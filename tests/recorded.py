"""Recordings made in this process, and what is read and run again of them."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np

from hmarl.runtime.bundle import Bundle
from hmarl.runtime.manifest import branch_sizes
from hmarl.runtime.recording.agent import AgentRecorder
from hmarl.runtime.recording.reader import Entry, open_recording, read_recording
from hmarl.runtime.recording.replay import Replayer, ReplayReport
from hmarl.runtime.recording.settings import RecordSettings
from hmarl.runtime.session import Policy


@contextmanager
def recorded(
    bundle: Bundle, folder: Path, agent_id: str = "agent_0", like: str | None = None, **settings: Any
) -> Iterator[Policy]:
    """A policy whose sessions are recorded until the end of the block."""
    policy = Policy(bundle, agent_id, like=like)
    recorder = AgentRecorder(RecordSettings(folder, **settings), policy.agent)
    policy.observer = recorder
    try:
        yield policy
    finally:
        recorder.close()


def entries(path: Path) -> list[Entry]:
    return list(read_recording(open_recording(path)))


def run_again(path: Path, *bundles: Bundle, any_bundle: bool = False) -> ReplayReport:
    return Replayer(bundles, any_bundle).run(read_recording(open_recording(path)))


def inputs(policy: Policy, generator: np.random.Generator) -> tuple[np.ndarray, np.ndarray | None]:
    """An observation and a mask that an agent may be given."""
    agent = policy.agent
    observation = generator.normal(size=agent.observation.shape).astype(np.float32)
    if agent.action_mask is None:
        return observation, None
    parts = [generator.random(size) < 0.6 for size in branch_sizes(agent.action_space)]
    for part in parts:
        part[generator.integers(len(part))] = True
    return observation, np.concatenate(parts)
