"""A healthy client beside trouble: it acts at a fixed rate, and every fresh action is held against the right one."""

from __future__ import annotations

import threading
import time
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Self

import numpy as np
import numpy.typing as npt

from hmarl.runtime.bundle import load_bundle
from hmarl.runtime.session import Policy
from hmarl.sdk.clients.client import AgentClient
from hmarl.sdk.clients.security import Security
from hmarl.sdk.errors import HmarlError
from hmarl.sdk.fallback import Zero

BUNDLE = Path(__file__).parents[1] / "models" / "simple-spread-hcpo"
AGENT = "agent_0"


class Reference:
    """The right action for every observation, from the same bundle in this process; nothing is drawn."""

    def __init__(self, bundle: Path = BUNDLE, agent_id: str = AGENT) -> None:
        self._session = Policy(load_bundle(bundle), agent_id).session()
        self._session.reset(0)

    def action(self, observation: npt.NDArray[np.float32]) -> int:
        return int(self._session.act(observation).action)  # type: ignore[arg-type]


@dataclass
class Tally:
    """What a healthy client got: acts, those without a fresh action, those that were wrong, and their times."""

    acts: int = 0
    missed: int = 0
    wrong: int = 0
    errors: list[str] = field(default_factory=list)
    latencies_s: list[float] = field(default_factory=list)

    @property
    def missed_share(self) -> float:
        return self.missed / max(self.acts, 1)

    def percentile_ms(self, percent: float) -> float:
        return float(np.percentile(self.latencies_s, percent)) * 1e3 if self.latencies_s else float("nan")

    def row(self) -> str:
        """Acts, misses in percent, wrong actions, median and 99th percentile in milliseconds, as a table's cells."""
        return (
            f"{self.acts:,} | {100 * self.missed_share:.2f} % | {self.wrong} | "
            f"{self.percentile_ms(50):.2f} | {self.percentile_ms(99):.2f}"
        )


class HealthyClient:
    """Acts at a fixed rate with a deadline in a thread of its own, and holds every fresh action against the reference.

    Args:
        address: of the agent.
        rate_hz: acts a second.
        timeout_s: of one act.
        stream: see ``AgentClient``.
        security: likewise.
    """

    def __init__(
        self,
        address: str,
        rate_hz: float = 200.0,
        timeout_s: float = 0.05,
        stream: bool = False,
        security: Security | None = None,
    ) -> None:
        self.tally = Tally()
        self._period_s = 1.0 / rate_hz
        self._reference = Reference()
        self._client = AgentClient(address, timeout_s=timeout_s, fallback=Zero(), stream=stream, security=security)
        self._client.reset(1)
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._loop, name="healthy-client")

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._stop.set()
        self._thread.join()
        self._client.close()

    def _loop(self) -> None:
        generator = np.random.default_rng(0)
        size = self._client.spec.observation_size
        due = time.monotonic()
        while not self._stop.is_set():
            self._one(generator.normal(size=size).astype(np.float32))
            # A tick that was missed is skipped, as in a control loop; otherwise delays would pile up.
            due = max(due + self._period_s, time.monotonic())
            time.sleep(max(0.0, due - time.monotonic()))

    def _one(self, observation: npt.NDArray[np.float32]) -> None:
        self.tally.acts += 1
        try:
            got = self._client.act(observation)
        except HmarlError as error:
            self.tally.missed += 1
            self.tally.errors.append(str(error))
            return
        self.tally.latencies_s.append(got.latency_s)
        self.tally.missed += not got.fresh
        self.tally.wrong += got.fresh and got.action != self._reference.action(observation)
