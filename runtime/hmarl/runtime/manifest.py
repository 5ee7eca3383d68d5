"""The manifest of a bundle: what every file is, and what every tensor of every agent's graph means.

A bundle is a directory (or the same in one zip)::

    manifest.json          this schema
    manifest.sha256        "<hex>  manifest.json": the manifest's own hash (sha256sum's format)
    agents/<name>.onnx     one graph per agent, or per group of interchangeable agents: the whole policy
    README.md, plots/...   the model card

The graph of an agent is one pure function of what that agent alone can know::

    (observation, action_mask?, step?, state..., noise...) -> (action, next state..., diagnostics...)

Every tensor has a leading dynamic batch dimension. Randomness comes in through the noise inputs: ``uniform`` in the
open interval (0, 1) or ``normal`` (mean 0, standard deviation 1). All-zero noise means the deterministic policy (argmax
or mean): zero is outside of the uniform's interval and is the normal's mean, so one graph serves both modes.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, Literal, TypeVar

import msgspec

from hmarl.runtime._manifest_checks import check_manifest
from hmarl.runtime._manifest_checks import check_printable as check_printable  # noqa: PLC0414 - so that it is exported
from hmarl.runtime.choices import InstructionChoice

SCHEMA_VERSION = 1
DataType = Literal["float32", "int64", "bool", "uint8"]


class _Strict(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Checked when read; unknown fields are refused."""


class DiscreteSpace(_Strict, frozen=True, kw_only=True, tag_field="type", tag="discrete"):
    """Actions 0 … n-1."""

    n: Annotated[int, msgspec.Meta(ge=1)]


class MultiDiscreteSpace(_Strict, frozen=True, kw_only=True, tag_field="type", tag="multi_discrete"):
    """One choice per branch; branch d has n[d] choices."""

    n: Annotated[list[int], msgspec.Meta(min_length=1)]


class BoxSpace(_Strict, frozen=True, kw_only=True, tag_field="type", tag="box"):
    """Continuous actions, already scaled to the environment's own units, within [low, high]."""

    low: list[float]
    high: list[float]


ActionSpaceModel = DiscreteSpace | MultiDiscreteSpace | BoxSpace


def branch_sizes(space: ActionSpaceModel) -> list[int]:
    """The number of choices in each branch, of which an action mask has one part each; none for continuous actions."""
    if isinstance(space, MultiDiscreteSpace):
        return space.n
    return [space.n] if isinstance(space, DiscreteSpace) else []


class TensorModel(_Strict, frozen=True, kw_only=True):
    """One tensor of a graph. ``shape`` leaves the leading batch dimension out."""

    name: str
    shape: list[int]
    dtype: DataType
    meaning: str


class StateModel(_Strict, frozen=True, kw_only=True):
    """One recurrent state: fed in as ``input``, read back from ``output``, set to ``reset`` when an episode starts."""

    input: str
    output: str
    shape: list[int]
    dtype: DataType
    reset: list[float]
    meaning: str


class NoiseModel(_Strict, frozen=True, kw_only=True):
    """One noise input.

    ``stream`` says which random numbers fill it: ``private`` numbers are the agent's own; ``common`` numbers are equal
    for all agents of a team (keyed by the episode's seed, counted by the step), so that agents agree without a message.
    ``purpose`` names what is drawn with it: the ``action`` or the ``instruction``.
    """

    name: str
    shape: list[int]
    distribution: Literal["uniform", "normal"]
    stream: Literal["private", "common"]
    purpose: Literal["action", "instruction"]


class AgentModel(_Strict, frozen=True, kw_only=True):
    """One agent's graph and its tensors.

    An ``interchangeable`` agent's graph does not know which agent it acts for: the agents of its group share ``file``,
    and it may serve further ones that were not trained. ``step`` is how many steps of the episode lie behind, a number
    that all agents of a team know alike, also who has missed some. ``instruction_choice`` says how an episode's
    instructions are chosen when its start does not; None: ``common`` when actions are drawn, else ``argmax``.
    """

    id: str
    file: str
    kind: str
    interchangeable: bool = False
    action_space: ActionSpaceModel
    observation: TensorModel
    observation_layout: list[tuple[str, int]] = []
    action_mask: TensorModel | None = None
    step: TensorModel | None = None
    states: list[StateModel] = []
    noises: list[NoiseModel] = []
    instruction_choice: InstructionChoice | None = None
    action: TensorModel
    diagnostics: list[TensorModel] = []

    def named(self, agent_id: str) -> AgentModel:
        """The same under another id."""
        return msgspec.structs.replace(self, id=agent_id)


class EnvironmentModel(_Strict, frozen=True, kw_only=True):
    """The environment that the policies were trained in; its arguments are the defaults of ``hmarl-eval``."""

    name: str
    arguments: dict[str, Any] = {}
    horizon: int | None = None
    team_reward: Literal["sum", "mean", "shared"]
    control_period_s: float | None = None


class ParityModel(_Strict, frozen=True, kw_only=True):
    """How far ONNX Runtime was from torch when the bundle was written, per execution provider."""

    provider: str
    tolerance: float
    max_error: float
    action_mismatches: int
    near_ties: int
    samples: int
    batch_sizes: list[int]


class StudentsModel(_Strict, frozen=True, kw_only=True):
    """How far the agents' policies reach that were distilled at export from a team that knows more than one agent can.

    Returns are means over ``episodes`` episodes, the same for teacher and students; ``seed`` is what their seeds were
    derived from, ``sampled`` whether actions were drawn. ``gap`` is the teacher's return less the students', ``ratio``
    theirs divided by the teacher's where that is positive. The rest is of single steps, along the students' own
    episodes, over all agents that were there: ``kl`` in nats; the share of discrete actions, and of discrete goals,
    that are the teacher's; the mean absolute difference of continuous actions in the environment's units; the share of
    the variance of continuous goals that is predicted. What there is none of is null.
    """

    teacher: str
    rounds: int
    steps: int
    stopped: Literal["teacher reached", "patience", "rounds"]
    episodes: int
    seed: int
    sampled: bool
    teacher_return: float
    students_return: float
    gap: float
    ratio: float | None = None
    kl: float
    action_agreement: float | None = None
    action_difference: float | None = None
    goal_accuracy: float | None = None
    goal_variance_explained: float | None = None
    settings: dict[str, Any] = {}


class Manifest(_Strict, frozen=True, kw_only=True):
    """The whole manifest.json."""

    schema_version: int
    name: str
    created_by: str
    algorithm: str
    deterministic_by_default: bool = True
    environment: EnvironmentModel
    agents: Annotated[list[AgentModel], msgspec.Meta(min_length=1)]
    normalisation: str
    opset: int
    parity: list[ParityModel]
    parity_tolerance: dict[str, float]
    training: dict[str, Any] = {}
    evaluation: dict[str, Any] = {}
    students: StudentsModel | None = None
    files: dict[str, str]

    def __post_init__(self) -> None:
        if self.schema_version != SCHEMA_VERSION:
            raise ValueError(f"schema_version: got {self.schema_version}, this hmarl reads version {SCHEMA_VERSION}")
        check_manifest(self)


M = TypeVar("M", bound=_Strict)


def to_json(model: _Strict) -> str:
    """A model as JSON; NaN and infinity become null."""
    return msgspec.json.encode(model).decode()


def to_plain(model: _Strict) -> dict[str, Any]:
    """A model as dictionaries, lists and numbers."""
    plain: dict[str, Any] = msgspec.to_builtins(model)
    return plain


def from_json(model: type[M], content: str | bytes) -> M:
    """Read and check a model.

    Raises:
        ValueError: not JSON, or not this model; the message names the field, what was got and what was expected.
    """
    try:
        return msgspec.json.decode(content, type=model)
    except msgspec.DecodeError as error:  # also what does not fit the model
        raise ValueError(_problem(error)) from error
    except RecursionError as error:
        raise ValueError("lists or objects lie too deep in each other") from error
    except UnicodeDecodeError as error:
        raise ValueError(f"not UTF-8: {error}") from error


class _Listing(msgspec.Struct):
    """Of a manifest of any schema: its files."""

    files: dict[str, Any]


def listed_files(content: bytes) -> set[str]:
    """The files that a manifest lists, whatever else is wrong with it.

    Raises:
        ValueError: it lists none.
    """
    try:
        return set(msgspec.json.decode(content, type=_Listing).files)
    except (msgspec.DecodeError, RecursionError) as error:
        raise ValueError(f"no list of files: {error}") from error


def from_plain(model: type[M], fields: Mapping[str, Any]) -> M:
    """The same from dictionaries, lists and numbers.

    Raises:
        ValueError: as ``from_json``.
    """
    try:
        return msgspec.convert(fields, model)
    except msgspec.ValidationError as error:
        raise ValueError(_problem(error)) from error


def _problem(error: Exception) -> str:
    """``field: what is wrong``, from msgspec's ``what is wrong - at `$.field` ``."""
    what, _, where = str(error).partition(" - at `$")
    field = where.rstrip("`").replace("[...]", "").replace("[", ".").replace("]", "").strip(".")
    return f"{field}: {what}" if field else what
