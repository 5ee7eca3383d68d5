"""The search: trials are drawn, trained so many at a time, pruned by their learning curves, and remembered."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from hmarl.runtime.command_line import ExitCode
from hmarl.sdk.errors import MissingExtraError, UsageError
from hmarl.trainer.records.metrics import read_metrics
from hmarl.trainer.runs.stopping import StopRequest
from hmarl.trainer.suite.engine import Places, in_use
from hmarl.trainer.suite.executor import Executor, Started, how_it_ended
from hmarl.trainer.suite.planned import PlannedRun, ended_at, training_words
from hmarl.trainer.tuning.plan import SearchPlan
from hmarl.trainer.tuning.space import as_parameters, suggested

PRUNERS = ("median", "hyperband", "none")
SAMPLERS = ("tpe", "random")
_POLL_S = 0.1
_NAME = "search"
_FIGURES = {"return": "return_mean", "success_rate": "success_rate"}


def optuna_module() -> Any:
    """Optuna, silent but for warnings.

    Raises:
        MissingExtraError: it is not installed.
    """
    try:
        import optuna  # noqa: PLC0415 - part of the tune extra
    except ImportError as error:
        raise MissingExtraError(error.name or "optuna", "tune", "hmarl-tune") from error
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    return optuna


def open_study(plan: SearchPlan, folder: Path, pruner: str, sampler: str, before: dict[str, Any]) -> Any:
    """The Optuna study in a directory, a new one where there is none.

    Args:
        plan: of the search.
        folder: where it is kept.
        pruner: see ``PRUNERS``.
        sampler: see ``SAMPLERS``.
        before: the settings as they are without a search, tried first where they lie in the space.

    Raises:
        UsageError: the directory holds another search.
    """
    optuna = optuna_module()
    pruners = {
        "median": lambda: optuna.pruners.MedianPruner(n_startup_trials=4, n_warmup_steps=2),
        "hyperband": lambda: optuna.pruners.HyperbandPruner(1, plan.evaluations * plan.seeds),
        "none": optuna.pruners.NopPruner,
    }
    samplers = {"tpe": optuna.samplers.TPESampler, "random": optuna.samplers.RandomSampler}
    study = optuna.create_study(
        storage=f"sqlite:///{(folder / 'search.db').resolve()}",
        study_name=_NAME,
        direction="maximize",
        load_if_exists=True,
        pruner=pruners[pruner](),
        sampler=samplers[sampler](seed=0),
    )
    kept = study.user_attrs.get("fingerprint")
    if kept is None:
        study.set_user_attr("fingerprint", plan.fingerprint)
        study.set_user_attr("search_seeds", list(plan.search_seeds))
        if (first := as_parameters(plan.space, before)) is not None:
            study.enqueue_trial(first)
    elif kept != plan.fingerprint:
        raise UsageError(
            f"--out: {folder} holds another search, whose values do not compare with this one's; choose another "
            "directory, or type the command that began it"
        )
    return study


@dataclass(frozen=True)
class SearchLimits:
    """How much a search may take.

    Attributes:
        trials: in all, those of earlier commands included.
        jobs: runs at the same time.
        total_s: seconds of this command, None without a limit.
        retries: how often a run that was killed goes on: that tells nothing of its settings.
    """

    trials: int
    jobs: int = 1
    total_s: float | None = None
    retries: int = 1


@dataclass
class _Going:
    """A trial that goes on.

    Attributes:
        trial: Optuna's.
        drawn: its settings.
        finals: values of its runs that are done.
        reported: evaluations of the run that goes on which the pruner has seen.
        known: steps whose values the pruner had seen before the search was cut off.
        pruned: it has been asked to stop.
        killed: how often its run was.
    """

    trial: Any
    drawn: dict[str, Any]
    run: PlannedRun
    started: Started | None = None
    finals: list[float] = field(default_factory=list)
    reported: int = 0
    known: frozenset[int] = frozenset()
    pruned: bool = False
    killed: int = 0


@dataclass
class Search:
    """Trains trials until there are enough.

    Args:
        plan: what is searched.
        study: Optuna's, see ``open_study``.
        places: where runs are kept.
        executor: starts them.
        limits: how much they may take.
        say: told a line when a trial has ended.
    """

    plan: SearchPlan
    study: Any
    places: Places
    executor: Executor
    limits: SearchLimits
    say: Callable[[str], None]
    _going: list[_Going] = field(default_factory=list)

    def run(self, stop: StopRequest) -> None:
        """Search until there are enough trials, the time is used up, or ``stop`` is asked for; all is resumable.

        Raises:
            KeyboardInterrupt: asked to stop for the second time.
        """
        self.places.runs.mkdir(parents=True, exist_ok=True)
        began, trials = time.monotonic(), self._trials()
        try:
            with stop.postponed():
                more = True
                while (more or self._going) and not (stop() or self._used_up(began)):
                    while more and len(self._going) < self.limits.jobs:
                        if (going := next(trials, None)) is None:
                            more = False
                        else:
                            self._going.append(going)
                    self._look()
                    time.sleep(_POLL_S)
                self._stop_all()
        finally:
            for left in self._going:  # only where something went wrong here, or it was insisted upon
                if left.started is not None:
                    left.started.kill()

    def _used_up(self, began: float) -> bool:
        return self.limits.total_s is not None and time.monotonic() - began >= self.limits.total_s

    def _trials(self) -> Iterator[_Going]:
        """First those that were cut off, then new ones."""
        optuna = optuna_module()
        for cut in self.study.get_trials(deepcopy=False, states=(optuna.trial.TrialState.RUNNING,)):
            yield self._begun(optuna.trial.Trial(self.study, cut._trial_id), frozenset(cut.intermediate_values))
        waiting = optuna.trial.TrialState.WAITING
        while sum(each.state != waiting for each in self.study.get_trials(deepcopy=False)) < self.limits.trials:
            yield self._begun(self.study.ask())

    def _begun(self, trial: Any, known: frozenset[int] = frozenset()) -> _Going:
        """A trial with its first run; what it drew before it was cut off it draws again."""
        drawn = suggested(self.plan.space, trial)
        trial.set_user_attr("settings", drawn)
        return _Going(trial, drawn, self.plan.run(trial.number, self.plan.search_seeds[0], drawn), known=known)

    # --- while it goes on -------------------------------------------------------------------------------------------

    def _look(self) -> None:
        for going in list(self._going):
            if going.started is None:
                self._start(going)
                continue
            try:
                code = going.started.exit_code()
            except OSError as error:
                self._failed(going, f"could not be started ({error})")
                continue
            self._report(going)
            if code is not None:
                self._ended(going, code)

    def _start(self, going: _Going) -> None:
        """The run that is next; one that another process still saves is waited for."""
        directory = self.places.directory(going.run)
        if in_use(directory):
            return
        if (ended_at(directory) or 0) >= going.run.steps:  # done before the search was cut off
            self._report(going)
            self._run_done(going)
            return
        words = training_words([going.run], [directory])
        try:
            going.started = self.executor.start(words, self.places.log(going.run), going.run.threads)
        except OSError as error:
            self._failed(going, f"could not be started ({error})")

    def _report(self, going: _Going) -> None:
        """Tell the pruner what is new of the learning curve."""
        curve = self._curve(going.run)
        for at, value in enumerate(curve[going.reported :], going.reported + 1):
            step = len(going.finals) * (self.plan.evaluations + 1) + at
            if step not in going.known:
                going.trial.report(mean([*going.finals, value]), step)
        new, going.reported = len(curve) > going.reported, len(curve)
        if new and not going.pruned and going.started is not None and going.trial.should_prune():
            going.pruned = True
            going.started.ask_to_stop()

    def _curve(self, run: PlannedRun) -> list[float]:
        """The evaluations of a run, by the team that it is judged by."""
        figure = _FIGURES[self.plan.measure]
        rows = read_metrics(self.places.directory(run))
        found = [next((row[key] for key in row if _judges(key, figure)), None) for row in rows]
        return [float(value) for value in found if value is not None]

    def _ended(self, going: _Going, code: int) -> None:
        going.started = None
        told = f"{how_it_ended(code)}, see {self.places.log(going.run)}"
        if going.pruned:
            self._tell(going, None, "PRUNED")
        elif code in (ExitCode.DONE, ExitCode.FAILURE) and self._is_done(going.run):
            self._run_done(going)
        elif code == ExitCode.INTERRUPTED:
            return  # stopped from outside: it has saved, and goes on
        elif code < 0 and going.killed < self.limits.retries:
            going.killed += 1
            self.say(f"trial {going.trial.number}: {told}; goes on")
        else:
            self._failed(going, told)

    def _is_done(self, run: PlannedRun) -> bool:
        return (ended_at(self.places.directory(run)) or 0) >= run.steps

    def _run_done(self, going: _Going) -> None:
        """One run of a trial has come to its end: the next one, or the trial's value."""
        curve = self._curve(going.run)
        if not curve:
            log = self.places.log(going.run)
            self._failed(going, f"its run has ended, and no evaluation of it has a {self.plan.measure}, see {log}")
            return
        going.finals.append(curve[-1])
        if len(going.finals) < self.plan.seeds:
            seed = self.plan.search_seeds[len(going.finals)]
            going.run = self.plan.run(going.trial.number, seed, going.drawn)
            going.reported = going.killed = 0
            return
        self._tell(going, mean(going.finals), "COMPLETE")

    def _failed(self, going: _Going, why: str) -> None:
        going.trial.set_user_attr("error", why)
        self._tell(going, None, "FAIL")

    def _tell(self, going: _Going, value: float | None, state: str) -> None:
        self._going.remove(going)
        kind = optuna_module().trial.TrialState[state]
        self.study.tell(going.trial, value, state=kind, skip_if_finished=True)
        came_to = {"PRUNED": "pruned", "FAIL": f"failed ({going.trial.user_attrs.get('error')})"}.get(state)
        drawn = ", ".join(f"{name}={_short(value)}" for name, value in going.drawn.items())
        self.say(f"trial {going.trial.number}: {came_to or f'{value:.4g}'} ({drawn})")

    def _stop_all(self) -> None:
        """Everything that goes on saves and ends; the trials stay open."""
        for going in self._going:
            if going.started is not None:
                going.started.ask_to_stop()
        while any(map(_goes_on, self._going)):
            time.sleep(_POLL_S)
        self._going.clear()


def _goes_on(going: _Going) -> bool:
    """Whether its process does."""
    try:
        return going.started is not None and going.started.exit_code() is None
    except OSError:  # it was never started
        return False


def _judges(key: str, figure: str) -> bool:
    return key.startswith("evaluation/") and key.endswith(f"/{figure}")


def mean(values: list[float]) -> float:
    """Of values, of which there is one."""
    return sum(values) / len(values)


def _short(value: Any) -> str:
    return f"{value:.4g}" if isinstance(value, float) else str(value)
