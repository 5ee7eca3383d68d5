"""Every kind of policy × kind of space: a short run is exported, and the runtime computes what torch computes."""

from __future__ import annotations

import json
from collections.abc import Callable
from functools import cache
from pathlib import Path
from shutil import copytree

import numpy as np
import onnx
import pytest
import torch

from hmarl.runtime.bundle import AgentModel, from_json, load_bundle
from hmarl.runtime.session import Policy
from hmarl.runtime.verify import verify_bundle
from hmarl.sdk.environments import make
from hmarl.sdk.evaluation.closed_loop import evaluate
from hmarl.sdk.evaluation.deployed_teams import BundleTeam
from hmarl.trainer.algorithms import ALGORITHMS
from hmarl.trainer.contract.deployable import DeployablePolicy
from hmarl.trainer.export import export
from hmarl.trainer.export.policy_source import load_team
from hmarl.trainer.records.problems import CheckpointError
from hmarl.trainer.runs.config import make_config
from hmarl.trainer.runs.run import Run
from training_runs import new_algorithm, of_use

ENVIRONMENTS = {
    "discrete": ("mpe/simple_spread", {"N": 2}),
    "heterogeneous": ("mpe/simple_speaker_listener", {}),
    "continuous": ("mpe/simple_spread", {"N": 2, "continuous_actions": True}),
    "masked": ("toy_environments:masked_discrete", {}),
    "multi-discrete": ("toy_environments:multi_discrete", {}),
    "leaving": ("toy_environments:leaving", {}),
}
NOT_DISCRETE = ("continuous", "multi-discrete", "leaving")
GUIDED: dict[str, object] = {"embedding_size": 8, "epochs": 2, "memory_size": 6}
SMALL = {"environments": 4, "rollout_length": 13, "steps": 104, "evaluation_episodes": 4, "threads": 1}
ShortRun = Callable[..., Path]


@pytest.fixture(scope="module")
def short_run(tmp_path_factory: pytest.TempPathFactory) -> ShortRun:
    """A run of two updates: (algorithm, environment, **settings) -> its directory; made once, do not change it."""

    @cache
    def trained(algorithm: str, environment: str, **settings: object) -> Path:
        name, arguments = ENVIRONMENTS[environment]
        config = make_config(algorithm, name, settings, dict(SMALL), arguments)
        run = Run.create(config, tmp_path_factory.mktemp(f"{algorithm}-{environment}") / "run")
        try:
            run.train()
        finally:
            run.close()
        return run.directory

    return trained


# The algorithms that deploy unlike modules, on all kinds of spaces; test_families.py exports every algorithm.
PAIRS = [
    (algorithm, environment)
    for algorithm in ("happo", "hcpo", "maven")
    for environment in ENVIRONMENTS
    if environment != "leaving" and not (ALGORITHMS[algorithm].discrete_only and environment in NOT_DISCRETE)
] + [("hasac", "continuous")]
# Every algorithm and every kind of space.
QUICK = {
    ("happo", "masked"), ("happo", "multi-discrete"), ("hcpo", "continuous"), ("hcpo", "heterogeneous"),
    ("maven", "discrete"), ("hasac", "continuous"),
}  # fmt: skip


@pytest.mark.parametrize(
    ("algorithm", "environment"),
    [pytest.param(*pair, marks=() if pair in QUICK else pytest.mark.slow) for pair in PAIRS],
)
def test_the_runtime_computes_what_torch_computes(
    algorithm: str, environment: str, short_run: ShortRun, tmp_path: Path
) -> None:
    run = short_run(algorithm, environment)
    bundle = export.export_run(run, tmp_path / "bundle", redistilling=False)
    loaded = export.load_run(run)
    for agent, module in enumerate(loaded.algorithm.deployable(i) for i in range(len(loaded.spec.agents))):
        policy = Policy(bundle, loaded.spec.agents[agent].id)
        inputs = export.example_inputs(module, 33, np.random.default_rng(5))
        with torch.no_grad():
            expected = dict(zip(module.output_names, module(*inputs.values()), strict=True))
        got = policy.run_batch({name: value.numpy() for name, value in inputs.items()})
        np.testing.assert_array_equal(got["action"].shape, expected["action"].shape)
        parameters = "action_mean" if module.head.continuous else "action_logits"
        np.testing.assert_allclose(got[parameters], expected[parameters].numpy(), atol=1e-5)
        np.testing.assert_allclose(got["action"], expected["action"].numpy(), atol=1e-5)
    assert bundle.manifest.parity[0].samples > 1000
    assert bundle.manifest.parity[0].max_error <= 1e-5


# Not one of what the guider may see.
OWN_INPUTS = {"observation", "action_mask", "action_noise", "memory"}


@pytest.mark.parametrize(
    "settings",
    [
        pytest.param({"guider_sees_state": True}, id="state"),
        pytest.param({"guider": "sable", "share_parameters": True}, id="sable", marks=pytest.mark.slow),
    ],
)
@pytest.mark.parametrize(
    "environment",
    [
        "heterogeneous",
        "leaving",
        *(pytest.param(name, marks=pytest.mark.slow) for name in ("masked", "multi-discrete", "continuous")),
    ],
)
def test_what_a_guided_agent_does_follows_from_its_own_observations(
    environment: str, settings: dict[str, object], short_run: ShortRun, tmp_path: Path
) -> None:
    """MAGPO's recurrent policies, served over whole episodes, act as torch does, and no graph takes a state."""
    run = short_run("magpo", environment, **GUIDED, **settings)
    bundle = export.export_run(run, tmp_path / "bundle")
    for agent in bundle.manifest.agents:
        graph = onnx.load_from_string(bundle.read(agent.file)).graph
        assert {each.name for each in graph.input} <= OWN_INPUTS
        assert [state.input for state in agent.states] == ["memory"]
    name, arguments = ENVIRONMENTS[environment]
    vector = make(name, 4, **arguments)
    for sample in (False, True):
        make_team, *_ = load_team(run, sample=sample)
        teams = [BundleTeam(bundle, vector.spec, sample=sample), make_team(vector.spec)]
        served, torchs = (evaluate(vector, team, 4, seed=3, record=True) for team in teams)
        assert served.actions is not None
        assert torchs.actions is not None
        for ours, theirs in zip(served.actions, torchs.actions, strict=True):
            np.testing.assert_allclose(ours, theirs, rtol=1e-5, atol=1e-5)
    vector.close()


def test_an_instruction_interval_is_kept_in_the_graphs_state(short_run: ShortRun, tmp_path: Path) -> None:
    run = short_run("hcpo", "discrete", instruction_interval=3)
    bundle = export.export_run(run, tmp_path / "bundle.zip")
    session = Policy(bundle, "agent_0").session()
    session.reset(3, sample=True)
    generator = np.random.default_rng(0)
    instructions = [
        int(session.act(generator.normal(size=12).astype(np.float32)).diagnostics["instruction"]) for _ in range(30)
    ]
    windows = np.array(instructions).reshape(10, 3)
    assert (windows == windows[:, :1]).all(), "an instruction changed within its interval"
    assert len(set(windows[:, 0])) > 1, "the instruction never changes"


@pytest.mark.parametrize("algorithm", ["happo", "hcpo"])
def test_a_recurrent_policy_remembers_in_the_graphs_state(algorithm: str, short_run: ShortRun, tmp_path: Path) -> None:
    """Served step by step it acts as the trainer's own network does over the whole sequence; a new episode forgets."""
    run = short_run(algorithm, "discrete", recurrent=True, memory_size=6)
    bundle = export.export_run(run, tmp_path / "bundle", redistilling=False)
    assert [state.input for state in bundle.manifest.agents[0].states] == ["memory"]
    module = export.load_run(run).algorithm.deployable(0)
    session = Policy(bundle, "agent_0").session()
    seen = np.random.default_rng(0).normal(size=(12, 12)).astype(np.float32)
    for _ in range(2):
        session.reset(3)
        memory = torch.zeros(1, 6)
        for observation in seen:
            inputs = {
                name: torch.zeros(1, *shape) for name, shape in (("instruction_noise", [10]), ("action_noise", [5]))
            }
            inputs |= {"observation": torch.from_numpy(observation[None]), "memory": memory}
            with torch.no_grad():
                outputs = dict(
                    zip(module.output_names, module(*(inputs[name] for name in module.input_names)), strict=True)
                )
            memory = outputs["next_memory"]
            got = session.act(observation)
            np.testing.assert_allclose(got.diagnostics["action_logits"], outputs["action_logits"][0], atol=1e-5)
        assert memory.abs().max() > 0


def test_shared_parameters_and_layer_norm_export(short_run: ShortRun, tmp_path: Path) -> None:
    run = short_run("hcpo", "discrete", share_parameters=True, normalise_layers=True)
    assert len(export.export_run(run, tmp_path / "bundle").manifest.agents) == 2


def test_roles_export(short_run: ShortRun, tmp_path: Path) -> None:
    """Agents with one network and different roles: what is served acts as what was trained."""
    run = short_run("hcpo", "discrete", share_parameters=True, instruction_roles=True, recurrent=True, memory_size=6)
    assert len(export.export_run(run, tmp_path / "bundle", redistilling=False).manifest.agents) == 2


def test_a_graph_that_differs_is_refused_and_nothing_written(
    short_run: ShortRun, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = short_run("happo", "discrete")
    honest = export.onnx_bytes

    def tampered(graph: export.Graph) -> bytes:
        model = onnx.load_from_string(honest(graph))
        weights = max(model.graph.initializer, key=lambda tensor: len(tensor.raw_data))
        values = np.frombuffer(weights.raw_data, dtype=np.float32) + np.float32(1e-3)
        weights.raw_data = values.tobytes()
        return bytes(model.SerializeToString())

    monkeypatch.setattr(export, "onnx_bytes", tampered)
    with pytest.raises(export.ParityError, match="nothing was written"):
        export.export_run(run, tmp_path / "bundle")
    assert not (tmp_path / "bundle").exists()


def test_agents_for_whom_one_graph_acts_are_one_policy() -> None:
    settings = {"share_parameters": True, "agent_identity": False}
    algorithm, _, _ = new_algorithm("mappo", "mpe/simple_spread", 2, 4, None, **settings)
    assert len(export.graphs_of(algorithm.spec, algorithm)) == 1
    apart = algorithm.deployable

    def differing(agent: int) -> DeployablePolicy:
        policy = apart(agent)
        if agent == 2:
            next(policy.parameters()).data += 1e-3
        return policy

    algorithm.deployable = differing  # type: ignore[method-assign]
    with pytest.raises(export.ParityError, match="agents agent_0 and agent_2 are interchangeable, but differ in "):
        export.graphs_of(algorithm.spec, algorithm)


def test_a_card_promises_no_more_than_a_run_keeps(short_run: ShortRun, tmp_path: Path) -> None:
    run = short_run("hcpo", "discrete")
    again = tmp_path / "again"
    copytree(run, again)
    summary = json.loads((again / "summary.json").read_text())
    cards = []
    for resumed_at in (0, 52):
        (again / "summary.json").write_text(json.dumps(summary | {"resumed_at": resumed_at}))
        bundle = export.export_run(again, tmp_path / str(resumed_at), "last", redistilling=False)
        cards.append(bundle.read("README.md").decode())
    assert "The same command on the same machine gives the same weights (up to rounding" in cards[0]
    assert "gives the same weights if the goal (`--steps`) was the same throughout" in cards[1]


def test_the_bundle_says_where_it_comes_from(short_run: ShortRun, tmp_path: Path) -> None:
    run = short_run("hcpo", "discrete")
    bundle = load_bundle(export.export_run(run, tmp_path / "bundle", "last", "my team").path)
    assert bundle.manifest.name == "my team"
    assert bundle.manifest.environment.name == "mpe/simple_spread"
    assert bundle.manifest.training["steps"] == 104
    card = bundle.read("README.md").decode()
    assert card.startswith("---\n")
    assert "hmarl-train hcpo --env mpe/simple_spread" in card
    assert bundle.read("plots/return.png").startswith(b"\x89PNG")


def test_a_bundle_shows_the_evaluation_of_its_own_checkpoint_if_there_is_one(tmp_path: Path) -> None:
    settings = {**SMALL, "evaluation_interval": 52, "checkpoint_interval": 1, "checkpoints_kept": 9}
    run = Run.create(make_config("happo", "mpe/simple_spread", {}, settings, {"N": 2}), tmp_path / "run")
    try:
        run.train()
    finally:
        run.close()
    earned = {}
    for steps in ("52", "104"):
        bundle = export.export_run(run.directory, tmp_path / steps, steps)
        earned[steps] = bundle.manifest.evaluation["local"]["return_mean"]
        card = bundle.read("README.md").decode()
        assert f"value: {earned[steps]:.2f}" in card
        assert f"| local | {earned[steps]:.2f} |" in card
        assert "deterministic policies" in card
    assert earned["52"] != earned["104"]
    (run.directory / "eval" / "step-000000000052.json").unlink()
    bundle = export.export_run(run.directory, tmp_path / "unknown", "52")
    assert bundle.manifest.evaluation == {}
    assert "return" not in bundle.read("README.md").decode().split("## Use")[0]


@pytest.mark.parametrize("name", ["summary.json", "eval/step-000000000104.json"])
def test_a_cut_off_file_of_the_run_is_named(name: str, short_run: ShortRun, tmp_path: Path) -> None:
    run = copytree(short_run("happo", "discrete"), tmp_path / "run")
    (run / name).write_text('{"loc')
    with pytest.raises(CheckpointError, match=rf"{name}: damaged .* it can be deleted"):
        export.export_run(run, tmp_path / "bundle")
    assert not (tmp_path / "bundle").exists()
    (run / name).unlink()
    export.export_run(run, tmp_path / "bundle")


def test_a_latent_drawn_from_the_common_seed_holds_for_the_episode(short_run: ShortRun, tmp_path: Path) -> None:
    """MAVEN's agents, each in a session of its own, agree on the latent without a message."""
    bundle = export.export_run(short_run("maven", "discrete", recurrent=True, memory_size=6), tmp_path / "b")
    sessions = [Policy(bundle, agent.id).session() for agent in bundle.manifest.agents]
    generator = np.random.default_rng(0)
    drawn = set()
    for seed in range(12):
        latents = set()
        for session in sessions:
            session.reset(seed, sample=True)
            for _ in range(4):
                action = session.act(generator.normal(size=12).astype(np.float32))
                latents.add(int(action.diagnostics["instruction"]))
                assert action.action == action.diagnostics["action_logits"].argmax()
        assert len(latents) == 1, "the agents differ, or the latent changed within an episode"
        drawn |= latents
    assert len(drawn) > 1, "the seed does not matter"


INTERCHANGEABLE = {"share_parameters": True, "agent_identity": False}
REMEMBERING = {"recurrent": True, "memory_size": 6}


@pytest.mark.parametrize(
    "algorithm",
    [
        pytest.param(name, marks=() if name in ("hcpo", "maven") else pytest.mark.slow)
        for name, each in ALGORITHMS.items()
        if each.exportable
    ],
)
def test_interchangeable_agents_are_one_graph(algorithm: str, short_run: ShortRun, tmp_path: Path) -> None:
    run = short_run(algorithm, "masked", **INTERCHANGEABLE, **of_use(algorithm, REMEMBERING))
    bundle = export.export_run(run, tmp_path / "bundle")
    assert [agent.id for agent in bundle.manifest.agents] == ["chooser_0", "chooser_1"]
    assert {(agent.file, agent.interchangeable) for agent in bundle.manifest.agents} == {("agents/chooser.onnx", True)}
    assert [file for file in bundle.manifest.files if file.endswith(".onnx")] == ["agents/chooser.onnx"]
    assert "parity/chooser.observation.npy" in bundle.manifest.files
    assert bundle.manifest.parity[0].samples == sum((1, 2, 7, 64, 256)) + 2 * 64 * 16, "what both of them saw"
    metadata = {p.key: p.value for p in onnx.load_from_string(bundle.read("agents/chooser.onnx")).metadata_props}
    assert metadata["agent"] == "chooser_0,chooser_1"
    assert from_json(AgentModel, metadata["manifest"]) == bundle.manifest.agents[0]
    own, second = verify_bundle(bundle)
    assert (own.problems, own.parity_samples, own.same_graph_as) == ([], 64, None)
    assert (second.problems, second.parity_samples, second.same_graph_as) == ([], 0, "chooser_0")


def test_unlike_interchangeable_agents_are_a_graph_a_kind(short_run: ShortRun, tmp_path: Path) -> None:
    run = short_run("happo", "heterogeneous", **INTERCHANGEABLE)
    bundle = export.export_run(run, tmp_path / "bundle")
    assert len({agent.file for agent in bundle.manifest.agents}) == 2
    assert not any(report.problems or report.same_graph_as for report in verify_bundle(bundle))
