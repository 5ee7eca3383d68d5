"""How a blocking agent is asked with a deadline: in a thread of its own, so that a slow one holds up nothing else."""

from __future__ import annotations

import contextlib
import threading
import time
import weakref
from collections.abc import Iterable, Mapping
from contextvars import Context, copy_context
from queue import Empty, SimpleQueue
from typing import Any, Protocol, TypeAlias, cast

from hmarl.runtime.errors import InferenceError
from hmarl.sdk.clients.agent import Agent
from hmarl.sdk.control.statistics import AGENT, DEADLINE
from hmarl.sdk.control.team import Answer, Missing, Request, Seat
from hmarl.sdk.errors import StaleActionError

_SHORTEST_S = 1e-4
_Errand: TypeAlias = tuple[Request, Context]
_Outcome: TypeAlias = "tuple[str, int, Answer | BaseException]"


class KeepsDeadlines(Protocol):
    """An agent that can be told how long an act may take, as clients can."""

    timeout_s: float


def keeps_deadlines(agent: object) -> bool:
    """Whether an agent can be told how long an act may take."""
    return hasattr(agent, "timeout_s")


def allow(agent: object, deadline_s: float) -> None:
    """Tell an agent that can be told how long its next act may take."""
    if keeps_deadlines(agent):
        cast(KeepsDeadlines, agent).timeout_s = max(deadline_s - time.monotonic(), _SHORTEST_S)


def ask(agent: Agent, request: Request) -> Answer:
    """What an agent answers; raises what says that the program or the set-up is wrong."""
    if request.skipped:
        agent.skip(request.skipped)
    allow(agent, request.deadline_s)
    try:
        return agent.act(request.observation, request.action_mask)
    except StaleActionError as error:
        return Missing(AGENT, str(error))
    except InferenceError as error:
        agent.skip(1)  # it is not used up by the policy, but by the team
        return Missing(AGENT, str(error))


class Workers:
    """A thread for each agent, that asks it; late answers are dropped.

    Args:
        seats: by agent id; an agent whose answer is late stays ``busy`` until that has come.
    """

    def __init__(self, seats: Mapping[str, Seat[Agent]]) -> None:
        self._seats = seats
        self._answers: SimpleQueue[_Outcome] = SimpleQueue()
        self._inboxes: dict[str, SimpleQueue[_Errand | None]] = {}
        for agent_id, seat in seats.items():
            self._inboxes[agent_id] = inbox = SimpleQueue[_Errand | None]()
            # A daemon: an agent that never answers does not keep the program from ending.
            threading.Thread(
                target=_work,
                args=(agent_id, seat.agent, inbox, self._answers),
                name=f"hmarl-control-{agent_id}",
                daemon=True,
            ).start()
        self._ended = weakref.finalize(self, _end, list(self._inboxes.values()))

    def ask(self, requests: Mapping[str, Request], deadline_s: float) -> dict[str, Answer]:
        """Ask all at once; those who have not answered by the deadline miss it.

        Raises:
            HmarlError: what an agent raised, once all others have answered or missed the deadline.
        """
        for agent_id, request in requests.items():
            self._seats[agent_id].busy = True
            # What the program has in its context, a request id for instance, goes along.
            self._inboxes[agent_id].put((request, copy_context()))
        answers: dict[str, Answer] = {}
        errors: list[BaseException] = []
        while len(answers) < len(requests):
            try:
                agent_id, tick, outcome = self._answers.get(timeout=max(deadline_s - time.monotonic(), 0.0))
            except Empty:
                break
            self._seats[agent_id].busy = False
            if isinstance(outcome, BaseException):
                errors.append(outcome)
                outcome = Missing(AGENT, str(outcome))
            if agent_id in requests and requests[agent_id].tick == tick:
                answers[agent_id] = outcome
        if errors:
            raise errors[0]
        late = Missing(DEADLINE, "no answer by the deadline")
        return {agent_id: answers.get(agent_id, late) for agent_id in requests}

    def look(self) -> None:
        """Take late answers that have come: those agents may be asked again.

        Raises:
            HmarlError: what an agent raised.
        """
        with contextlib.suppress(Empty):
            while True:
                agent_id, _, outcome = self._answers.get_nowait()
                self._seats[agent_id].busy = False
                if isinstance(outcome, BaseException):
                    raise outcome

    def settle(self, seconds: float) -> list[str]:
        """Wait until no agent is in the middle of a step, at most so long; returns those who still are."""
        deadline_s = time.monotonic() + seconds
        with contextlib.suppress(Empty):
            while any(seat.busy for seat in self._seats.values()):
                agent_id, _, _ = self._answers.get(timeout=max(deadline_s - time.monotonic(), 0.0))
                self._seats[agent_id].busy = False
        return [agent_id for agent_id, seat in self._seats.items() if seat.busy]

    def close(self) -> None:
        """End the threads, each as soon as its agent has answered."""
        self._ended()


def _work(agent_id: str, agent: Agent, inbox: SimpleQueue[_Errand | None], answers: SimpleQueue[_Outcome]) -> None:
    while (errand := inbox.get()) is not None:
        request, context = errand
        outcome: Answer | BaseException
        try:
            outcome = context.run(ask, agent, request)
        except BaseException as error:  # told to the loop, which raises it
            outcome = error
        answers.put((agent_id, request.tick, outcome))


def _end(inboxes: Iterable[SimpleQueue[Any]]) -> None:
    for inbox in inboxes:
        inbox.put(None)
