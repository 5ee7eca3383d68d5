"""Encoders of pictures, held against torch's own modules; what is seen beside a picture; refusals."""

from __future__ import annotations

import re
from types import SimpleNamespace

import msgspec
import numpy as np
import pytest
import torch
from torch import Tensor, nn

from hmarl.agent.v1.tensors import WireError
from hmarl.oip import open_inference_pb2 as pb
from hmarl.oip.tensors import datatype_of, read_tensor
from hmarl.runtime._graph import check_manifest
from hmarl.runtime.errors import BundleError, ObservationError
from hmarl.runtime.inputs import InputCheck
from hmarl.runtime.manifest import AgentModel, DiscreteSpace, TensorModel
from hmarl.sdk.environments import make
from hmarl.sdk.errors import UsageError
from hmarl.sdk.spaces import AgentSpec, EnvironmentSpec, ImageFormat
from hmarl.trainer.experience.rollout import Rollout
from hmarl.trainer.networks.flat import Mlp, RecurrentNetwork
from hmarl.trainer.networks.images import ImageEncoder, beside

GENERATOR = torch.Generator().manual_seed(0)


def settings(encoder: str = "auto", downsample: int = 1) -> SimpleNamespace:
    return SimpleNamespace(image_encoder=encoder, image_downsample=downsample, activation="relu")


def encoder(image: ImageFormat, kind: str = "auto", downsample: int = 1) -> ImageEncoder:
    made = ImageEncoder.of(image, settings(kind, downsample))
    assert made is not None
    return made


def pictures(image: ImageFormat, *lead: int) -> Tensor:
    drawn = torch.randint(256, (*lead, *image.shape), generator=GENERATOR)
    return drawn.byte() if image.dtype == "uint8" else drawn / 255.0


def as_modules(network: Mlp, theta: Tensor, layers: list[nn.Module]) -> nn.Sequential:
    """torch's own layers with these parameters."""
    sequence = nn.Sequential(*layers)
    named = iter(network.named(theta).values())
    for parameter in sequence.parameters():
        parameter.data = next(named).reshape(parameter.shape)
    return sequence


def test_the_nature_network_computes_what_torchs_modules_compute() -> None:
    image = ImageFormat(84, 84, 4)
    network = Mlp(image.size, (512,), 6, encoder=encoder(image))
    theta = network.initialise(GENERATOR)
    relu = nn.ReLU()
    reference = as_modules(
        network,
        theta,
        [
            *(nn.Conv2d(4, 32, 8, 4), relu, nn.Conv2d(32, 64, 4, 2), relu, nn.Conv2d(64, 64, 3, 1), relu),
            *(nn.Flatten(), nn.Linear(3136, 512), relu, nn.Linear(512, 6)),
        ],
    )
    seen = pictures(image, 5)
    expected = reference(seen.permute(0, 3, 1, 2).float() / 255.0)
    assert network.size == sum(parameter.numel() for parameter in reference.parameters())
    torch.testing.assert_close(network(theta, seen.flatten(1)), expected)
    torch.testing.assert_close(network(theta, seen.flatten(1).float()), expected, msg="as a graph is given it")


def test_impala_has_the_layers_of_its_paper() -> None:
    image = ImageFormat(72, 96, 3)
    made = encoder(image, "impala")
    assert made.size == 9 * 12 * 32
    assert len(made.shapes) == 2 * 15, "15 convolutions"
    network = Mlp(image.size, (16,), 2, encoder=made)
    theta = network.initialise(GENERATOR).requires_grad_()
    network(theta, pictures(image, 2).flatten(1)).square().sum().backward()
    gradients = network.named(theta.grad)
    assert all(bool(gradient.any()) for gradient in gradients.values())


@pytest.mark.parametrize(("height", "kind"), [(36, "nature"), (35, "small"), (3, "small")])
def test_the_size_of_pictures_chooses_the_encoder(height: int, kind: str) -> None:
    assert encoder(ImageFormat(height, 40, 1)).kind == kind
    assert ImageEncoder.of(None, settings()) is None


def test_a_picture_too_small_for_the_chosen_encoder_is_refused() -> None:
    with pytest.raises(UsageError, match=r"image_encoder: got nature for pictures of 40 x 80 x 3 uint8 with image_"):
        encoder(ImageFormat(40, 80, 3), "nature", downsample=2)
    assert encoder(ImageFormat(12, 14, 3), downsample=24).least_side == 1
    told = r"algorithm\.image_downsample: got 25 for pictures of 12 x 14 x 3 uint8, expected at most 24"
    with pytest.raises(UsageError, match=told):
        encoder(ImageFormat(12, 14, 3), downsample=25)


def test_every_third_pixel_is_looked_at() -> None:
    image, small = ImageFormat(10, 13, 2), ImageFormat(3, 4, 2)
    full, looked_at = encoder(image, downsample=3), encoder(small)
    network, reference = (Mlp(each.image.size, (8,), 2, encoder=each) for each in (full, looked_at))
    theta = network.initialise(GENERATOR)
    seen = pictures(image, 7)
    expected = reference(theta, seen[:, 1::3, 1::3].flatten(1))
    torch.testing.assert_close(network(theta, seen.flatten(1)), expected)


@pytest.mark.parametrize("kind", ["uint8", "float32"])
def test_what_is_seen_beside_a_picture_reaches_the_layers_after_the_encoder(kind: str) -> None:
    image = ImageFormat(5, 7, 3, kind)  # type: ignore[arg-type]
    network = Mlp(image.size + 3, (8,), 2, encoder=encoder(image))
    theta = network.initialise(GENERATOR)
    seen, rest = pictures(image, 4, 2).flatten(2), torch.randn(4, 2, 3, generator=GENERATOR)
    inputs = beside(seen, [rest[..., :1], rest[..., 1:]])
    assert inputs.dtype == seen.dtype
    assert inputs.shape[-1] == image.size + 3 * (4 if kind == "uint8" else 1)
    expected = network(theta, torch.cat([seen.float(), rest], dim=-1))
    torch.testing.assert_close(network(theta, inputs), expected, rtol=0, atol=0)
    # Rows that lie anywhere in memory, as minibatches do.
    torch.testing.assert_close(network(theta, inputs[:, 1][[3, 0]]), expected[:, 1][[3, 0]])


@pytest.mark.parametrize("shared", [False, True])
def test_a_stack_of_networks_is_its_networks(shared: bool) -> None:
    image = ImageFormat(6, 6, 1)
    network = RecurrentNetwork(image.size + 1, (8,), 2, memory=4, encoder=encoder(image))
    thetas = torch.stack([network.initialise(GENERATOR) for _ in range(1 if shared else 3)]).expand(3, -1)
    inputs = beside(pictures(image, 3, 5).flatten(2), [torch.rand(3, 5, 1, generator=GENERATOR)])
    memory = torch.rand(3, 5, 4, generator=GENERATOR)
    output, following = network.step(network.named(thetas), inputs, memory)
    for n in range(3):
        own, next_own = network.step(network.named(thetas[n]), inputs[n], memory[n])
        torch.testing.assert_close(output[n], own)
        torch.testing.assert_close(following[n], next_own)


def test_many_pictures_give_what_few_give() -> None:
    image = ImageFormat(4, 4, 1)
    network = Mlp(image.size, (8,), 2, encoder=encoder(image))
    theta, seen = network.initialise(GENERATOR), pictures(image, 600).flatten(1)
    with torch.no_grad():
        in_parts = network(theta, seen)
    torch.testing.assert_close(in_parts, network(theta, seen))


def test_a_policy_begins_with_the_first_moments_of_its_layers() -> None:
    """Orthogonal filters: each layer keeps the scale of what it is given, so that no picture is drowned or blown up."""
    image = ImageFormat(84, 84, 3)
    made = encoder(image)
    network = Mlp(image.size, (64,), 4, encoder=made)
    features = made(network.named(network.initialise(GENERATOR)), pictures(image, 8).flatten(1))
    assert 0.02 < float(features.std()) < 2.0


def agent(**of: object) -> AgentSpec:
    return AgentSpec("a", 24, make("coordsum/2x10-20", 1).spec.agents[0].action_space, **of)  # type: ignore[arg-type]


def test_a_picture_is_all_of_an_observation_and_a_group_is_of_one_format() -> None:
    with pytest.raises(UsageError, match=r"agent 'a': image: got 2 x 3 x 3 uint8, 18 numbers, expected 24"):
        agent(image=ImageFormat(2, 3, 3))
    picture, flat = agent(image=ImageFormat(2, 4, 3)), agent()
    assert (picture.observation_shape, picture.observation_dtype) == ((2, 4, 3), np.uint8)
    assert (flat.observation_shape, flat.observation_dtype) == ((24,), np.float32)
    other = AgentSpec("b", 24, flat.action_space)
    assert len(EnvironmentSpec("both", (picture, other), 1, None, "sum").groups) == 2
    with pytest.raises(UsageError, match=r"state_image: got 1 x 1 x 2 uint8, 2 numbers, expected 1"):
        EnvironmentSpec("state", (flat,), 1, None, "sum", state_image=ImageFormat(1, 1, 2))


def test_rollouts_hold_bytes_as_bytes() -> None:
    with_state = ImageFormat(3, 3, 1)
    spec = EnvironmentSpec("both", (agent(image=ImageFormat(2, 4, 3)),), 9, None, "sum", state_image=with_state)
    rollout = Rollout(spec, 5, 2, torch.device("cpu"))
    assert (rollout.observations[0].dtype, rollout.observations[0].nbytes) == (torch.uint8, 5 * 2 * 24)
    assert (rollout.states.dtype, rollout.states.nbytes) == (torch.uint8, 6 * 2 * 9)


@pytest.mark.parametrize(
    ("given", "said"),
    [
        (np.zeros((2, 4, 3), np.float32), r"got float32, expected uint8 \(2, 4, 3\); cast it with .astype\(np.uint8\)"),
        (np.zeros(24, np.uint8), r"got uint8 \(24,\), expected uint8 \(2, 4, 3\)"),
        (None, r"got nothing, expected a NumPy array of uint8 \(2, 4, 3\)"),
    ],
)
def test_a_picture_of_another_form_is_refused(given: object, said: str) -> None:
    check = InputCheck((2, 4, 3), None, np.dtype(np.uint8))
    fine = np.full((2, 4, 3), 255, np.uint8)
    assert check.checked(fine, None)[0] is fine
    with pytest.raises(ObservationError, match=said):
        check.checked(given, None)  # type: ignore[arg-type]


def test_a_picture_of_floats_must_be_finite() -> None:
    picture = np.zeros((2, 4, 3), np.float32)
    picture[1, 2, 0] = np.nan
    with pytest.raises(ObservationError, match=r"observation\[1, 2, 0\]: got nan, expected finite numbers"):
        InputCheck((2, 4, 3), None).checked(picture, None)


def oip_input(**of: object) -> pb.ModelInferRequest.InferInputTensor:
    return pb.ModelInferRequest.InferInputTensor(name="observation", datatype="UINT8", shape=[1, 1, 2, 1], **of)


def test_the_open_inference_protocol_carries_bytes_raw_and_typed() -> None:
    expected = np.array([[[[7], [255]]]], np.uint8)
    for tensor, raw in (
        (oip_input(), bytes([7, 255])),
        (oip_input(contents=pb.InferTensorContents(uint_contents=[7, 255])), None),
    ):
        got = read_tensor(tensor, raw, "uint8", [1, 2, 1], 4)
        assert got.dtype == np.uint8
        np.testing.assert_array_equal(got, expected)
    with pytest.raises(WireError, match=r"inputs.observation.contents: got 256, expected numbers from 0 to 255"):
        read_tensor(oip_input(contents=pb.InferTensorContents(uint_contents=[7, 256])), None, "uint8", [1, 2, 1], 4)
    assert datatype_of("uint8") == "UINT8"


@pytest.mark.parametrize(
    ("shape", "dtype", "said"),
    [
        ([4], "uint8", "observation.dtype: got uint8, expected float32"),
        ([4, 4, 3], "int64", "observation.dtype: got int64, expected float32"),
    ],
)
def test_a_manifest_says_vectors_of_floats_or_pictures(shape: list[int], dtype: str, said: str) -> None:
    action = TensorModel(name="action", shape=[], dtype="int64", meaning="")
    seen = TensorModel(name="observation", shape=shape, dtype=dtype, meaning="")  # type: ignore[arg-type]
    entry = AgentModel(id="a", file="a.onnx", kind="", action_space=DiscreteSpace(n=2), observation=seen, action=action)
    with pytest.raises(BundleError, match=re.escape(said)):
        check_manifest(entry)
    picture = TensorModel(name="observation", shape=[4, 4, 3], dtype="uint8", meaning="")
    check_manifest(msgspec.structs.replace(entry, observation=picture))
