"""Export: one ONNX graph per agent, or per group of interchangeable agents, with the whole deployment contract inside,
checked against torch, in one bundle.
"""

from __future__ import annotations

import re
import tempfile
from dataclasses import dataclass
from hashlib import sha256
from importlib.metadata import version
from itertools import chain, count
from pathlib import Path
from typing import Any

import numpy as np
import torch
from msgspec.structs import replace
from torch import Tensor

from hmarl.runtime.bundle import (
    SCHEMA_VERSION,
    AgentModel,
    Bundle,
    EnvironmentModel,
    ParityModel,
    StudentsModel,
    UsageError,
    check_printable,
    check_target,
    to_plain,
    write_bundle,
)
from hmarl.runtime.choices import InstructionChoice
from hmarl.runtime.session import Policy
from hmarl.runtime.signing.keys import Signer
from hmarl.sdk.files import check_writable
from hmarl.sdk.gap.card import card_section
from hmarl.sdk.gap.document import FILE as GAP_FILE
from hmarl.sdk.gap.document import read_gap
from hmarl.sdk.spaces import EnvironmentSpec
from hmarl.trainer.algorithms import find_algorithm
from hmarl.trainer.contract.deployable import DeployablePolicy, check_size
from hmarl.trainer.contract.local_team import LocalPolicies
from hmarl.trainer.export.graphs import OPSET, Graph, file_stems, onnx_bytes
from hmarl.trainer.export.instruction_choice import ChosenChoice, decide_choice
from hmarl.trainer.export.leapp import leapp_files
from hmarl.trainer.export.model_card import model_card
from hmarl.trainer.export.parity import TOLERANCES, Parity, ParityError, compare, interleaved, record
from hmarl.trainer.export.redistillation import Redistillation, redistil
from hmarl.trainer.export.samples import batch_sizes, example_inputs, recorded_rows, rollout_observations
from hmarl.trainer.networks.settings import validate
from hmarl.trainer.records.checkpoint import check_there
from hmarl.trainer.runs.config import RunConfig
from hmarl.trainer.runs.drawing import run_plots
from hmarl.trainer.runs.loaded_run import LoadedRun, load_run
from hmarl.trainer.students.dagger import Distilled, distil_run
from hmarl.trainer.students.settings import DistillationSettings


def export_run(
    run: Path,
    target: Path,
    checkpoint: str = "best",
    name: str | None = None,
    distillation: DistillationSettings | None = None,
    restart_students: bool = False,
    redistilling: bool = True,
    signer: Signer | None = None,
    leapp: bool = False,
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
        redistilling: local conductors learn once more where the deployed team comes, see ``redistil``; students, and
            agents without local conductors, have no need of it.
        signer: signs the bundle; None leaves it unsigned.
        leapp: describe each agent's graph for LEAPP's runtimes too.

    Raises:
        UsageError: the run's algorithm acts for the whole team at once and is not to be distilled, or has no teacher to
            distil, or RUN/students were distilled otherwise, or a policy is too large, or the name cannot be shown;
            nothing is written.
        DivergedError: the distillation diverged.
        ParityError: ONNX Runtime and torch disagree; nothing is written.
        CheckpointError: see ``load_run``.
        BundleError: RUN/gap holds figures that cannot be read.
    """
    name = _bundle_name(run, name)
    config = RunConfig.read(run)
    distillation = _distillation(config, distillation)
    check_target(target)  # not after hours of distilling
    check_writable(target.absolute().parent, f"--out {target}")
    loaded = load_run(run, checkpoint)
    if distillation is None:
        deployed = _as_trained(loaded, redistilling)
    else:
        deployed = _distilled(run, loaded, distillation, restart_students)
    graphs = graphs_of(loaded.spec, deployed.policies, deployed.choice)
    files = {graph.file: onnx_bytes(graph) for graph in graphs}
    samples = rollout_observations(config.environment, config.environment_arguments, loaded.spec)
    parity, records = check_all(graphs, files, samples, loaded)
    plots = {f"plots/{file}": content for file, content in run_plots(run, config, loaded.algorithm).items()}
    card = model_card(
        loaded.config,
        loaded.checkpoint,
        loaded.summary,
        loaded.evaluation,
        _parity_row(parity),
        name,
        plots,
        deployed.report,
        deployed.chosen,
        deployed.again,
        _price(run, files),
    )
    manifest = _whole_manifest(loaded, graphs, parity, name, deployed)
    described = _described_for_leapp(manifest, graphs, files) if leapp else {}
    everything = {**files, **records, **plots, **described, "README.md": card.encode()}
    return write_bundle(target, manifest, everything, signer)


@dataclass(frozen=True)
class _Deployed:
    """What of a run its bundle has.

    Attributes:
        policies: of the agents.
        distilled: what a distillation came to, whose students these are; None where they are the algorithm's own.
        chosen: how these choose their instructions; None where they have none.
        again: what came of distilling local conductors once more; None where that was not done.
    """

    policies: LocalPolicies
    distilled: Distilled | None = None
    chosen: ChosenChoice | None = None
    again: Redistillation | None = None

    @property
    def report(self) -> StudentsModel | None:
        return None if self.distilled is None else self.distilled.report

    @property
    def choice(self) -> InstructionChoice | None:
        return None if self.chosen is None else self.chosen.choice


def check_exportable(run: Path, checkpoint: str, distillation: DistillationSettings | None) -> None:
    """Refuse, before anything is said or done, what ``export_run`` would.

    Raises:
        UsageError: the run has no policies to export, or students would see more than their agents will.
        CheckpointError: there is no such checkpoint.
    """
    _distillation(RunConfig.read(run), distillation)
    check_there(run, checkpoint)


def _distillation(config: RunConfig, given: DistillationSettings | None) -> DistillationSettings | None:
    """How the run is distilled; None where its own policies are exported.

    Raises:
        UsageError: it has none, or students that see more than their agents will.
    """
    algorithm = find_algorithm(config.algorithm)
    if given is None and algorithm.distils:
        given = validate(DistillationSettings, {}, "distillation")
    if given is None:
        algorithm.check_exportable(config.settings())
    else:
        given.check_deployable()
    return given


def _distilled(run: Path, loaded: LoadedRun, settings: DistillationSettings, restart: bool) -> _Deployed:
    """Students of the run's teacher; see ``distil_run``."""
    distilled = distil_run(run, loaded.algorithm, loaded.config, loaded.checkpoint, settings, restart=restart)
    return _Deployed(distilled.students, distilled)


def _as_trained(loaded: LoadedRun, redistilling: bool) -> _Deployed:
    """The algorithm's own policies, and how they choose their instructions; local conductors may learn once more."""
    chosen = decide_choice(loaded)
    again = redistil(loaded, chosen) if redistilling and chosen is not None else None
    return _Deployed(loaded.algorithm, None, chosen if again is None else again.chosen, again)


def _whole_manifest(
    loaded: LoadedRun, graphs: list[Graph], parity: Parity, name: str, deployed: _Deployed
) -> dict[str, Any]:
    """The manifest with what came of evaluating, distilling and choosing."""
    manifest = {**_manifest(loaded, graphs, parity, name), "evaluation": loaded.evaluation}
    if deployed.again is not None:
        manifest["training"]["redistillation"] = deployed.again.plain()
    if deployed.chosen is not None:
        manifest["training"]["instruction_choice"] = deployed.chosen.plain()
    if deployed.distilled is not None:
        manifest["students"] = to_plain(deployed.distilled.report)
        manifest["evaluation"] = {**manifest["evaluation"], "students": deployed.distilled.evaluation}
    return manifest


def _described_for_leapp(manifest: dict[str, Any], graphs: list[Graph], files: dict[str, bytes]) -> dict[str, bytes]:
    period_s = manifest["environment"]["control_period_s"]
    return leapp_files(_entries(graphs), files, period_s, OPSET, manifest["created_by"])


def _entries(graphs: list[Graph]) -> list[AgentModel]:
    """What the manifest says of each agent, in the environment's order."""
    entries = {agent: entry for graph in graphs for agent, entry in zip(graph.agents, graph.entries, strict=True)}
    return [entries[agent] for agent in sorted(entries)]


def _price(run: Path, graphs: dict[str, bytes]) -> str:
    """What the card says of the price of deployment: nothing where hmarl-gap has not measured these very graphs."""
    path = run / "gap" / GAP_FILE
    if not path.is_file():
        return ""
    gap = read_gap(path)
    return (
        card_section(gap) if gap.graphs == {name: sha256(graph).hexdigest() for name, graph in graphs.items()} else ""
    )


def _bundle_name(run: Path, name: str | None) -> str:
    """What the bundle is called: as the run's directory, unless told otherwise."""
    called = (run.name if run.name not in ("", "..") else run.resolve().name) if name is None else name
    try:
        check_printable("--name", called)
    except ValueError as error:
        raise UsageError(f"{error}, e.g. --name my-team") from error
    return called


def graphs_of(spec: EnvironmentSpec, policies: LocalPolicies, choice: InstructionChoice | None = None) -> list[Graph]:
    """A team's graphs: one per agent, or per group where its agents are interchangeable.

    Args:
        spec: of the environment.
        policies: whose graphs.
        choice: how their instructions are chosen by default; None where they have none, or do not say.

    Raises:
        UsageError: one is too large for an ONNX file.
        ParityError: agents for whom one graph would act differ.
    """
    interchangeable = policies.interchangeable
    parts: list[tuple[str, tuple[int, ...]]] = [(agent.id, (index,)) for index, agent in enumerate(spec.agents)]
    if interchangeable:
        parts = [(name, group.agents) for name, group in zip(group_names(spec), spec.groups, strict=True)]
    graphs = []
    for (_, agents), stem in zip(parts, file_stems(name for name, _ in parts), strict=True):
        file = f"agents/{stem}.onnx"
        modules = [policies.deployable(agent).eval() for agent in agents]
        described = (module.describe(file, interchangeable) for module in modules)
        entries = tuple(entry if choice is None else replace(entry, instruction_choice=choice) for entry in described)
        for module in modules[1:]:
            _check_alike(modules[0], module)
        tensors = (*modules[0].parameters(), *modules[0].buffers())
        check_size(modules[0].agent, sum(tensor.nbytes for tensor in tensors), "algorithm.hidden_sizes")
        graphs.append(Graph(file, modules[0], agents, entries))
    return graphs


def _check_alike(module: DeployablePolicy, other: DeployablePolicy) -> None:
    """Two agents for whom one graph acts are one policy."""
    ours, theirs = module.state_dict(), other.state_dict()
    different = [name for name, tensor in ours.items() if not torch.equal(tensor, theirs[name])]
    if different:
        raise ParityError(
            f"agents {module.agent.id} and {other.agent.id} are interchangeable, but differ in {', '.join(different)}: "
            "one graph cannot act for both"
        )


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
            module, real = graph.module, interleaved([samples[agent] for agent in graph.agents])
            policy = Policy(draft, graph.entries[0].id)
            generator = np.random.default_rng(len(records) + 1)
            for rows in batch_sizes(module):
                compare(module, policy, example_inputs(module, rows, generator), total)
                total.batch_sizes.add(rows)
            inputs = example_inputs(module, len(real["observation"]), generator, real)
            compare(module, policy, inputs, total)
            kept = recorded_rows(module)
            records |= record(graph, {name: value[:kept] for name, value in inputs.items()})
    if total.problems:
        raise ParityError(
            f"export: ONNX Runtime differs from torch in {len(total.problems)} ways, nothing was written; the first: "
            f"{total.problems[0]}"
        )
    return total, records


def _parity_row(parity: Parity) -> ParityModel:
    return ParityModel(
        provider="cpu",
        tolerance=TOLERANCES["cpu"],
        max_error=parity.max_error,
        action_mismatches=0,
        near_ties=parity.near_ties,
        samples=parity.samples,
        batch_sizes=sorted(parity.batch_sizes),
    )


def _manifest(loaded: LoadedRun, graphs: list[Graph], parity: Parity, name: str) -> dict[str, Any]:
    config, spec = loaded.config, loaded.spec
    environment = EnvironmentModel(
        name=config.environment,
        arguments=config.environment_arguments,
        horizon=spec.horizon,
        team_reward=spec.team_reward,
        control_period_s=spec.control_period_s,
    )
    return {
        "schema_version": SCHEMA_VERSION,
        "name": name,
        "created_by": f"hmarl {version('hmarl')}",
        "algorithm": config.algorithm,
        "deterministic_by_default": loaded.algorithm.settings.deterministic_evaluation,
        "environment": to_plain(environment),
        "agents": [to_plain(entry) for entry in _entries(graphs)],
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
