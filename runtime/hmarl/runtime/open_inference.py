"""The Open Inference Protocol, version 2: an agent as a model of that protocol, over the same server.

The model is the agent: its name is the agent's id, its version the bundle's SHA-256. A request by itself (no
``sequence_id``) is a step of its own: the caller keeps recurrent state, which goes in and comes out as tensors. Rows
are computed one after the other, each as if it were alone, so that no row's action depends on the rows beside it and
a row costs what an act costs. Requests of a sequence act in a session, with all that sessions have: steps, replays,
limits, and one owner.
"""

from __future__ import annotations

import hashlib
import secrets
from collections.abc import Callable, Iterable, Mapping
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

from hmarl.oip import open_inference_pb2 as pb
from hmarl.oip.tensors import datatype_of, read_tensor, write_tensor
from hmarl.runtime import __version__
from hmarl.runtime._graph import graph_outputs
from hmarl.runtime.choices import drawn_noises
from hmarl.runtime.door import Context
from hmarl.runtime.errors import (
    BundleNotHeldError,
    ObservationError,
    UnknownModelError,
    UnknownSessionError,
    UsageError,
    one_line,
    unknown_name,
)
from hmarl.runtime.identity import Caller
from hmarl.runtime.infer_parameters import InferParameters, read_parameters
from hmarl.runtime.manifest import AgentModel, StateModel, TensorModel
from hmarl.runtime.message_limits import max_rows
from hmarl.runtime.registry import SessionRegistry
from hmarl.runtime.session import Action, Policy, PolicySession

INFERENCE_SERVICE = "inference.GRPCInferenceService"
_PLATFORM = "onnxruntime_onnx"
_EXTENSIONS = ("parameters", "sequence", "sequence(string_id)")
_SHOWN = 100
_LARGEST_INT64 = 2**63 - 1
Array = npt.NDArray[Any]
Rows = dict[str, Array]


class Serving(Protocol):
    """What the service needs to know of the server."""

    @property
    def registry(self) -> SessionRegistry:
        """The open sessions; raises ``DrainingError`` while the policy is being loaded."""
        ...

    def client_act(self, session: PolicySession, observation: Array, mask: Array | None, step: int | None) -> Action:
        """A client's act."""
        ...

    def caller(self, context: Context) -> Caller:
        """Who calls."""
        ...


class InferenceService:
    """Answers the protocol's requests.

    Args:
        serving: the server's sessions.
        live: whether the process works.
        ready: whether its agent acts.
    """

    def __init__(self, serving: Serving, live: Callable[[], bool], ready: Callable[[], bool]) -> None:
        self._serving = serving
        self._live = live
        self._ready = ready
        self._key = secrets.token_bytes(32)

    def server_live(self, request: pb.ServerLiveRequest, context: Context) -> pb.ServerLiveResponse:
        """Whether the process works."""
        return pb.ServerLiveResponse(live=self._live())

    def server_ready(self, request: pb.ServerReadyRequest, context: Context) -> pb.ServerReadyResponse:
        """Whether its agent acts."""
        return pb.ServerReadyResponse(ready=self._ready())

    def model_ready(self, request: pb.ModelReadyRequest, context: Context) -> pb.ModelReadyResponse:
        """Whether the agent acts, if it is the one that is asked for."""
        if not self._ready():
            return pb.ModelReadyResponse(ready=False)
        try:
            _check_model(self._policy(request.version), request.name, request.version)
        except UnknownModelError:
            return pb.ModelReadyResponse(ready=False)
        return pb.ModelReadyResponse(ready=True)

    def server_metadata(self, request: pb.ServerMetadataRequest, context: Context) -> pb.ServerMetadataResponse:
        """What serves."""
        return pb.ServerMetadataResponse(name="hmarl", version=__version__, extensions=_EXTENSIONS)

    def model_metadata(self, request: pb.ModelMetadataRequest, context: Context) -> pb.ModelMetadataResponse:
        """The agent's tensors: states are inputs of requests by themselves only."""
        policy = self._policy(request.version)
        _check_model(policy, request.name, request.version)
        return pb.ModelMetadataResponse(
            name=policy.agent.id,
            versions=[policy.bundle.sha256],
            platform=_PLATFORM,
            inputs=[_described(each) for each in _inputs(policy.agent).values()],
            outputs=[_described(each) for each in graph_outputs(policy.agent)],
        )

    def model_infer(self, request: pb.ModelInferRequest, context: Context) -> pb.ModelInferResponse:
        """Actions for one step."""
        parameters = read_parameters(request.parameters)
        policy, session = self._policy(request.model_version), None
        caller = self._serving.caller(context)
        if parameters.sequence_id and not parameters.sequence_start:
            session = self._open(parameters, caller)
            policy = session.policy
        _check_model(policy, request.model_name, request.model_version)
        rows = _read_inputs(request, policy.agent, states=not parameters.sequence_id)
        wanted = _wanted_outputs(request, policy.agent)
        response = pb.ModelInferResponse(model_name=policy.agent.id, model_version=policy.bundle.sha256, id=request.id)
        if parameters.sequence_id:
            actions = [self._in_sequence(policy, session, rows, parameters, caller)]
            _write_parameters(response, actions[0], parameters, policy)
        else:
            actions = self._by_itself(policy, rows, parameters, context)
        for name, array in _stacked(policy.agent, actions).items():
            if name in wanted:
                write_tensor(response, name, array, raw=bool(request.raw_input_contents))
        return response

    def _policy(self, version: str) -> Policy:
        """The policy of a version while it is held, as after a reload; otherwise the current one."""
        registry = self._serving.registry
        try:
            return registry.policy_of(version)
        except BundleNotHeldError:
            return registry.policy

    def _by_itself(self, policy: Policy, rows: Rows, parameters: InferParameters, context: Context) -> list[Action]:
        """The actions of independent rows, in a session of their own that no other request ever sees."""
        agent = policy.agent
        states = {state.input for state in agent.states}
        count = len(rows[agent.observation.name])
        _check_alone(agent, rows, parameters, count)
        session, actions = policy.session(), []
        for row in range(count):
            if not context.is_active():
                break  # no one reads what is returned
            _reset(session, parameters, {name: array[row] for name, array in rows.items() if name in states})
            actions.append(self._act(session, rows, row, parameters.step or 0))
        session.end()
        return actions

    def _in_sequence(
        self,
        policy: Policy,
        session: PolicySession | None,
        rows: Rows,
        parameters: InferParameters,
        caller: Caller,
    ) -> Action:
        """The action of a sequence's step; None begins one, which is open once it has acted."""
        agent = policy.agent
        if len(rows[agent.observation.name]) != 1:
            raise UsageError(
                f"inputs: got {len(rows[agent.observation.name])} rows, expected 1 in a sequence: each row needs a "
                "sequence_id of its own, or requests without one"
            )
        started = session is None
        if session is None:
            _check_drawn(agent, parameters)
            session = policy.session()
            _reset(session, parameters, {})
        action = self._act(session, rows, 0, parameters.step)
        session_id = self._session_id(parameters.sequence_id, caller)
        if started and not parameters.sequence_end:
            self._serving.registry.add(session, caller.name, caller.owner, session_id)
        elif parameters.sequence_end and not started:
            self._serving.registry.remove(session_id, caller.owner)
        elif started:
            session.end()
        return action

    def _act(self, session: PolicySession, rows: Rows, row: int, step: int | None) -> Action:
        agent = session.policy.agent
        mask = None if agent.action_mask is None else rows[agent.action_mask.name][row]
        return self._serving.client_act(session, rows[agent.observation.name][row], mask, step)

    def _open(self, parameters: InferParameters, caller: Caller) -> PolicySession:
        """The session of a sequence.

        Raises:
            UnknownSessionError: the client has not begun it, or it is over.
        """
        try:
            return self._serving.registry.get(self._session_id(parameters.sequence_id, caller), caller.owner)
        except UnknownSessionError:
            raise UnknownSessionError(
                f"sequence {one_line(repr(parameters.sequence_id), _SHOWN)} is not open for this client: it has ended, "
                "has been idle for too long, was begun over another connection, or the process has restarted; begin it "
                "with sequence_start, and with the parameter 'step' in mid-episode"
            ) from None

    def _session_id(self, sequence_id: int | str, caller: Caller) -> str:
        """The id of a client's session, which no other client can make: ids of sequences are the clients' own."""
        return hashlib.blake2b(repr((caller.name, sequence_id)).encode(), key=self._key, digest_size=24).hexdigest()


def _check_model(policy: Policy, name: str, version: str) -> None:
    """Raises ``UnknownModelError`` when another model or version is asked for than the one that is served."""
    if name != policy.agent.id:
        raise UnknownModelError(
            f"model: got '{one_line(name, _SHOWN)}', expected '{policy.agent.id}': this process serves that agent alone"
        )
    if version not in ("", policy.bundle.sha256):
        raise UnknownModelError(
            f"model '{policy.agent.id}': version: got '{one_line(version, _SHOWN)}', expected none or the bundle's "
            f"SHA-256, {policy.bundle.sha256}"
        )


def _inputs(agent: AgentModel) -> dict[str, TensorModel | StateModel]:
    """What a request may hold, by name. Noise is drawn here, and the step is a parameter."""
    masks = [] if agent.action_mask is None else [agent.action_mask]
    return {**{each.name: each for each in (agent.observation, *masks)}, **{each.input: each for each in agent.states}}


def _described(tensor: TensorModel | StateModel) -> pb.ModelMetadataResponse.TensorMetadata:
    name = tensor.input if isinstance(tensor, StateModel) else tensor.name
    return pb.ModelMetadataResponse.TensorMetadata(
        name=name, datatype=datatype_of(tensor.dtype), shape=[-1, *tensor.shape]
    )


def _read_inputs(request: pb.ModelInferRequest, agent: AgentModel, states: bool) -> Rows:
    """The request's tensors by name: [rows, *shape], with as many rows each.

    Raises:
        ObservationError: unknown, repeated or missing inputs, or other numbers of rows.
        WireError: an input that is not as the manifest says.
    """
    known = _inputs(agent)
    raws: list[bytes | None] = list(request.raw_input_contents) or [None] * len(request.inputs)
    if len(raws) != len(request.inputs):
        raise ObservationError(
            f"raw_input_contents: got {len(raws)} for {len(request.inputs)} inputs, expected one each, or none"
        )
    if len(request.inputs) > len(known):
        raise ObservationError(f"inputs: got {len(request.inputs)}, expected at most {len(known)}: {', '.join(known)}")
    rows: Rows = {}
    for tensor, raw in zip(request.inputs, raws, strict=True):
        name, model = tensor.name, known.get(tensor.name)
        if model is None:
            raise ObservationError(unknown_name("input", one_line(name, _SHOWN), known))
        if isinstance(model, StateModel) and not states:
            raise ObservationError(f"inputs.{name}: got a state in a sequence, whose state is kept here: leave it out")
        if name in rows:
            raise ObservationError(f"inputs.{name}: got it twice, expected it once")
        if raw is not None and tensor.HasField("contents"):
            raise ObservationError(f"inputs.{name}.contents: got them beside raw_input_contents, expected one of both")
        rows[name] = read_tensor(tensor, raw, model.dtype, model.shape, max_rows(agent))
    missing = [name for name, model in known.items() if isinstance(model, TensorModel) and name not in rows]
    if missing:
        raise ObservationError(f"inputs: got {', '.join(rows) or 'none'}, expected {', '.join(missing)} too")
    counts = {name: len(array) for name, array in rows.items()}
    if len(set(counts.values())) > 1:
        raise ObservationError(f"inputs: got {counts} rows, expected as many of each")
    return rows


def _wanted_outputs(request: pb.ModelInferRequest, agent: AgentModel) -> set[str]:
    known = [tensor.name for tensor in graph_outputs(agent)]
    if not request.outputs:
        return set(known)
    for output in request.outputs:
        if output.name not in known:
            raise ObservationError(unknown_name("output", one_line(output.name, _SHOWN), known))
        if output.parameters:
            raise ObservationError(
                f"outputs.{output.name}.parameters: got some, expected none: neither classification nor shared memory "
                "is offered"
            )
    return {output.name for output in request.outputs}


def _check_alone(agent: AgentModel, rows: Rows, parameters: InferParameters, count: int) -> None:
    """A request by itself has to say all that its actions follow from.

    Raises:
        ObservationError: states are missing.
        UsageError: seed or step is missing, or several rows would draw the same numbers.
    """
    states = [state.input for state in agent.states]
    missing = [name for name in states if name not in rows]
    if missing and not parameters.reset_state:
        raise ObservationError(
            f"inputs: got no {', '.join(missing)}, but agent '{agent.id}' remembers: send the state that the step "
            "before returned, or reset_state=true at an episode's first step; or act in a sequence (sequence_id, "
            "sequence_start)"
        )
    if parameters.reset_state and len(missing) < len(states):
        raise ObservationError("reset_state: got true beside states, expected one or the other")
    drawn = _check_drawn(agent, parameters)
    if drawn and count > 1:
        raise UsageError(
            f"inputs: got {count} rows, expected 1 where agent '{agent.id}' draws its {drawn}: all rows would draw the "
            "same numbers"
        )
    if parameters.step is None and (drawn or agent.step is not None):
        raise UsageError(f"step: got none, but agent '{agent.id}' acts by it: send the parameter 'step'")


def _check_drawn(agent: AgentModel, parameters: InferParameters) -> str:
    """What is drawn, in words; empty where nothing is.

    Raises:
        UsageError: it is drawn without a seed.
    """
    noises = drawn_noises(agent, bool(parameters.sample), parameters.instruction_choice)
    drawn = " and ".join(sorted({noise.purpose for noise, _ in noises}))
    if drawn and parameters.seed is None:
        raise UsageError(f"seed: got none, but agent '{agent.id}' draws its {drawn}: send the parameter 'seed'")
    return drawn


def _reset(session: PolicySession, parameters: InferParameters, states: Mapping[str, Array]) -> None:
    session.reset(
        parameters.seed or 0,
        sample=bool(parameters.sample),
        instruction_choice=parameters.instruction_choice,
        first_step=parameters.step or 0,
        states=states,
        next_states=True,
    )


def _stacked(agent: AgentModel, actions: Iterable[Action]) -> Rows:
    """All outputs of all rows by name, [rows, *shape], in the graph's order."""
    every = [{agent.action.name: action.action, **action.diagnostics} for action in actions]
    return {
        tensor.name: np.array([row[tensor.name] for row in every], tensor.dtype).reshape(len(every), *tensor.shape)
        for tensor in graph_outputs(agent)
    }


def _write_parameters(
    response: pb.ModelInferResponse, action: Action, parameters: InferParameters, policy: Policy
) -> None:
    """What a reply of a sequence says beside its tensors: the same as ``ActResponse`` and ``StartEpisodeResponse``."""
    counted = {"step": action.step, "missed_steps": action.missed_steps}
    for name, number in counted.items():
        kind = "int64_param" if number <= _LARGEST_INT64 else "uint64_param"
        setattr(response.parameters[name], kind, number)
    response.parameters["replayed"].bool_param = action.replayed
    if parameters.sequence_start and action.step and policy.recurrent:
        response.parameters["state_reset_mid_episode"].bool_param = True
