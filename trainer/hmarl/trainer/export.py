"""Export: one ONNX graph per agent, or per group of interchangeable agents, with the whole deployment contract inside,
checked against torch, in one bundle.
"""

from __future__ import annotations

import io
import logging
import re
import tempfile
import warnings
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from importlib.metadata import version
from itertools import chain, count
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
import torch
from gymnasium.spaces import MultiDiscrete
from torch import Tensor

from hmarl.runtime.bundle import (
    SCHEMA_VERSION,
    AgentModel,
    Bundle,
    BundleError,
    EnvironmentModel,
    ParityModel,
    check_target,
    to_json,
    to_plain,
    write_bundle,
)
from hmarl.runtime.session import Policy, compare_outputs
from hmarl.sdk.copies import few_copies
from hmarl.sdk.environments import make
from hmarl.sdk.evaluation import as_numpy, episode_seeds
from hmarl.sdk.files import check_writable
from hmarl.sdk.spaces import EnvironmentSpec
from hmarl.sdk.team import RandomTeam
from hmarl.trainer.algorithm import Algorithm
from hmarl.trainer.algorithms import find_algorithm
from hmarl.trainer.checkpoint import Checkpoint, CheckpointError, find_checkpoint, read_object, restore
from hmarl.trainer.config import validate
from hmarl.trainer.deployable import DeployablePolicy
from hmarl.trainer.instructions import random_instructions
from hmarl.trainer.model_card import model_card
from hmarl.trainer.recorder import evaluation_path, read_evaluation
from hmarl.trainer.students.dagger import Distilled, distil_run
from hmarl.trainer.students.settings import DistillationSettings
from hmarl.trainer.team import LocalPolicies
from hmarl.trainer.training import RunConfig, build_algorithm

OPSET = 18
# The largest allowed difference in logits and means, per execution provider; GPUs sum in another order.
TOLERANCES = {"cpu": 1e-5, "cuda": 1e-4, "tensorrt": 1e-3}
_BATCH_SIZES = (1, 2, 7, 64, 256)
_RECORDED_SAMPLES = 64


class ParityError(BundleError):
    """ONNX Runtime does not compute what torch computes; nothing was written."""


@dataclass
class Parity:
    """What the comparison of one or more agents found.

    Attributes:
        max_error: largest difference of logits, means and states.
        near_ties: rows whose action or instruction differs because its two best scores are all but equal.
        samples: compared rows.
        problems: differences beyond the tolerance.
    """

    max_error: float = 0.0
    near_ties: int = 0
    samples: int = 0
    problems: list[str] = field(default_factory=list)


@dataclass(frozen=True)
class Graph:
    """One ONNX file to be.

    Attributes:
        file: its name in the bundle.
        module: what it computes.
        agents: who act by it, as positions in ``EnvironmentSpec.agents``.
        entries: what the manifest says of each of them.
    """

    file: str
    module: DeployablePolicy
    agents: tuple[int, ...]
    entries: tuple[AgentModel, ...]


@dataclass(frozen=True)
class LoadedRun:
    """A run read back from its directory.

    Attributes:
        summary: of the whole run, empty where it has not ended.
        evaluation: of the checkpoint, empty where it was not evaluated.
    """

    config: RunConfig
    checkpoint: Checkpoint
    algorithm: Algorithm
    spec: EnvironmentSpec
    summary: dict[str, Any] = field(default_factory=dict)
    evaluation: dict[str, dict[str, Any]] = field(default_factory=dict)
    distilled: Distilled | None = None

    @property
    def policies(self) -> LocalPolicies:
        """What is exported: the students where there are any, else the algorithm's own local policies."""
        return self.distilled.students if self.distilled else self.algorithm


def load_run(run: Path, checkpoint: str = "best") -> LoadedRun:
    """Read a run's config and one of its checkpoints.

    Raises:
        CheckpointError: not a run directory, or no such good checkpoint.
    """
    config = RunConfig.read(run)
    found = find_checkpoint(run, checkpoint)
    on_cpu = config.model_copy(update={"run": {**config.run, "device": "cpu"}})
    environment = make(config.environment, 1, **config.environment_arguments)
    try:
        algorithm = build_algorithm(on_cpu, environment)
    finally:
        environment.close()
    restore({"algorithm": algorithm.components()}, found.tensors)
    summary = _if_there(run / "summary.json", read_object)
    evaluation = _if_there(evaluation_path(run, found.counters.steps), read_evaluation)
    return LoadedRun(config, found, algorithm, environment.spec, summary, evaluation)


def _if_there(path: Path, read: Callable[[Path], dict[str, Any]]) -> dict[str, Any]:
    try:
        return read(path) if path.exists() else {}
    except CheckpointError as error:
        raise CheckpointError(f"{error}; it can be deleted: the bundle then lacks what it says") from error


def export_run(
    run: Path,
    target: Path,
    checkpoint: str = "best",
    name: str | None = None,
    distillation: DistillationSettings | None = None,
    restart_students: bool = False,
) -> Bundle:
    """Export a run's agents into a bundle.

    Args:
        run: run directory.
        target: bundle directory, or a path ending in ``.zip``.
        checkpoint: ``best``, ``last`` or a number of steps.
        name: the bundle's name, the run directory's by default.
        distillation: export students of the algorithm's teacher, distilled like this in RUN/students; None does so for
            algorithms that always distil, with the defaults.
        restart_students: discard students that were distilled before.

    Raises:
        UsageError: the run's algorithm acts for the whole team at once and is not to be distilled, or has no teacher to
            distil, or RUN/students were distilled otherwise; nothing is written.
        DivergedError: the distillation diverged.
        ParityError: ONNX Runtime and torch disagree; nothing is written.
        CheckpointError: see ``load_run``.
    """
    config = RunConfig.read(run)
    algorithm = find_algorithm(config.algorithm)
    if distillation is None and algorithm.distils:
        distillation = validate(DistillationSettings, {}, "distillation")
    if distillation is None:
        algorithm.check_exportable(config.settings())
    else:
        distillation.check_deployable()
    check_target(target)  # not after hours of distilling
    check_writable(target.absolute().parent, f"--out {target}")
    loaded = load_run(run, checkpoint)
    if distillation is not None:
        distilled = distil_run(
            run, loaded.algorithm, loaded.config, loaded.checkpoint, distillation, restart=restart_students
        )
        loaded = replace(loaded, distilled=distilled)
    graphs = graphs_of(loaded)
    files = {graph.file: onnx_bytes(graph) for graph in graphs}
    samples = rollout_observations(loaded)
    parity, records = check_all(graphs, files, samples, loaded)
    students = loaded.distilled.report if loaded.distilled else None
    card, plots = model_card(
        run, loaded.config, loaded.checkpoint, loaded.summary, loaded.evaluation, _parity_row(parity),
        name or run.name, students,
    )  # fmt: skip
    manifest = {**_manifest(loaded, graphs, parity, name or run.name), "evaluation": loaded.evaluation}
    if loaded.distilled:
        manifest["students"] = to_plain(loaded.distilled.report)
        manifest["evaluation"] = {**manifest["evaluation"], "students": loaded.distilled.evaluation}
    return write_bundle(target, manifest, {**files, **records, **plots, "README.md": card.encode()})


def graphs_of(loaded: LoadedRun) -> list[Graph]:
    """A run's graphs: one per agent, or per group where its agents are interchangeable."""
    spec, interchangeable = loaded.spec, loaded.policies.interchangeable
    parts: list[tuple[str, tuple[int, ...]]] = [(agent.id, (index,)) for index, agent in enumerate(spec.agents)]
    if interchangeable:
        parts = [(name, group.agents) for name, group in zip(group_names(spec), spec.groups, strict=True)]
    graphs = []
    for name, agents in parts:
        file = f"agents/{name}.onnx"
        modules = [loaded.policies.deployable(agent).eval() for agent in agents]
        entries = tuple(module.describe(file, interchangeable) for module in modules)
        graphs.append(Graph(file, modules[0], agents, entries))
    return graphs


def group_names(spec: EnvironmentSpec) -> list[str]:
    """A name per group: its agents' ids less the numbers at the end; never another group's name or agent."""
    names: list[str] = []
    for group in spec.groups:
        ids = [spec.agents[agent].id for agent in group.agents]
        stems = {re.sub(r"[\W\d_]+$", "", name) for name in ids}
        taken = {"", *names, *spec.agent_ids} - set(ids)
        candidates = chain(stems if len(stems) == 1 else (), map("group_{}".format, count()))
        names.append(next(name for name in candidates if name not in taken))
    return names


def onnx_bytes(graph: Graph) -> bytes:
    """The graph as an ONNX file with a dynamic batch dimension, weights inside."""
    module = graph.module
    arguments = tuple(example_inputs(module, 2, np.random.default_rng(0)).values())
    batch = torch.export.Dim("batch", min=1, max=2**20)
    with warnings.catch_warnings(), _quiet():
        warnings.simplefilter("ignore")
        program = torch.onnx.export(
            module,
            arguments,
            dynamo=True,
            external_data=False,
            input_names=module.input_names,
            output_names=module.output_names,
            dynamic_shapes=(tuple({0: batch} for _ in arguments),),
            opset_version=OPSET,
            optimize=True,
            verbose=False,
        )
    assert program is not None
    model = program.model_proto
    metadata = {
        "hmarl_version": version("hmarl"),
        "agent": ",".join(entry.id for entry in graph.entries),
        "manifest": to_json(graph.entries[0]),
    }
    onnx.helper.set_model_props(model, metadata)
    for node in model.graph.node:
        node.ClearField("metadata_props")
        node.ClearField("doc_string")
    for value in [*model.graph.value_info, *model.graph.input, *model.graph.output]:
        value.ClearField("metadata_props")
    onnx.checker.check_model(model, full_check=True)
    buffer = io.BytesIO()
    onnx.save(model, buffer)
    return buffer.getvalue()


class _quiet:
    """Silences the exporter's progress lines; its errors are exceptions."""

    def __enter__(self) -> None:
        logging.disable(logging.WARNING)

    def __exit__(self, *_: object) -> None:
        logging.disable(logging.NOTSET)


def example_inputs(module: DeployablePolicy, rows: int, generator: np.random.Generator) -> dict[str, Tensor]:
    """Random non-zero inputs, legal masks, and noise for half of the rows (the others are deterministic)."""
    entry = module.describe("")
    scale = 3.0 / module.scale.numpy()
    observation = module.shift.numpy() + generator.normal(size=(rows, entry.observation.shape[0])) * scale
    inputs = {"observation": torch.from_numpy(observation.astype(np.float32))}
    if entry.action_mask is not None:
        inputs["action_mask"] = torch.from_numpy(_random_masks(module, rows, generator))
    for state in entry.states:
        if state.input == "memory":
            held = generator.uniform(-1, 1, (rows, *state.shape))
        else:
            remaining = generator.integers(module.interval or 2, size=rows)
            instruction = random_instructions(module.instruction_head, rows, generator).numpy().reshape(rows, -1)
            held = np.concatenate([instruction, remaining[:, None]], axis=1)
        inputs[state.input] = torch.from_numpy(held.astype(np.float32))
    for noise in entry.noises:
        shape = (rows, *noise.shape)
        drawn = (
            generator.uniform(1e-6, 1 - 1e-6, shape)
            if noise.distribution == "uniform"
            else generator.normal(size=shape)
        )
        drawn[generator.random(rows) < 0.5] = 0.0
        inputs[noise.name] = torch.from_numpy(drawn.astype(np.float32))
    return inputs


def _random_masks(module: DeployablePolicy, rows: int, generator: np.random.Generator) -> npt.NDArray[np.bool_]:
    mask = generator.random((rows, module.agent.mask_size)) < 0.6
    start = 0
    space = module.agent.action_space
    for size in space.nvec if isinstance(space, MultiDiscrete) else [module.agent.mask_size]:
        mask[np.arange(rows), start + generator.integers(size, size=rows)] = True
        start += int(size)
    return mask


def rollout_observations(loaded: LoadedRun, steps: int = 64, batch: int = 16) -> list[dict[str, Tensor]]:
    """Real inputs: per agent, what it saw (and its masks) while a random team played, [M, ...].

    M is ``steps * batch``, in fewer environments where each costs much.
    """
    rows, batch = steps * batch, few_copies(loaded.config.environment, batch)
    environment = make(loaded.config.environment, batch, **loaded.config.environment_arguments)
    team = RandomTeam(environment.spec)
    seeds = episode_seeds(17, batch)
    team.reset(seeds)
    observation = as_numpy(environment.reset(seeds))
    seen: list[list[npt.NDArray[Any]]] = [[] for _ in environment.spec.agents]
    masks: list[list[npt.NDArray[Any]]] = [[] for _ in environment.spec.agents]
    for _ in range(-(-rows // batch)):
        for g, group in enumerate(environment.spec.groups):
            for member, agent in enumerate(group.agents):
                seen[agent].append(np.array(observation.observations[g][:, member]))
                mask = observation.action_masks[g]
                if mask is not None:
                    masks[agent].append(np.array(mask[:, member]))
        actions = team.act(observation, np.ones(batch, dtype=np.bool_))
        observation = as_numpy(environment.step(actions).observation)
    environment.close()
    samples = []
    for agent_seen, agent_masks in zip(seen, masks, strict=True):
        row = {"observation": torch.from_numpy(np.concatenate(agent_seen).astype(np.float32))}
        if agent_masks:
            row["action_mask"] = torch.from_numpy(np.concatenate(agent_masks))
        samples.append(row)
    return samples


def check_all(
    graphs: list[Graph], files: dict[str, bytes], samples: list[dict[str, Tensor]], loaded: LoadedRun
) -> tuple[Parity, dict[str, bytes]]:
    """Compare every graph, run by the runtime itself, with torch, also on what each of its agents saw.

    Returns:
        What was found, and recorded inputs with torch's outputs (``parity/*.npy``), with which ``hmarl-verify``
        repeats the check.

    Raises:
        ParityError: beyond the tolerance.
    """
    total = Parity()
    records: dict[str, bytes] = {}
    with tempfile.TemporaryDirectory() as folder:
        draft = write_bundle(Path(folder) / "draft", _manifest(loaded, graphs, total, "draft"), files)
        for graph in graphs:
            module, real = graph.module, _interleaved([samples[agent] for agent in graph.agents])
            policy = Policy(draft, graph.entries[0].id)
            generator = np.random.default_rng(len(records) + 1)
            for rows in _BATCH_SIZES:
                compare(module, policy, example_inputs(module, rows, generator), total)
            inputs = {**example_inputs(module, len(real["observation"]), generator), **real}
            compare(module, policy, inputs, total)
            records |= _record(graph, {name: value[:_RECORDED_SAMPLES] for name, value in inputs.items()})
    if total.problems:
        raise ParityError(
            f"export: ONNX Runtime differs from torch in {len(total.problems)} ways, nothing was written; the first: "
            f"{total.problems[0]}"
        )
    return total, records


def _interleaved(samples: list[dict[str, Tensor]]) -> dict[str, Tensor]:
    """What several agents saw, [M, ...] each, as one batch in which they take turns."""
    return {name: torch.stack([each[name] for each in samples], dim=1).flatten(0, 1) for name in samples[0]}


@torch.no_grad()
def compare(module: DeployablePolicy, policy: Policy, inputs: dict[str, Tensor], found: Parity) -> None:
    """Add one batch's differences between torch and ONNX Runtime to ``found``."""
    outputs = dict(zip(module.output_names, module(*inputs.values()), strict=True))
    expected = {name: value.numpy() for name, value in outputs.items()}
    feeds = {name: value.numpy() for name, value in inputs.items()}
    result = compare_outputs(policy.agent, feeds, policy.run_batch(feeds), expected, TOLERANCES["cpu"])
    found.max_error = max(found.max_error, result.error)
    found.near_ties += result.near_ties
    found.samples += len(feeds["observation"])
    found.problems += [f"{policy.agent.file}: {problem}" for problem in result.problems]


@torch.no_grad()
def _record(graph: Graph, inputs: dict[str, Tensor]) -> dict[str, bytes]:
    """Inputs and torch's outputs as plain .npy files."""
    module = graph.module
    outputs = dict(zip(module.output_names, module(*inputs.values()), strict=True))
    prefix = f"parity/{PurePosixPath(graph.file).stem}"
    arrays = {f"{prefix}.{name}.npy": value for name, value in inputs.items()}
    arrays |= {f"{prefix}.expected.{name}.npy": value for name, value in outputs.items()}
    files = {}
    for name, value in arrays.items():
        buffer = io.BytesIO()
        np.save(buffer, value.numpy(), allow_pickle=False)
        files[name] = buffer.getvalue()
    return files


def _parity_row(parity: Parity) -> ParityModel:
    return ParityModel(
        provider="cpu", tolerance=TOLERANCES["cpu"], max_error=parity.max_error, action_mismatches=0,
        near_ties=parity.near_ties, samples=parity.samples, batch_sizes=list(_BATCH_SIZES),
    )  # fmt: skip


def _manifest(loaded: LoadedRun, graphs: list[Graph], parity: Parity, name: str) -> dict[str, Any]:
    config, spec = loaded.config, loaded.spec
    entries = {agent: entry for graph in graphs for agent, entry in zip(graph.agents, graph.entries, strict=True)}
    environment = EnvironmentModel(
        name=config.environment, arguments=config.environment_arguments, horizon=spec.horizon,
        team_reward=spec.team_reward, control_period_s=spec.control_period_s,
    )  # fmt: skip
    return {
        "schema_version": SCHEMA_VERSION,
        "name": name,
        "created_by": f"hmarl {version('hmarl')}",
        "algorithm": config.algorithm,
        "deterministic_by_default": loaded.algorithm.settings.deterministic_evaluation,
        "environment": to_plain(environment),
        "agents": [to_plain(entries[agent]) for agent in range(len(spec.agents))],
        "normalisation": "(observation - shift) * scale, clipped to ±10, inside the graph"
        if loaded.algorithm.settings.normalise_observations
        else "none",
        "opset": OPSET,
        "parity": [to_plain(_parity_row(parity))],
        "parity_tolerance": TOLERANCES,
        "training": {
            "config": config.model_dump(mode="json"),
            "checkpoint": loaded.checkpoint.path.name,
            "checkpoint_sha256": loaded.checkpoint.sha256,
            "steps": loaded.checkpoint.counters.steps,
            "seed": config.run["seed"],
            "torch": str(torch.__version__),
        },
    }
