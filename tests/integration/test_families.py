"""Every algorithm × environment family: a run trains, resumes bit for bit, exports, and is served as torch acts; what
acts centrally refuses to be exported instead, or is exported as students.

Both axes are the registries: a new algorithm or family has its cells by itself. ``python scripts/families.py`` writes
docs/results/families.md from a whole run of this file.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Iterator
from contextlib import ExitStack, closing, contextmanager, nullcontext
from itertools import cycle, islice
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from gymnasium import spaces
from torch import Tensor

from family_tasks import TASKS
from hmarl.runtime.bundle import Bundle, load_bundle
from hmarl.runtime.server import AgentServer
from hmarl.runtime.session import Policy
from hmarl.runtime.settings import ServerSettings
from hmarl.sdk.environment import Observation, StepResult, VectorEnvironment, as_array
from hmarl.sdk.environments import BUILT_IN_FAMILIES, make
from hmarl.sdk.environments.faulty import FaultyEnvironment
from hmarl.sdk.evaluation.closed_loop import evaluate
from hmarl.sdk.evaluation.deployed_teams import BundleTeam, FleetTeam
from hmarl.sdk.spaces import EnvironmentSpec
from hmarl.sdk.team import RandomTeam, Team
from hmarl.trainer.algorithms import ALGORITHMS
from hmarl.trainer.export.policy_source import load_team
from hmarl.trainer.records.checkpoint import find_checkpoint, flatten
from hmarl.trainer.runs.building import build_algorithm
from hmarl.trainer.runs.config import RunConfig
from training_runs import command_line, tiny_config

pytestmark = pytest.mark.usefixtures("single_thread", "without_pictures")

BATCH, UPDATES, HALF_WAY = 2, 4, 2
FRAMES = BATCH * 14  # of one update: checkpoints fall into the middle of episodes
RUN = {
    "environments": BATCH,
    "rollout_length": FRAMES // BATCH,
    "steps": UPDATES * FRAMES,
    "checkpoint_interval": HALF_WAY,
    "evaluation_episodes": BATCH,
}
GUIDED = {"embedding_size": 8, "epochs": 2, "minibatches": 2}
# Small networks, and what an algorithm remembers of past rollouts, which checkpoints must hold.
SETTINGS: dict[str, dict[str, Any]] = {
    "ctds": GUIDED,
    "guided-hcpo": {**GUIDED, "conductor_hidden_sizes": (8,), "instructions": 3},
    "hasac": {"replay_capacity": 40, "batch_transitions": 8, "gradient_steps": 2},
    "hcpo": {"conductor_hidden_sizes": (8,), "instructions": 3, "replay_rollouts": 2},
    "himpo": {**GUIDED, "goal_size": 3, "goal_interval": 3},
    "magpo": GUIDED,
    "mat": GUIDED,
    "maven": {"replay_capacity": 12, "latent_hidden_sizes": (8,), "mixing_hidden_sizes": (8,), "gradient_steps": 2},
    "qmix": {"replay_capacity": 12, "mixing_hidden_sizes": (8,), "gradient_steps": 2},
    "sable": GUIDED,
    "vdn": {"replay_capacity": 12, "gradient_steps": 2},
}
# Students of what acts centrally.
DISTILLATION = [
    word
    for key, value in {
        "environments": BATCH,
        "steps": 8,
        "rounds": 2,
        "epochs": 1,
        "minibatches": 1,
        "memory_size": 8,
        "hidden_sizes": "[8]",
        "decision_sizes": "[8]",
        "evaluation_episodes": BATCH,
    }.items()
    for word in ("--set", f"distillation.{key}={value}")
]
Call = Callable[..., tuple[int, str, str]]


@pytest.fixture(scope="module", autouse=True)
def _compile_quickly() -> Iterator[None]:
    """JAX compiles quickly rather than well: what it compiles here runs for a few steps."""
    try:
        import jax  # noqa: PLC0415 - the extra smax may be missing
    except ImportError:
        yield
        return
    before = jax.config.read("jax_disable_most_optimizations")
    jax.config.update("jax_disable_most_optimizations", True)
    yield
    jax.config.update("jax_disable_most_optimizations", before)


def diagonal() -> set[tuple[str, str]]:
    """Cells in which every algorithm and every family is met once, and the longer of the two lists no more often."""
    algorithms, families = list(ALGORITHMS), list(BUILT_IN_FAMILIES)
    return set(islice(zip(cycle(algorithms), cycle(families), strict=False), max(len(algorithms), len(families))))


DIAGONAL = diagonal()
CELLS = [
    pytest.param(algorithm, family, marks=() if (algorithm, family) in DIAGONAL else pytest.mark.slow)
    for family in BUILT_IN_FAMILIES
    for algorithm in ALGORITHMS
]


@pytest.mark.parametrize(("algorithm", "family"), CELLS)
def test_trains_resumes_exports_and_serves(
    algorithm: str, family: str, call: Call, tmp_path: Path, record_property: Callable[[str, object], None]
) -> None:
    record_property("algorithm", algorithm)
    record_property("family", family)
    assert family in TASKS, f"the family '{family}' has no small task here: add one to TASKS in family_tasks.py"
    pytest.importorskip(BUILT_IN_FAMILIES[family])
    task = TASKS[family]
    arguments, result = task.arguments, "✓"
    record_property("task", " ".join([task.environment, *_words(arguments)]))
    if ALGORITHMS[algorithm].discrete_only and not _is_discrete(_spec(task.environment, arguments)):
        _assert_refused(algorithm, task.environment, arguments, call, tmp_path)
        if not task.discrete:
            record_property("result", "refused: needs Discrete actions")
            return
        arguments, result = {**arguments, **task.discrete}, f"✓ with {' '.join(_words(task.discrete))}"
    run = tmp_path / "run"
    _train(algorithm, task.environment, arguments, run, call)
    _assert_resumes(run, tmp_path / "resumed", call)
    if not ALGORITHMS[algorithm].exportable:
        _assert_plays_centrally(run)
        if ALGORITHMS[algorithm].distils:
            _assert_students_play(_export(run, tmp_path / "bundle", call, *DISTILLATION))
            record_property("result", f"{result} (students)")
        else:
            _assert_export_refused(run, call, tmp_path / "bundle")
            record_property("result", f"{result} (central)")
        return
    bundle = _export(run, tmp_path / "bundle", call, "--no-redistil")  # it is compared with the run
    _assert_served_as_torch_acts(run, bundle, over_grpc=(algorithm, family) in DIAGONAL)
    record_property("result", result + (" (gRPC)" if (algorithm, family) in DIAGONAL else ""))


def _words(arguments: dict[str, Any]) -> list[str]:
    return [f"{key}={value if isinstance(value, str) else json.dumps(value)}" for key, value in arguments.items()]


def _spec(environment: str, arguments: dict[str, Any]) -> EnvironmentSpec:
    made = make(environment, 1, **arguments)
    made.close()
    return made.spec


def _is_discrete(spec: EnvironmentSpec) -> bool:
    return all(isinstance(agent.action_space, spaces.Discrete) for agent in spec.agents)


def _start(algorithm: str, environment: str, arguments: dict[str, Any], run: Path, call: Call) -> tuple[int, str]:
    """``hmarl-train``: exit code and what it said."""
    config = tiny_config(algorithm, environment, SETTINGS.get(algorithm), RUN, arguments)
    code, _, said = call("train", *command_line(config, run))
    return code, said


def _assert_refused(algorithm: str, environment: str, arguments: dict[str, Any], call: Call, folder: Path) -> None:
    code, said = _start(algorithm, environment, arguments, folder / "refused", call)
    assert code == 2, said
    assert f": {algorithm}: agent '" in said
    assert "expected Discrete" in said
    assert not (folder / "refused").exists(), "a run that was refused must leave nothing behind"


def _train(algorithm: str, environment: str, arguments: dict[str, Any], run: Path, call: Call) -> None:
    code, said = _start(algorithm, environment, arguments, run, call)
    assert code == 0, said
    rows = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    assert [row["update"] for row in rows] == list(range(1, UPDATES + 1))
    assert not any("rolled_back" in row for row in rows), "an update diverged"
    last = find_checkpoint(run, "last").tensors
    replays = any(key.startswith("replay") for key in SETTINGS.get(algorithm, {}))
    assert any(name.startswith("experience.") for name in last) == replays
    untrained = _untrained(run)
    learnt = {name for name, tensor in untrained.items() if not tensor.equal(last[f"algorithm.{name}"])}
    local = {name for name in untrained if name.startswith("policies.")}
    assert bool(local) == ALGORITHMS[algorithm].exportable
    assert bool(local & learnt) == bool(local), "no policy has learnt"
    assert "guider" not in untrained or "guider" in learnt, "the guider has not learnt"


def _untrained(run: Path) -> dict[str, Tensor]:
    """The tensors that the run began with."""
    config = RunConfig.read(run)
    environment = make(config.environment, 1, **config.environment_arguments)
    environment.close()
    return flatten(build_algorithm(config, environment).components())


def _assert_resumes(run: Path, resumed: Path, call: Call) -> None:
    """From the checkpoint half-way, in a directory of its own, to the very same tensors and counters."""
    middle, end = (f"step-{update * FRAMES:012d}" for update in (HALF_WAY, UPDATES))
    (resumed / "checkpoints").mkdir(parents=True)
    shutil.copy(run / "config.json", resumed)
    for suffix in (".json", ".safetensors"):
        shutil.copy((run / "checkpoints" / middle).with_suffix(suffix), resumed / "checkpoints")
    code, _, said = call("train", "--resume", str(resumed))
    assert code == 0, said
    assert f"at {HALF_WAY * FRAMES} of {UPDATES * FRAMES} steps" in said
    expected, got = (find_checkpoint(folder, "last") for folder in (run, resumed))
    assert got.path.stem == expected.path.stem == end
    different = [name for name, tensor in expected.tensors.items() if not _equal(tensor, got.tensors.get(name))]
    assert not different, f"the resumed run ends with other tensors: {different}"
    assert (got.sha256, got.counters) == (expected.sha256, expected.counters)


def _equal(first: Any, second: Any) -> bool:
    return second is not None and bool(first.equal(second))


def _assert_plays_centrally(run: Path) -> None:
    """The whole team plays whole episodes."""
    make_team, environment_name, arguments = load_team(run, checkpoint="last", sample=True)
    environment = make(environment_name, BATCH, **arguments)
    team = make_team(environment.spec)
    assert team.name != "local"
    assert np.isfinite(evaluate(environment, team, BATCH, seed=7).returns).all()
    environment.close()


def _assert_export_refused(run: Path, call: Call, target: Path) -> None:
    """Nothing is written."""
    before = {path: path.stat().st_mtime_ns for path in run.rglob("*")}
    code, output, said = call("export", str(run), "--out", str(target), "--checkpoint", "last", "--json")
    assert (code, output) == (2, "")
    assert "acts for the whole team at once" in said
    assert not target.exists()
    assert {path: path.stat().st_mtime_ns for path in run.rglob("*")} == before


def _assert_students_play(bundle: Bundle) -> None:
    """Whole episodes, by agents that hear no other; the bundle says how far they are from their teacher."""
    report = bundle.manifest.students
    assert report is not None
    assert report.teacher != "local"
    about = bundle.manifest.environment
    environment = make(about.name, BATCH, **about.arguments)
    assert np.isfinite(evaluate(environment, BundleTeam(bundle, environment.spec), BATCH, seed=7).returns).all()
    environment.close()


def _export(run: Path, target: Path, call: Call, *options: str) -> Bundle:
    """The command refuses graphs that do not compute what torch computes."""
    code, output, said = call("export", str(run), "--out", str(target), "--checkpoint", "last", "--json", *options)
    assert code == 0, said
    bundle, parity = load_bundle(target), json.loads(output.splitlines()[-1])["parity"]
    assert parity["action_mismatches"] == 0
    assert parity["samples"] > 1000 * len(bundle.manifest.agents)
    return bundle


class HeldAgainst:
    """A served team whose actions are compared with the trainer's own, on the very observations that it meets."""

    def __init__(self, served: Team, reference: Team, spec: EnvironmentSpec) -> None:
        self.name = served.name
        self.compared = 0
        self._served, self._reference, self._spec = served, reference, spec

    def reset(self, seeds: np.ndarray) -> None:
        self._served.reset(seeds)
        self._reference.reset(seeds)

    def act(self, observation: Observation, running: np.ndarray) -> tuple[np.ndarray, ...]:
        got, expected = (team.act(observation, running) for team in (self._served, self._reference))
        for group, ours, theirs in zip(self._spec.groups, got, expected, strict=True):
            acting = running[:, None] & observation.active[:, list(group.agents)]
            np.testing.assert_allclose(ours[acting], theirs[acting], rtol=1e-6, atol=1e-5)
            self.compared += int(acting.sum())
        return got

    def close(self) -> None:
        self._served.close()


def _assert_served_as_torch_acts(run: Path, bundle: Bundle, over_grpc: bool) -> None:
    """Whole episodes, played by the bundle in this process or over gRPC, deterministically and with drawn actions."""
    about = bundle.manifest.environment
    environment = make(about.name, BATCH, **about.arguments)
    spec = environment.spec
    with _endpoints(bundle) if over_grpc else nullcontext({}) as endpoints:
        for sample in (False, True):
            teams: list[Team] = [BundleTeam(bundle, spec, sample=sample)]
            teams += [FleetTeam(endpoints, spec, sample=sample)] if endpoints else []
            for served in teams:
                choice = bundle.manifest.agents[0].instruction_choice
                make_team, *_ = load_team(run, checkpoint="last", sample=sample, instruction_choice=choice)
                team = HeldAgainst(served, make_team(spec), spec)
                played = evaluate(environment, team, BATCH, seed=7)
                team.close()
                assert np.isfinite(played.returns).all()
                assert team.compared > played.lengths.sum() / 2, "hardly an action was compared"
    environment.close()


@contextmanager
def _endpoints(bundle: Bundle) -> Iterator[dict[str, str]]:
    """Every agent behind a gRPC server of its own: their addresses."""
    with ExitStack() as servers:
        addresses = {}
        for agent in bundle.manifest.agents:
            server = AgentServer(ServerSettings("127.0.0.1:0"))
            servers.callback(server.stop, 0.0)
            server.serve(Policy(bundle, agent.id))
            addresses[agent.id] = server.address
        yield addresses


# --- faults on purpose -----------------------------------------------------------------------------------------------

FAULTS = "delay=0..2,loss=0.2,noise=0.1,freeze=0.1:2,action_delay=0..1,action_loss=0.1,out=0.05:3,fallback=hold:2"


@pytest.mark.parametrize("family", TASKS)
def test_faults_leave_the_game_itself_alone_and_are_saved_with_it(family: str) -> None:
    pytest.importorskip(BUILT_IN_FAMILIES[family])
    task, seeds, steps = TASKS[family], np.array([5, 6]), 20
    faulty = make(task.environment, BATCH, faults=FAULTS, **task.arguments)
    assert isinstance(faulty, FaultyEnvironment)
    with closing(faulty):
        spied = _Spy(faulty.inner)
        faulty.inner = spied
        played = _play(faulty, faulty.reset(seeds), seed=1, steps=steps)
        saved = faulty.get_state()
        following = _play(faulty, played[-1].observation, seed=2, steps=steps)
        if saved is not None:
            again = _play(faulty, faulty.set_state(saved), seed=2, steps=steps)
            _assert_same(again, following)
        spied.inner.reset(seeds)
        bare = [spied.inner.step(actions) for actions in spied.actions[:steps]]
    for one, other in zip(played, bare, strict=True):
        for name in ("rewards", "terminated", "truncated"):
            np.testing.assert_array_equal(as_array(getattr(one, name)), as_array(getattr(other, name)))
        np.testing.assert_array_equal(one.observation.state, as_array(other.observation.state))
        np.testing.assert_array_equal(one.observation.active, as_array(other.observation.active))
    shown = [
        (one.observation.observations[0], as_array(other.observation.observations[0]))
        for one, other in zip(played, bare, strict=True)
    ]
    assert any((one != other).any() for one, other in shown), "nothing went wrong"


class _Spy:
    """An environment that notes the actions that it is given."""

    def __init__(self, inner: VectorEnvironment) -> None:
        self.inner, self.actions = inner, []

    def step(self, actions: tuple[np.ndarray, ...]) -> StepResult:
        self.actions.append(actions)
        return self.inner.step(actions)

    def __getattr__(self, name: str) -> Any:
        return getattr(self.inner, name)


def _play(environment: VectorEnvironment, observation: Observation, seed: int, steps: int) -> list[StepResult]:
    team, results = RandomTeam(environment.spec), []
    team.reset(np.array([seed]))
    for _ in range(steps):
        results.append(environment.step(team.act(observation, np.ones(BATCH, np.bool_))))
        observation = results[-1].observation
    return results


def _assert_same(ones: list[StepResult], others: list[StepResult]) -> None:
    for one, other in zip(ones, others, strict=True):
        for first, second in zip(one.observation.observations, other.observation.observations, strict=True):
            np.testing.assert_array_equal(first, second)
        np.testing.assert_array_equal(as_array(one.rewards), as_array(other.rewards))


@pytest.mark.parametrize(("algorithm", "family"), [("happo", "mpe"), ("hcpo", "lbfws")])
def test_training_with_faults_resumes_bit_for_bit(algorithm: str, family: str, call: Call, tmp_path: Path) -> None:
    task, run = TASKS[family], tmp_path / "run"
    arguments = {**task.arguments, "faults": FAULTS, "faults.delay": 1}
    _train(algorithm, task.environment, arguments, run, call)
    evaluations = [json.loads(path.read_text()) for path in (run / "eval").glob("*.json")]
    assert {each["faults"] for details in evaluations for each in details.values()} == {FAULTS.replace("0..2", "1", 1)}
    _assert_resumes(run, tmp_path / "resumed", call)


def test_the_quick_cells_meet_every_algorithm_and_every_family() -> None:
    assert {algorithm for algorithm, _ in DIAGONAL} == set(ALGORITHMS)
    assert {family for _, family in DIAGONAL} == set(BUILT_IN_FAMILIES)
    assert len(DIAGONAL) == max(len(ALGORITHMS), len(BUILT_IN_FAMILIES))
