"""The rungs of a bundle: its graphs in this process, served, and served under faults."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from hmarl.runtime.bundle import Bundle
from hmarl.sdk.errors import UsageError
from hmarl.sdk.evaluation.deployed_teams import BundleTeam, FleetTeam
from hmarl.sdk.faults.model import FALLBACK
from hmarl.sdk.gap.ladder import ONNX, SERVED, Rung, faulted_name
from hmarl.sdk.spaces import EnvironmentSpec


@dataclass(frozen=True)
class Deployment:
    """How a bundle is played and served.

    Attributes:
        bundle: verified.
        sample: whether actions are drawn.
        endpoints: the endpoints file of a fleet that serves it, asked for when it is needed.
        deadline_s: of one act; later the fallback acts, the same as under faults.
        stream: acts over streams instead of unary calls.
    """

    bundle: Bundle
    sample: bool
    endpoints: Callable[[], Path]
    deadline_s: float
    stream: bool = False

    def in_process(self, spec: EnvironmentSpec) -> BundleTeam:
        """The graphs in this process."""
        return BundleTeam(self.bundle, spec, sample=self.sample)

    def served(self, spec: EnvironmentSpec) -> FleetTeam:
        """One process an agent.

        Raises:
            UsageError: the fleet serves another bundle.
        """
        path = self.endpoints()
        team = FleetTeam(
            path, spec, sample=self.sample, timeout_s=self.deadline_s, fallback=FALLBACK, stream=self.stream, wait=False
        )
        got = {client.info.bundle_sha256 for clients in team.clients.values() for client in clients}
        if got != {self.bundle.sha256}:
            team.close()
            raise UsageError(
                f"endpoints {path}: got a fleet that serves bundle {', '.join(sorted(got))}, expected "
                f"{self.bundle.sha256}, which is {self.bundle.path}"
            )
        return team


def deployed_rungs(deployment: Deployment, faults: Sequence[str]) -> list[Rung]:
    """In process, served, and served under each of the faults."""
    served = deployment.served
    return [
        Rung(ONNX, "ONNX, in process", deployment.in_process),
        Rung(SERVED, "served over gRPC", served),
        *(Rung(faulted_name(each), f"served, {each}", served, each) for each in faults),
    ]
