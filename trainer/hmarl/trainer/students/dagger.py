"""The distillation of a team that knows more than one agent can into one local student per agent.

A round: the students act (in the first one the teacher does), the teacher says at every step what it would have done
there, and the students learn from the rounds that are kept. So they are taught on the states that they reach
themselves, where imitating the teacher's own episodes alone would leave them helpless after their first mistake.

Source: Ross et al. 2011, "A Reduction of Imitation Learning and Structured Prediction to No-Regret Online Learning"
(DAgger, β = 1 in the first round and 0 afterwards).
Differs: the newest rounds are kept instead of all; whole distributions are imitated.
"""

from __future__ import annotations

import logging
import math
from collections import deque
from collections.abc import Mapping
from contextlib import closing
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor

from hmarl.runtime.bundle import StudentsModel
from hmarl.sdk.environments import make
from hmarl.sdk.environments.copies import evaluation_copies
from hmarl.sdk.errors import UsageError
from hmarl.sdk.evaluation.closed_loop import Evaluation, evaluate, unfinished_remark
from hmarl.sdk.team import Team
from hmarl.trainer.contract.algorithm import Algorithm
from hmarl.trainer.contract.local_team import LocalTeam
from hmarl.trainer.contract.teacher import Teacher
from hmarl.trainer.experience.rollout import Collector, Rollout
from hmarl.trainer.records.checkpoint import Checkpoint, Counters, flatten, restore
from hmarl.trainer.records.live_progress import LiveProgress
from hmarl.trainer.records.problems import DivergedError, storing
from hmarl.trainer.records.recorder import Recorder
from hmarl.trainer.runs.config import RunConfig
from hmarl.trainer.runs.lock import RunLock
from hmarl.trainer.runs.memory import keep_freed_memory
from hmarl.trainer.runs.seeds import EVALUATION_SEED, derived_seeds
from hmarl.trainer.students.demonstrations import Demonstrations, Demonstrator
from hmarl.trainer.students.kept import KeptDistillation
from hmarl.trainer.students.learner import Learner
from hmarl.trainer.students.report import measure
from hmarl.trainer.students.settings import DistillationSettings
from hmarl.trainer.students.student import Students
from hmarl.trainer.students.teams import InformedTeam, TeacherTeam

# The best round is chosen by the episodes of the one, and reported are those of the other.
_CHOICE_SEED, REPORT_SEED = EVALUATION_SEED, EVALUATION_SEED + 1

# Of a round, while the distillation goes on.
_SHOWN = ("return", "teacher_return", "imitation_kl", "action_agreement", "learnt_goal_error")

_log = logging.getLogger(__name__)

Stopped = Literal["teacher reached", "patience", "rounds"]


@dataclass(frozen=True)
class Distilled:
    """What a distillation came to.

    Attributes:
        students: the best round's.
        report: how far they reach.
        evaluation: the summary of their reported episodes.
    """

    students: Students
    report: StudentsModel
    evaluation: dict[str, Any]


class Distillation:
    """Rounds of demonstrating and learning.

    Args:
        algorithm: whose team, as it was trained.
        teacher: of that team.
        environment: name of the one it was trained in.
        arguments: of that environment.
        settings: of the distillation.
        step_limit: steps of an evaluation's episode, as in the run's own evaluations: see ``limit_of``.

    Raises:
        UsageError: the settings do not fit the team.
    """

    def __init__(
        self,
        algorithm: Algorithm,
        teacher: Teacher,
        environment: str,
        arguments: Mapping[str, Any],
        settings: DistillationSettings,
        step_limit: int | None = None,
    ) -> None:
        self.algorithm, self.teacher, self.settings, self._step_limit = algorithm, teacher, settings, step_limit
        self.students = Students(algorithm, teacher.goal_kinds, settings, torch.Generator().manual_seed(settings.seed))
        self.sample = not algorithm.settings.deterministic_evaluation
        self._generator = torch.Generator(algorithm.device).manual_seed(settings.seed)
        chunks, length = settings.chunks(algorithm.spec)
        self._learner = Learner(self.students, settings, chunks, self._generator)
        self._best = [policy.theta.clone() for policy in self.students.policies]
        self._data: deque[Demonstrations] = deque(maxlen=settings.kept_rounds)
        self._counters = Counters()
        # The teacher's return (NaN until it has played), and the rounds since the students' last improvement.
        self._standing = torch.tensor([math.nan, 0.0], dtype=torch.float64)
        # What they earned then: small improvements add up to one.
        self._improved_to = torch.tensor(-math.inf, dtype=torch.float64)
        self._rollout = Rollout(algorithm.spec, chunks * length, settings.environments, algorithm.device)
        self._demonstrator = Demonstrator(algorithm, teacher, self.students, self.sample)
        self._outlasting = 0  # steps of the longest episode of which was said that a round is shorter
        self._environments = [
            make(environment, size, **arguments)
            for size in (
                settings.environments,
                evaluation_copies(environment, settings.evaluation_episodes, settings.environments),
            )
        ]
        self._collector = Collector(self._environments[0], self._rollout, self._seeds(0)[:-1])

    def run(self, kept: KeptDistillation) -> Distilled:
        """Go on until the students reach the teacher's return, no longer improve, or all rounds are done.

        Args:
            kept: where every round is kept, and what is gone on from.

        Raises:
            CheckpointError: what was kept is damaged.
            UsageError: what was kept has rounds of another length.
            DivergedError: the students are no longer finite; the round before is kept.
        """
        self._resume(kept)
        frames = self._rollout.steps * self._rollout.batch_size
        title = f"distillation · {self.algorithm.spec.name}"
        if self._stopped() is None:
            with LiveProgress(title, self.settings.rounds * frames, self._counters.steps, _SHOWN) as progress:
                self._rounds(kept, progress)
        kept.finish()
        for policy, theta in zip(self.students.policies, self._best, strict=True):
            policy.theta.copy_(theta)
        return self._report()

    def close(self) -> None:
        """Free the environments."""
        for environment in self._environments:
            environment.close()

    # --- the rounds -------------------------------------------------------------------------------------------------

    def _rounds(self, kept: KeptDistillation, progress: LiveProgress) -> None:
        with storing("then the same command goes on"):
            recorder = Recorder(kept.folder, self._counters.update, self._counters.steps)
        try:
            if math.isnan(self._teacher_return):
                self._standing[0] = self._play(self._teachers_team(), _CHOICE_SEED).returns.mean()
            while (stopped := self._stopped()) is None:
                metrics = self._round()
                # Before the rest: a line too many is dropped on resuming, one too few would be missing.
                with storing("then the same command goes on"):
                    recorder.write(self._counters.update, self._counters.steps, metrics)
                    recorder.sync()
                kept.save(self._tensors(), self._data[-1], self._counters)
                progress.update(self._counters.steps, metrics)
            progress.say(f"distillation: rounds {self._counters.update}, ended by: {stopped}")
        finally:
            recorder.close()

    def _round(self) -> dict[str, float]:
        """Demonstrate, learn and evaluate; returns metrics."""
        newest = self._demonstrate(1 + self._counters.update, teacher_acts=self._counters.update == 0)
        met = {key: value for key, value in asdict(measure(self.students, newest)).items() if value is not None}
        self._data.append(newest)
        learnt = self._learner.learn(Demonstrations.join(self._data))
        self._check_finite(learnt)
        earned = float(self._play(self._students_team(), _CHOICE_SEED).returns.mean())
        metrics = {
            "return": earned,
            "teacher_return": self._teacher_return,
            "imitation_kl": met.pop("kl"),
            **met,
            **{f"learnt_{name}": value for name, value in learnt.items()},
        }
        self._take_stock(earned)
        return metrics

    def _demonstrate(self, number: int, teacher_acts: bool) -> Demonstrations:
        """Fresh episodes that follow from the settings' seed and ``number`` alone, with the teacher's labels."""
        seeds = self._seeds(number)
        self._demonstrator.prepare(teacher_acts, int(seeds[-1]))
        self._collector.restart(seeds[:-1], self._demonstrator)
        self._collector.collect(self._demonstrator)
        return Demonstrations.of(self._rollout, self.students)

    def _take_stock(self, earned: float) -> None:
        """Keep the best students, and count the rounds without a better return."""
        best = self._counters.best_return
        margin = self.settings.tolerance * abs(self._teacher_return)
        self._standing[1] += 1
        if earned > float(self._improved_to) + margin:
            self._standing[1] = 0
            self._improved_to.fill_(earned)
        if best is None or earned > best:
            best = earned
            self._best = [policy.theta.clone() for policy in self.students.policies]
        frames = self._rollout.steps * self._rollout.batch_size
        update = self._counters.update + 1
        self._counters = Counters(update=update, steps=update * frames, best_return=best)

    def _stopped(self) -> Stopped | None:
        """Why there are no more rounds; None while there are."""
        best = self._counters.best_return
        if best is not None and best >= self._teacher_return:
            return "teacher reached"
        if self._standing[1] >= self.settings.patience:
            return "patience"
        return "rounds" if self._counters.update >= self.settings.rounds else None

    def _check_finite(self, learnt: Mapping[str, float]) -> None:
        """Before the students act: what an environment would make of actions that are no numbers is its own affair."""
        figures = {**learnt, "parameters": float(sum(policy.theta.abs().sum() for policy in self.students.policies))}
        broken = [name for name, value in figures.items() if not math.isfinite(value)]
        if broken:
            kept = "; the rounds before are kept" if self._counters.update else ""
            raise DivergedError(
                f"distillation: '{broken[0]}' is {figures[broken[0]]} in round {self._counters.update + 1}{kept}; try "
                "--restart-students with a smaller distillation.learning_rate"
            )

    @property
    def _teacher_return(self) -> float:
        return float(self._standing[0])

    def _teachers_team(self) -> TeacherTeam:
        return TeacherTeam(self.algorithm, self.teacher, self.sample)

    def _students_team(self) -> Team:
        """As they will be deployed, if they can be."""
        if self.settings.told == "nothing":
            return LocalTeam(self.students, self.sample)
        return InformedTeam(self.algorithm, self.students, self.sample)

    def _play(self, team: Team, seed: int) -> Evaluation:
        episodes = self.settings.evaluation_episodes
        result = evaluate(self._environments[1], team, episodes, seed, step_limit=self._step_limit)
        if remark := unfinished_remark(result, "run.evaluation_step_limit of the run's config.json"):
            _log.warning("%s: %s", team.name, remark)
        self._say_what_rounds_miss(team, int(result.lengths.max()))
        return result

    def _say_what_rounds_miss(self, team: Team, longest: int) -> None:
        """Episodes begin anew with every round: what comes after a round's last step is never demonstrated."""
        steps = self._rollout.steps
        if self.algorithm.spec.declared_horizon is None and longest > max(steps, self._outlasting):
            self._outlasting = longest
            why = ", for the environment declares no horizon" if self.settings.steps is None else ""
            _log.warning(
                "distillation.steps: a round has %d steps%s, and an episode of the %s had %d; what comes after step %d "
                "is never demonstrated. Set distillation.steps=%d or more",
                *(steps, why, team.name, longest, steps, longest),
            )

    def _seeds(self, number: int) -> Any:
        """[B + 1] int64 of one round: of the environments, and of the action noise."""
        return derived_seeds(self.settings.seed, number, self.settings.environments + 1)

    # --- what a round leaves ----------------------------------------------------------------------------------------

    def _components(self) -> dict[str, Any]:
        parts: dict[str, Any] = {"standing": self._standing, "improved_to": self._improved_to}
        for g, (policy, optimiser) in enumerate(zip(self.students.policies, self._learner.optimisers, strict=True)):
            parts |= {f"students.{g}": policy.theta, f"best.{g}": self._best[g], f"optimisers.{g}": optimiser}
        return parts

    def _tensors(self) -> dict[str, Tensor]:
        """Everything but the data that determines the rest."""
        return flatten(self._components()) | {"generator": self._generator.get_state()}

    def _resume(self, kept: KeptDistillation) -> None:
        """Go on from what was kept, if anything was."""
        found = kept.load()
        if found is not None:
            state, data = found
            if data and len(data[0].begins) != self._rollout.steps:
                raise UsageError(
                    f"{kept.folder}: got rounds of {len(data[0].begins)} steps, expected {self._rollout.steps} (an "
                    "earlier version cut them at a guessed horizon); --restart-students discards them and distils anew"
                )
            tensors = dict(state.tensors)
            best = state.counters.best_return
            if "improved_to" not in tensors:  # an earlier version compared with the best return
                tensors["improved_to"] = torch.tensor(-math.inf if best is None else best, dtype=torch.float64)
            restore(self._components(), tensors)
            self._generator.set_state(state.tensors["generator"].cpu())
            self._counters = state.counters
            self._data.extend(data)

    # --- what it came to --------------------------------------------------------------------------------------------

    def _report(self) -> Distilled:
        """On episodes by which no round was chosen."""
        stopped = self._stopped()
        assert stopped is not None
        teachers, students = (self._play(team, REPORT_SEED) for team in (self._teachers_team(), self._students_team()))
        expected, earned = float(teachers.returns.mean()), float(students.returns.mean())
        met = asdict(measure(self.students, self._demonstrate(0, teacher_acts=False)))
        report = StudentsModel(
            teacher=self.teacher.name,
            rounds=self._counters.update,
            steps=self._counters.steps,
            stopped=stopped,
            episodes=students.episodes,
            seed=REPORT_SEED,
            sampled=self.sample,
            teacher_return=expected,
            students_return=earned,
            gap=expected - earned,
            ratio=earned / expected if expected > 0 else None,
            settings=self.settings.model_dump(mode="json"),
            **met,
        )
        return Distilled(self.students, report, students.summary())


def distil_run(
    run: Path,
    algorithm: Algorithm,
    config: RunConfig,
    checkpoint: Checkpoint,
    settings: DistillationSettings,
    *,
    restart: bool = False,
) -> Distilled:
    """Distil the team of a run's checkpoint, going on where RUN/students (or RUN/students-told-*) have come to.

    Args:
        run: run directory.
        algorithm: with the checkpoint's parameters.
        config: of the run.
        checkpoint: that is distilled.
        settings: of the distillation.
        restart: discard students that were distilled before.

    Raises:
        UsageError: the algorithm has no teacher to distil, RUN/students were distilled otherwise, or another process
            trains or distils the run.
        CheckpointError: RUN/students are damaged.
        DivergedError: the distillation diverged.
    """
    teacher = algorithm.teacher()
    if teacher is None:
        raise UsageError(
            f"--distil: no part of {config.algorithm} knows more than its agents do: there is nothing to distil; "
            "without --distil its local policies are exported"
        )
    origin = {"checkpoint": checkpoint.path.name, "checkpoint_sha256": checkpoint.sha256}
    origin |= {f"distillation.{key}": value for key, value in settings.model_dump(mode="json").items()}
    kept = KeptDistillation(run / settings.folder, origin, settings.kept_rounds, restart)
    threads, of_run = torch.get_num_threads(), config.run_settings()
    name, arguments, step_limit = config.environment, config.environment_arguments, of_run.evaluation_step_limit
    torch.set_num_threads(of_run.threads)
    if of_run.keep_freed_memory:
        keep_freed_memory()
    try:
        with (
            RunLock(run),
            closing(Distillation(algorithm, teacher, name, arguments, settings, step_limit)) as distillation,
        ):
            return distillation.run(kept)
    finally:
        torch.set_num_threads(threads)
