"""Workers as actors of a Ray cluster.

The learner's parameters lie in the object store once an update, where all workers of a machine read them; a share of a
rollout comes back as one object. Whoever is lost, with its machine or without, is replaced, begins where the lost one's
environments stood, and collects the same rollout.
"""

from __future__ import annotations

import logging
import sys
from collections.abc import Callable, Sequence
from contextlib import ExitStack, suppress
from typing import Any

from hmarl.trainer.experience.packing import Arrays
from hmarl.trainer.runs.config import RunConfig
from hmarl.trainer.runs.ray_session import LOCAL, RayError, Reach, ray_session
from hmarl.trainer.runs.workers.hands import MakeHands
from hmarl.trainer.runs.workers.worker import Collected, Facts, Order, RolloutWorker, Start

# Workers in a row that one rollout may cost before something else must be wrong.
_ATTEMPTS = 5
_LOOK_S, _CLOSE_S = 2.0, 5.0
_log = logging.getLogger(__name__)


def ray_hands(address: str, say: Callable[[str], None]) -> MakeHands:
    """Workers of the Ray cluster at an address, see ``checked_address``; ``say`` is told where they are."""
    return lambda config: RayHands(config, address, say)


class RayWorker:
    """A worker's process. Its environments are made by ``begin``, whose errors come back as they are.

    Args:
        config: of the run.
        number: which worker.
        path: where the learner's process imports from.
    """

    def __init__(self, config: RunConfig, number: int, path: Sequence[str]) -> None:
        self._config, self._number = config, number
        self._worker: RolloutWorker | None = None
        sys.path += [place for place in path if place not in sys.path]

    def begin(self, start: Start) -> Facts:
        """See ``RolloutWorker``."""
        if self._worker is None:
            self._worker = RolloutWorker(self._config, self._number)
        return self._worker.begin(start)

    def collect(self, order: Order, weights: Arrays, start: Start | None = None) -> Collected:
        """See ``RolloutWorker``; ``start`` for one who has taken another's place."""
        if start is not None:
            self.begin(start)
        assert self._worker is not None
        return self._worker.collect(order, weights)

    def close(self) -> None:
        """Free the environments."""
        if self._worker is not None:
            self._worker.close()


class RayHands:
    """All workers of a run, as actors.

    Args:
        config: of the run.
        address: of the cluster.
        say: told where they are.
    """

    remote = True

    def __init__(self, config: RunConfig, address: str, say: Callable[[str], None]) -> None:
        self._config, self._count = config, config.run_settings().workers
        self.replaced = 0
        self._open = ExitStack()
        self._ray = self._open.enter_context(ray_session(address, self._count))
        self._reach = Reach(self._ray)
        self._open.callback(self._end)
        self._actors: list[Any] = []
        self._pending: dict[Any, int] = {}
        self._saves = True
        self._again: Callable[[Any, int], Any] = lambda actor, worker: None
        cpus = float(self._ray.cluster_resources().get("CPU", 0.0))
        nodes = sum(bool(node["Alive"]) for node in self._ray.nodes())
        self.where = "on Ray, in this machine" if address == LOCAL else f"on Ray, in a cluster of {nodes} machines"
        if cpus < self._count:
            say(f"run.workers: {self._count} workers share the {cpus:g} CPUs of the Ray cluster")
        self._cpus = 1.0 if cpus >= self._count else 0.0
        try:
            self._actors = [self._actor(worker, self._cpus) for worker in range(self._count)]
        except BaseException:
            self.close()
            raise

    def _actor(self, worker: int, cpus: float) -> Any:
        options = {"num_cpus": cpus, "max_restarts": 0, "max_task_retries": 0, "scheduling_strategy": "SPREAD"}
        return self._ray.remote(**options)(RayWorker).remote(self._config, worker, sys.path)

    # --- see Hands --------------------------------------------------------------------------------------------------

    def begin(self, starts: Sequence[Start]) -> Facts:
        """See ``Hands``."""
        self._ask(lambda actor, worker: actor.begin.remote(starts[worker]))
        facts: list[Facts] = self._answers()
        self._saves = facts[0].saves
        return facts[0]

    def collect(self, orders: Sequence[Order], weights: Arrays, starts: Sequence[Start]) -> None:
        """See ``Hands``."""
        self._reach.check()
        shared = self._ray.put(weights)
        self._ask(
            lambda actor, worker: actor.collect.remote(orders[worker], shared),
            lambda actor, worker: actor.collect.remote(orders[worker], shared, starts[worker]),
        )

    def collected(self) -> list[Collected]:
        """See ``Hands``."""
        return self._answers()

    def close(self) -> None:
        """See ``Hands``."""
        self._open.close()

    # --- asking and answers -----------------------------------------------------------------------------------------

    def _ask(self, ask: Callable[[Any, int], Any], again: Callable[[Any, int], Any] | None = None) -> None:
        """Ask all workers; ``again`` asks one who has taken another's place."""
        self._again = again or ask
        self._pending = {ask(actor, worker): worker for worker, actor in enumerate(self._actors)}

    def _answers(self) -> list[Any]:
        """In the order of the workers.

        Raises:
            RayError: workers are lost again and again, or Ray itself.
            Exception: what a worker has raised.
        """
        ray = self._ray
        answers: dict[int, Any] = {}
        lost: dict[int, int] = {}
        while self._pending:
            self._reach.check()
            found, _ = ray.wait(list(self._pending), num_returns=1, timeout=_LOOK_S)
            if not found:
                continue
            (ready,) = found
            worker = self._pending.pop(ready)
            self._reach.check()
            try:
                answers[worker] = ray.get(ready)
            except ray.exceptions.RayTaskError as error:
                raise (error.cause if isinstance(error.cause, Exception) else error) from None
            except ray.exceptions.RayError as error:
                lost[worker] = lost.get(worker, 0) + 1
                self._replace(worker, lost[worker], error)
        return [answers[worker] for worker in range(self._count)]

    def _replace(self, worker: int, attempt: int, error: Exception) -> None:
        told = (str(error).strip() or type(error).__name__).splitlines()[0]
        if attempt >= _ATTEMPTS:
            raise RayError(
                f"workers: worker {worker} was lost {attempt} times in a row ({told}); Ray's logs may tell why"
            )
        anew = "" if self._saves else ", in new episodes: the environments' state cannot be saved"
        _log.warning("worker %d is lost (%s); another one collects its share again%s", worker, told, anew)
        self.replaced += 1
        with suppress(Exception):  # it may only be out of reach
            self._ray.kill(self._actors[worker])
        # It needs no CPU that is free: those that are left have to do.
        actor = self._actors[worker] = self._actor(worker, 0.0)
        self._pending[self._again(actor, worker)] = worker

    def _end(self) -> None:
        """All workers close their environments, and end; without Ray they end by themselves."""
        try:
            self._reach.check()
        except RayError:
            return
        with suppress(Exception):
            closing = [actor.close.remote() for actor in self._actors]
            self._ray.wait(closing, num_returns=len(closing), timeout=_CLOSE_S)
        for actor in self._actors:
            with suppress(Exception):
                self._ray.kill(actor)
