"""An agent's policy in this process, by ONNX Runtime."""

from __future__ import annotations

import time
from types import TracebackType
from typing import TYPE_CHECKING, Any, NoReturn, Self, SupportsIndex

import numpy as np
import numpy.typing as npt

from hmarl.runtime.bundle import Bundle, verify_signature
from hmarl.runtime.choices import InstructionChoice
from hmarl.runtime.inputs import checked_integer
from hmarl.runtime.session import Policy
from hmarl.runtime.settings import PROVIDER
from hmarl.sdk.clients.agent import Action, AgentStatistics, agent_spec, refuse_copy
from hmarl.sdk.errors import MisuseError

if TYPE_CHECKING:
    from hmarl.runtime.bundle import TrustFiles


class LocalAgent:
    """An agent's policy in this process.

    Args:
        bundle: the verified bundle.
        agent_id: which agent of it.
        like: for an agent that was not trained, the interchangeable one by whose graph it acts.
        provider: ``cpu``, ``cuda`` or ``tensorrt``, the latter two optionally with ``:device``.
        trust: PEM files of the public keys or certificate authorities of which one must have signed the bundle, see
            ``load_bundle``; None asks for no signature.

    Raises:
        UsageError: unknown agent or provider, or ``like`` is not interchangeable.
        BundleError: the agent's graph is not what the manifest says.
        SignatureError: the bundle is unsigned, is not what was signed, or was signed by another key.
    """

    def __init__(
        self,
        bundle: Bundle,
        agent_id: str,
        *,
        like: str | None = None,
        provider: str = PROVIDER,
        trust: TrustFiles | None = None,
    ) -> None:
        if trust is not None:
            bundle = verify_signature(bundle, trust)
        policy = Policy(bundle, agent_id, provider, like)
        self.spec = agent_spec(policy.agent)
        self.statistics = AgentStatistics()
        self._session = policy.session()
        self._next_step = 0
        self._closed = False

    def reset(
        self,
        seed: int,
        *,
        sample: bool = False,
        instruction_choice: InstructionChoice | None = None,
        first_step: int = 0,
    ) -> None:
        """Start an episode; see ``Agent.reset``."""
        self._check_open()
        self._session.reset(seed, sample=sample, instruction_choice=instruction_choice, first_step=first_step)
        self._next_step = first_step

    def act(self, observation: npt.NDArray[Any], action_mask: npt.NDArray[np.bool_] | None = None) -> Action:
        """The action for the next step; see ``Agent.act``."""
        begin = time.perf_counter()
        self._check_open()
        reply = self._session.act(observation, action_mask, step=self._next_step)
        self._next_step = reply.step + 1
        self.statistics.acts += 1
        self.statistics.fresh += 1
        self.statistics.missed_steps += reply.missed_steps
        return Action(
            action=reply.action,
            step=reply.step,
            fresh=True,
            missed_steps=reply.missed_steps,
            replayed=reply.replayed,
            diagnostics=reply.diagnostics,
            latency_s=self.statistics.took(time.perf_counter() - begin),
        )

    def skip(self, steps: int = 1, *, away: bool = False) -> None:
        """Steps go by at which the agent is not asked; see ``Agent.skip``."""
        self._next_step += checked_integer("steps", steps)

    def close(self) -> None:
        """Nothing to free, but the agent acts no longer."""
        self._closed = True

    def _check_open(self) -> None:
        if self._closed:
            raise MisuseError(f"agent '{self.spec.id}': it is closed: make a new one")

    def __reduce_ex__(self, protocol: SupportsIndex) -> NoReturn:
        refuse_copy(self, "make one from the bundle where it is needed")

    def __enter__(self) -> Self:
        self._check_open()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()
