"""The client of an agent that another process serves; the one for asyncio is in ``async_client``.

    with AgentClient("127.0.0.1:50051", timeout_s=0.02, fallback=Hold(expires_after_s=0.2)) as agent:
        agent.reset(seed=1)
        action = agent.act(observation)

Every act has a deadline. When no fresh action is taken by then the fallback decides; a late reply is never taken for
that of a newer step. When the server has restarted, the client joins the episode again at the current step
(``rejoin``), unless the fallback says that the last action is too old for that, or another agent or bundle answers. A
connection over which nothing is answered any longer is left for a new one.
"""

from __future__ import annotations

import contextlib
import threading
import time
from collections.abc import Iterator
from types import TracebackType
from typing import Any, Self, Unpack

import numpy as np
import numpy.typing as npt

from hmarl.agent.v1.status import Code
from hmarl.runtime.choices import InstructionChoice
from hmarl.sdk.clients.agent import Action
from hmarl.sdk.clients.base import ClientBase, ClientOptions
from hmarl.sdk.clients.forks import FORKS
from hmarl.sdk.clients.link import LEAST_RECEIVE_LIMIT_BYTES
from hmarl.sdk.clients.operations import Act, CallFailed, Examine, Operation, Pause, Reconnect, Script
from hmarl.sdk.clients.remote_episode import describe
from hmarl.sdk.clients.wires import METHODS, Dialling, Wire, is_frames
from hmarl.sdk.errors import HmarlError


class AgentClient(ClientBase):
    """One agent, served by another process; for its arguments see ``ClientBase``.

    Raises:
        AgentError: no agent answers at the address.
        UsageError: the agent there is not the expected one, or an argument is out of range.
    """

    def __init__(self, address: str, **options: Unpack[ClientOptions]) -> None:
        super().__init__(address, **options)
        self._busy = threading.Lock()
        self._wire: Wire = _wire(self._dialling, self._connect_timeout_s, LEAST_RECEIVE_LIMIT_BYTES)
        try:
            self._described(self._run(describe(self._watch, self._deadline())))
        except CallFailed as failure:
            self._wire.close()
            raise self._error("connecting", failure) from failure
        except HmarlError:
            self._wire.close()
            raise

    def _explained(self, doing: str, failure: CallFailed) -> Exception:
        why = self._why() if failure.code is Code.DEADLINE_EXCEEDED else None
        return self._error(doing, failure, why)

    @contextlib.contextmanager
    def _in_use(self, doing: str) -> Iterator[None]:
        """One call at a time, by the process that made the client.

        Raises:
            MisuseError: the client is closed, was inherited by a fork, or is in use.
        """
        self._check_usable()
        if not self._busy.acquire(blocking=False):
            raise self._used_twice(doing, "thread")
        try:
            yield
        finally:
            self._busy.release()

    def reset(
        self,
        seed: int,
        *,
        sample: bool = False,
        instruction_choice: InstructionChoice | None = None,
        first_step: int = 0,
        bundle_sha256: str | None = None,
    ) -> None:
        """Start an episode; the one before it, if any, is ended. See ``Agent.reset``.

        Args:
            seed: of the episode.
            sample: whether actions are drawn.
            instruction_choice: how instructions are chosen.
            first_step: the step of the first observation.
            bundle_sha256: the bundle that the whole episode has to be played on, whichever the client knew before; so
                all agents of a team are of one (``reset_together``). None: the one that is served.

        Raises:
            UsageError: an argument out of range.
            OtherBundleError: the server does not hold that bundle, or serves another one by now.
            AgentError: the server does not start it, or serves another agent by now.
            MisuseError: the client is closed, was inherited by a fork, or is in use.
        """
        with self._in_use("reset"):
            episode = self._connected
            request = episode.starting(seed, sample, instruction_choice, first_step, bundle_sha256)
            self._end_episode()
            self._wire.keep_renewed(self._watch.connect_timeout_s)
            try:
                with self._span("StartEpisode"):
                    self._run(episode.start(request, self._deadline()))
            except CallFailed as failure:
                raise self._explained("starting an episode", failure) from failure

    def current_bundle(self) -> str:
        """SHA-256 of the bundle that new episodes get now: it changes when the agent is given another one.

        Raises:
            AgentError: the server does not answer, or serves another agent by now.
            MisuseError: the client is closed, was inherited by a fork, or is in use.
        """
        with self._in_use("current_bundle"):
            try:
                return str(self._run(self._connected.current_bundle(self._deadline())))
            except CallFailed as failure:
                raise self._explained("asking for its bundle", failure) from failure

    def act(self, observation: npt.NDArray[Any], action_mask: npt.NDArray[np.bool_] | None = None) -> Action:
        """The action for the next step, from the policy if it arrives in time, else from the fallback.

        Raises:
            ObservationError: wrong shape, dtype or content; the step is not used up.
            StaleActionError: no fresh action in time, and the fallback allows none instead.
            AgentError: no episode was started, the server refuses the request, what it replies is no action of the
                agent, or another agent or bundle is served by now; the next act goes on with the next step.
            MisuseError: the client is closed, was inherited by a fork, or is in use.
        """
        if self._spans is None:
            return self._act(observation, action_mask)
        with self._spans.span("Act") as span:
            action = self._act(observation, action_mask)
            self._spans.tell(span, action)
            return action

    def _act(self, observation: npt.NDArray[Any], action_mask: npt.NDArray[np.bool_] | None) -> Action:
        # As _in_use, without its cost: this is what a control loop waits for.
        if self._closed or self._born != FORKS.count:
            self._check_usable()
        if not self._busy.acquire(blocking=False):
            raise self._used_twice("act", "thread")
        try:
            if self._keys is not None:
                self._wire.keep_renewed(self._watch.connect_timeout_s)
            action: Action = self._run(self._connected.act(observation, action_mask))
            return action
        finally:
            self._busy.release()

    def _run(self, script: Script) -> Any:
        """Do what a script asks for; returns what it returns."""
        try:
            operation = next(script)
            while True:
                try:
                    outcome = self._perform(operation)
                except CallFailed as failure:
                    operation = script.throw(failure)
                else:
                    operation = script.send(outcome)
        except StopIteration as stop:
            return stop.value
        finally:
            script.close()

    def _perform(self, operation: Operation) -> Any:
        wire = self._wire
        try:
            if isinstance(operation, Act):
                return wire.act(operation, self._connected.statistics)
            if isinstance(operation, Pause):
                return time.sleep(operation.seconds)
            if isinstance(operation, Examine):
                return self._examined(self._why(operation.limit_s))
            return getattr(wire, METHODS[type(operation)])(operation)
        except CallFailed as failure:
            if not wire.outdated(failure):
                raise
            wire.reconnect(Reconnect(self._watch.connect_timeout_s, wire.receive_limit_bytes))
            raise CallFailed(Code.UNAVAILABLE, failure.details) from failure

    def _end_episode(self) -> None:
        """Tell the server that the episode is over; if it does not hear it, it forgets the session by itself."""
        self._wire.finish_acts()
        self._wire.abandon()
        request = self._connected.ending()
        if request is not None:
            with self._span("EndEpisode"):
                self._wire.finish(request, self._end_timeout_s())

    def close(self) -> None:
        """End the episode and disconnect; a second call does nothing.

        Raises:
            MisuseError: the client is in use.
        """
        if self._closed:
            return
        if self._inherited:
            # Connection and episode are the parent's, which goes on with both.
            self._closed = True
            self._wire.leave()
            return
        with self._in_use("close"):
            self._closed = True
            try:
                self._end_episode()
            finally:  # also when Ctrl-C interrupts it: a second call would do nothing
                self._wire.close()
                self._end_recording()

    def __enter__(self) -> Self:
        self._check_usable()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()


def _wire(dialling: Dialling, connect_timeout_s: float, receive_limit_bytes: int) -> Wire:
    """The way to an agent that its address means."""
    if is_frames(dialling.address):
        from hmarl.sdk.clients.frames_wire import FramesWire  # noqa: PLC0415 - the one or the other

        return FramesWire(dialling, receive_limit_bytes)
    from hmarl.sdk.clients.grpc_wire import GrpcWire  # noqa: PLC0415 - not needed over frames

    return GrpcWire(dialling, connect_timeout_s, receive_limit_bytes)
