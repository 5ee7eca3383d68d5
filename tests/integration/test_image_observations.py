"""Pictures as observations, from the environment to the robot: trained on, resumed, exported with parity, served over
real gRPC and frames, recorded and run again; what does not take them refuses by name.
"""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from contextlib import closing
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from agent_process import AgentProcess
from hmarl.runtime.bundle import Bundle, load_bundle
from hmarl.runtime.message_limits import ROOM_BYTES, request_limit_bytes
from hmarl.runtime.verify import verify_bundle
from hmarl.sdk.clients.client import AgentClient
from hmarl.sdk.clients.local_agent import LocalAgent
from hmarl.sdk.environments import make
from hmarl.sdk.environments.conformance import check_environment
from hmarl.sdk.errors import ObservationError, UsageError
from hmarl.sdk.evaluation.closed_loop import evaluate
from hmarl.sdk.evaluation.deployed_teams import BundleTeam, FleetTeam
from hmarl.sdk.spaces import ImageFormat
from hmarl.trainer.algorithms import ALGORITHMS
from hmarl.trainer.export.policy_source import load_team
from hmarl.trainer.records.checkpoint import find_checkpoint
from training_runs import command_line, new_algorithm, of_use, tiny_config, train

pytestmark = pytest.mark.usefixtures("single_thread")

LIT = "pettingzoo/pixel_toys:Lit"
HERE = {"workers": 0}
SHAPE = (12, 14, 3)
RUN = {"environments": 2, "rollout_length": 6, "steps": 24, "evaluation_episodes": 2, "checkpoint_interval": 1}
SMALL = {"conductor_hidden_sizes": (8,), "instructions": 3, "critic_epochs": 1, "epochs": 2}
SEES = [name for name, algorithm in ALGORITHMS.items() if algorithm.sees_images]
Call = Callable[..., tuple[int, str, str]]


def config(algorithm: str, arguments: dict[str, Any] | None = None, **settings: Any) -> Any:
    chosen = of_use(algorithm, SMALL) | settings
    return tiny_config(algorithm, LIT, chosen, RUN, {**HERE, **(arguments or {})})


def exported(run: Path, target: Path, call: Call, *options: str) -> Bundle:
    """The command refuses graphs that do not compute what torch computes."""
    code, output, said = call("export", str(run), "--out", str(target), "--checkpoint", "last", "--json", *options)
    assert code == 0, said
    assert json.loads(output.splitlines()[-1])["parity"]["action_mismatches"] == 0
    return load_bundle(target)


# --- environments ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("arguments", [{}, {"kind": "float32"}, {"own_state": True, "leaving": True}], ids=str)
def test_the_checks_pass_on_an_environment_of_pictures(arguments: dict[str, Any]) -> None:
    results = check_environment(lambda batch: make(LIT, batch, **HERE, **arguments), batch_size=3)
    assert [(each.name, each.detail) for each in results if not each.passed] == []


def test_what_the_environment_shows_arrives_bit_by_bit() -> None:
    for workers in (0, 2):
        with closing(make(LIT, 2, workers=workers)) as environment:
            spec = environment.spec
            assert {agent.image for agent in spec.agents} == {ImageFormat(*SHAPE)}
            assert spec.state_image == ImageFormat(2 * SHAPE[0], *SHAPE[1:]), "what both see, one above the other"
            seen = environment.reset(np.array([5, 6]))
            (block,) = seen.observations
            assert (block.dtype, block.shape, seen.state.dtype) == (np.uint8, (2, 2, 504), np.uint8)
            np.testing.assert_array_equal(seen.state, block.reshape(2, -1))
            from pixel_toys import Lit  # noqa: PLC0415 - PettingZoo is an extra

            first, _ = Lit().reset(seed=6)
            np.testing.assert_array_equal(spec.agents[1].observed(block[1, 1]), first["eye_1"])


def test_pictures_can_be_taken_for_vectors() -> None:
    with closing(make(LIT, 1, images=False, own_state=True, **HERE)) as environment:
        spec, seen = environment.spec, environment.reset(np.array([5]))
        assert spec.images == ()
        assert (seen.observations[0].dtype, seen.state.dtype) == (np.float32, np.float32)
    with pytest.raises(UsageError, match="images: got 1, expected true or false"):
        make(LIT, 1, images=1, **HERE)


def test_pictures_meet_faults_but_no_noise() -> None:
    with closing(make(LIT, 2, faults="delay=1,loss=0.2", **HERE)) as environment:
        first = environment.reset(np.array([5, 6])).observations[0]
        actions = (np.zeros((2, 2), np.int64),)
        assert environment.step(actions).observation.observations[0].dtype == np.uint8
        np.testing.assert_array_equal(environment.step(actions).observation.observations[0].shape, first.shape)
    with pytest.raises(UsageError, match=r"noise: got 0.1 for agent 'eye_0', which observes 12 x 14 x 3 uint8"):
        make(LIT, 2, faults="noise=0.1", **HERE)


def test_pistonball_is_seen_through_windows() -> None:
    """PettingZoo's own, whose pistons each see a part of the picture, and whose state is all of it."""
    pytest.importorskip("pygame")
    pytest.importorskip("pymunk")
    task = "pettingzoo/pettingzoo.butterfly.pistonball_v6:parallel_env"
    arguments = {"n_pistons": 3, "continuous": False, "render_mode": "rgb_array", **HERE}
    with closing(make(task, 1, **arguments)) as environment:
        spec, seen = environment.spec, environment.reset(np.array([1]))
        assert spec.agents[0].image == ImageFormat(457, 120, 3)
        assert spec.state_image == ImageFormat(560, 200, 3)
        whole = seen.state.reshape(spec.state_image.shape)
        for number, agent in enumerate(spec.agents):
            window = whole[40:497, 40 * number : 40 * number + 120]
            np.testing.assert_array_equal(agent.observed(seen.observations[0][0, number]), window)
        after = environment.step((np.full((1, 3), 2),)).observation
        assert (after.state != seen.state).any()


# --- training --------------------------------------------------------------------------------------------------------


def test_shared_networks_take_pictures() -> None:
    assert set(SEES) >= {"mappo", "ippo", "happo", "hatrpo", "haa2c", "hamdpo", "a2po", "hcpo"}


@pytest.mark.parametrize("algorithm", [name for name in ALGORITHMS if name not in SEES])
def test_whoever_does_not_see_pictures_says_so(algorithm: str, call: Call, tmp_path: Path) -> None:
    chosen = tiny_config(algorithm, LIT, {}, {**RUN, "rollout_length": 20}, HERE)
    code, _, said = call("train", *command_line(chosen, tmp_path / "run"))
    assert code == 2
    assert "agent 'eye_0' observes 12 x 14 x 3 uint8, expected vectors" in said
    assert "env.images=false" in said
    assert not (tmp_path / "run").exists()


RESUMED = {"mappo": {"recurrent": True, "share_parameters": True}, "hcpo": {}}


@pytest.mark.parametrize("algorithm", SEES)
def test_every_network_learns_from_pictures(algorithm: str, tmp_path: Path) -> None:
    """Encoders of policies and critics change, and nothing diverges."""
    arguments = {"leaving": True, "own_state": algorithm != "hatrpo"}
    summary = train(config(algorithm, arguments, **RESUMED.get(algorithm, {})), tmp_path / "run")
    assert summary["steps"] == 24
    rows = [json.loads(line) for line in (tmp_path / "run/metrics.jsonl").read_text().splitlines()]
    assert not any("rolled_back" in row for row in rows)
    first, last = (find_checkpoint(tmp_path / "run", str(step)).tensors for step in (12, 24))
    encoders = [name for name in last if name.startswith("algorithm.policies") or name.endswith("network.theta")]
    assert len(encoders) > 1
    for name in encoders:
        assert not first[name].equal(last[name]), name


@pytest.mark.parametrize("algorithm", RESUMED)
def test_a_resumed_run_ends_as_an_unbroken_one(algorithm: str, call: Call, tmp_path: Path) -> None:
    chosen = config(algorithm, {"leaving": True}, **RESUMED[algorithm])
    train(chosen, tmp_path / "whole")
    whole = find_checkpoint(tmp_path / "whole", "last")
    for suffix in (".json", ".safetensors"):
        whole.path.with_suffix(suffix).unlink()
    code, _, said = call("train", "--resume", str(tmp_path / "whole"))
    assert code == 0, said
    again = find_checkpoint(tmp_path / "whole", "last")
    assert (again.path, again.sha256) == (whole.path, whole.sha256)


def test_a_rollout_of_bytes_stays_bytes_to_the_minibatch() -> None:
    """Nothing as large as the rollout is ever made float32: identities lie behind the pixels as bytes."""
    algorithm, rollout, collector = new_algorithm("mappo", LIT, 2, 4, HERE, share_parameters=True)
    collector.collect(algorithm)
    assert rollout.observations[0].dtype == rollout.states.dtype == torch.uint8
    (features,) = algorithm.features(rollout)
    assert features.data_ptr() == rollout.observations[0].data_ptr()
    inputs = algorithm.policies[0].inputs(features)
    assert (inputs.dtype, inputs.shape[-1]) == (torch.uint8, 504 + 2 * 4)


def test_common_knowledge_is_not_searched_for_in_pictures(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="conductor_sees: got common, but agent 'eye_0' observes 12 x 14 x 3 uint8"):
        train(config("hcpo", conductor_sees="common"), tmp_path / "run")


def test_a_picture_too_small_says_which_setting(call: Call, tmp_path: Path) -> None:
    chosen = config("mappo", image_encoder="nature")
    code, _, said = call("train", *command_line(chosen, tmp_path / "run"))
    assert code == 2
    assert "algorithm.image_encoder: got nature for pictures of 12 x 14 x 3 uint8" in said


# --- deployment ------------------------------------------------------------------------------------------------------

# Algorithm, settings, arguments: what differs in what is exported.
EXPORTS = {
    "one each": ("happo", {}, {"leaving": True}),
    "shared, recurrent": ("mappo", {"share_parameters": True, "recurrent": True}, {"continuous": True}),
    "conducted": ("hcpo", {"local_conductors_remember": True}, {"own_state": True}),
    "floats, impala": (
        "ippo", {"image_encoder": "impala", "share_parameters": True, "agent_identity": False}, {"kind": "float32"},
    ),
}  # fmt: skip


QUICK = ("conducted",)


@pytest.mark.parametrize(
    "case", [pytest.param(case, marks=() if case in QUICK else pytest.mark.slow) for case in EXPORTS]
)
def test_a_bundle_takes_what_the_environment_gives(case: str, call: Call, tmp_path: Path) -> None:
    algorithm, settings, arguments = EXPORTS[case]
    train(config(algorithm, arguments, **settings), tmp_path / "run")
    bundle = exported(tmp_path / "run", tmp_path / "bundle", call)
    for agent in bundle.manifest.agents:
        kind = arguments.get("kind", "uint8")
        assert (agent.observation.shape, agent.observation.dtype) == ([*SHAPE], kind)
    assert [report.problems for report in verify_bundle(bundle) if report.problems] == []
    with closing(make(LIT, 3, **HERE, **arguments)) as environment:
        spec = environment.spec
        choice = bundle.manifest.agents[0].instruction_choice
        make_team, *_ = load_team(tmp_path / "run", checkpoint="last", instruction_choice=choice)
        teams = BundleTeam(bundle, spec), make_team(spec)
        served, trained = (evaluate(environment, team, 3, seed=3, record=True) for team in teams)
    assert served.actions is not None
    assert trained.actions is not None
    for ours, theirs in zip(served.actions, trained.actions, strict=True):
        np.testing.assert_allclose(ours, theirs, rtol=1e-5, atol=1e-5)


@pytest.fixture(scope="module")
def large(tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    """Of pictures that are larger than a message about vectors may be; recurrent."""
    folder = tmp_path_factory.mktemp("large")
    chosen = config("mappo", {"size": 200}, share_parameters=True, recurrent=True, image_downsample=16)
    train(chosen, folder / "run")
    from hmarl.trainer.export.export import export_run  # noqa: PLC0415 - takes seconds

    return export_run(folder / "run", folder / "bundle", checkpoint="last")


def looks(generator: np.random.Generator) -> np.ndarray:
    return generator.integers(256, size=(200, 202, 3), dtype=np.uint8)


def test_limits_follow_from_the_pictures_size(large: Bundle) -> None:
    agent = large.manifest.agents[0]
    assert request_limit_bytes(agent) == 200 * 202 * 3 + ROOM_BYTES
    kept = sum(path.stat().st_size for path in large.path.rglob("*parity*"))
    assert kept < 2 * 2**23, "what a bundle keeps for comparison is bounded"


@pytest.mark.parametrize("door", ["unary", pytest.param("stream", marks=pytest.mark.slow), "frames"])
def test_pictures_travel_as_bytes_and_acts_are_the_policys_own(large: Bundle, door: str, tmp_path: Path) -> None:
    box = tmp_path / "box"
    options = ("--record", str(box))
    with AgentProcess(large.path, "eye_1", options=options, door="frames" if door == "frames" else None) as process:
        with (
            AgentClient(process.at(door), stream=door == "stream", record=box) as client,
            LocalAgent(large, "eye_1") as local,
        ):
            assert client.spec.image == ImageFormat(200, 202, 3)
            generator = np.random.default_rng(0)
            for agent in (client, local):
                agent.reset(4, sample=True)
            for _ in range(5):
                picture = looks(generator)
                assert client.act(picture).action == local.act(picture).action
            for wrong in (picture.astype(np.float32), picture.reshape(-1), picture[:-1]):
                with pytest.raises(ObservationError, match=r"expected uint8 \(200, 202, 3\)"):
                    client.act(wrong)
            assert client.act(picture).action == local.act(picture).action
        process.process.terminate()
        process.process.wait(20)
    page = tmp_path / "page.html"
    command = [sys.executable, "-m", "hmarl.sdk.commands.replay", str(box), "--bundle", str(large.path), "--json"]
    done = subprocess.run([*command, "--html", str(page)], capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stderr
    said = json.loads(done.stdout.splitlines()[-1])
    assert (said["same"], said["compared"]) == (True, 12)
    assert page.read_text().count('alt="Pictures of') == 2


def test_a_server_refuses_another_type_by_name(large: Bundle) -> None:
    """As a client in another language may send it."""
    import grpc  # noqa: PLC0415 - for this test alone

    from hmarl.agent.v1 import agent_pb2 as pb  # noqa: PLC0415
    from hmarl.agent.v1.agent_pb2_grpc import AgentServiceStub  # noqa: PLC0415
    from hmarl.agent.v1.tensors import to_tensor  # noqa: PLC0415

    with AgentProcess(large.path, "eye_0") as process, grpc.insecure_channel(process.address) as channel:
        stub = AgentServiceStub(channel)
        session = stub.StartEpisode(pb.StartEpisodeRequest(seed=1)).session_id
        picture = looks(np.random.default_rng(0))
        for wrong, said in (
            (picture.astype(bool), "observation: got bool, expected uint8 (200, 202, 3)"),
            (picture.reshape(-1), "observation.shape: got"),
            (picture[:100], "observation.shape: got uint8 (100, 202, 3), expected the shape (200, 202, 3)"),
        ):
            with pytest.raises(grpc.RpcError) as caught:
                stub.Act(pb.ActRequest(session_id=session, observation=to_tensor(wrong)))
            assert caught.value.code() == grpc.StatusCode.INVALID_ARGUMENT
            assert said in caught.value.details()
        assert stub.Act(pb.ActRequest(session_id=session, observation=to_tensor(picture))).step == 0


def test_a_fleet_plays_episodes_of_pictures(large: Bundle) -> None:
    with (
        AgentProcess(large.path, "eye_0") as one,
        AgentProcess(large.path, "eye_1") as other,
        closing(make(LIT, 2, size=200, **HERE)) as environment,
    ):
        fleet = FleetTeam({"eye_0": one.address, "eye_1": other.address}, environment.spec)
        with closing(fleet):
            served = evaluate(environment, fleet, 2, seed=9)
        played = evaluate(environment, BundleTeam(large, environment.spec), 2, seed=9)
    np.testing.assert_array_equal(served.returns, played.returns)
    with (
        closing(make(LIT, 1, size=200, kind="float32", **HERE)) as environment,
        pytest.raises(
            UsageError, match=r"got a policy that sees 200 x 202 x 3 uint8, the environment shows 200 x 202 x"
        ),
    ):
        BundleTeam(large, environment.spec)
