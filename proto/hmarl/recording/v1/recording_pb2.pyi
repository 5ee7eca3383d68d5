from hmarl.agent.v1 import agent_pb2 as _agent_pb2
from google.protobuf.internal import containers as _containers
from google.protobuf import descriptor as _descriptor
from google.protobuf import message as _message
from collections.abc import Mapping as _Mapping
from typing import ClassVar as _ClassVar, Optional as _Optional, Union as _Union

DESCRIPTOR: _descriptor.FileDescriptor

class Episode(_message.Message):
    __slots__ = ("episode", "agent_id", "bundle_sha256", "start", "goes_on", "states", "states_lost", "session", "monotonic_ns", "wall_ns")
    class StatesEntry(_message.Message):
        __slots__ = ("key", "value")
        KEY_FIELD_NUMBER: _ClassVar[int]
        VALUE_FIELD_NUMBER: _ClassVar[int]
        key: str
        value: _agent_pb2.Tensor
        def __init__(self, key: _Optional[str] = ..., value: _Optional[_Union[_agent_pb2.Tensor, _Mapping]] = ...) -> None: ...
    EPISODE_FIELD_NUMBER: _ClassVar[int]
    AGENT_ID_FIELD_NUMBER: _ClassVar[int]
    BUNDLE_SHA256_FIELD_NUMBER: _ClassVar[int]
    START_FIELD_NUMBER: _ClassVar[int]
    GOES_ON_FIELD_NUMBER: _ClassVar[int]
    STATES_FIELD_NUMBER: _ClassVar[int]
    STATES_LOST_FIELD_NUMBER: _ClassVar[int]
    SESSION_FIELD_NUMBER: _ClassVar[int]
    MONOTONIC_NS_FIELD_NUMBER: _ClassVar[int]
    WALL_NS_FIELD_NUMBER: _ClassVar[int]
    episode: int
    agent_id: str
    bundle_sha256: str
    start: _agent_pb2.StartEpisodeRequest
    goes_on: bool
    states: _containers.MessageMap[str, _agent_pb2.Tensor]
    states_lost: bool
    session: str
    monotonic_ns: int
    wall_ns: int
    def __init__(self, episode: _Optional[int] = ..., agent_id: _Optional[str] = ..., bundle_sha256: _Optional[str] = ..., start: _Optional[_Union[_agent_pb2.StartEpisodeRequest, _Mapping]] = ..., goes_on: _Optional[bool] = ..., states: _Optional[_Mapping[str, _agent_pb2.Tensor]] = ..., states_lost: _Optional[bool] = ..., session: _Optional[str] = ..., monotonic_ns: _Optional[int] = ..., wall_ns: _Optional[int] = ...) -> None: ...

class Act(_message.Message):
    __slots__ = ("episode", "sequence", "request", "response", "refusal", "monotonic_ns", "wall_ns", "latency_us", "delivery")
    EPISODE_FIELD_NUMBER: _ClassVar[int]
    SEQUENCE_FIELD_NUMBER: _ClassVar[int]
    REQUEST_FIELD_NUMBER: _ClassVar[int]
    RESPONSE_FIELD_NUMBER: _ClassVar[int]
    REFUSAL_FIELD_NUMBER: _ClassVar[int]
    MONOTONIC_NS_FIELD_NUMBER: _ClassVar[int]
    WALL_NS_FIELD_NUMBER: _ClassVar[int]
    LATENCY_US_FIELD_NUMBER: _ClassVar[int]
    DELIVERY_FIELD_NUMBER: _ClassVar[int]
    episode: int
    sequence: int
    request: _agent_pb2.ActRequest
    response: _agent_pb2.ActResponse
    refusal: Refusal
    monotonic_ns: int
    wall_ns: int
    latency_us: float
    delivery: Delivery
    def __init__(self, episode: _Optional[int] = ..., sequence: _Optional[int] = ..., request: _Optional[_Union[_agent_pb2.ActRequest, _Mapping]] = ..., response: _Optional[_Union[_agent_pb2.ActResponse, _Mapping]] = ..., refusal: _Optional[_Union[Refusal, _Mapping]] = ..., monotonic_ns: _Optional[int] = ..., wall_ns: _Optional[int] = ..., latency_us: _Optional[float] = ..., delivery: _Optional[_Union[Delivery, _Mapping]] = ...) -> None: ...

class Refusal(_message.Message):
    __slots__ = ("kind", "message")
    KIND_FIELD_NUMBER: _ClassVar[int]
    MESSAGE_FIELD_NUMBER: _ClassVar[int]
    kind: str
    message: str
    def __init__(self, kind: _Optional[str] = ..., message: _Optional[str] = ...) -> None: ...

class Delivery(_message.Message):
    __slots__ = ("fresh", "fallback_kind", "timeout_us", "session")
    FRESH_FIELD_NUMBER: _ClassVar[int]
    FALLBACK_KIND_FIELD_NUMBER: _ClassVar[int]
    TIMEOUT_US_FIELD_NUMBER: _ClassVar[int]
    SESSION_FIELD_NUMBER: _ClassVar[int]
    fresh: bool
    fallback_kind: str
    timeout_us: float
    session: str
    def __init__(self, fresh: _Optional[bool] = ..., fallback_kind: _Optional[str] = ..., timeout_us: _Optional[float] = ..., session: _Optional[str] = ...) -> None: ...

class Gap(_message.Message):
    __slots__ = ("episode", "acts", "first_step", "last_step", "reason", "wall_ns")
    EPISODE_FIELD_NUMBER: _ClassVar[int]
    ACTS_FIELD_NUMBER: _ClassVar[int]
    FIRST_STEP_FIELD_NUMBER: _ClassVar[int]
    LAST_STEP_FIELD_NUMBER: _ClassVar[int]
    REASON_FIELD_NUMBER: _ClassVar[int]
    WALL_NS_FIELD_NUMBER: _ClassVar[int]
    episode: int
    acts: int
    first_step: int
    last_step: int
    reason: str
    wall_ns: int
    def __init__(self, episode: _Optional[int] = ..., acts: _Optional[int] = ..., first_step: _Optional[int] = ..., last_step: _Optional[int] = ..., reason: _Optional[str] = ..., wall_ns: _Optional[int] = ...) -> None: ...

class End(_message.Message):
    __slots__ = ("episode", "steps", "missed_steps", "reason", "monotonic_ns", "wall_ns")
    EPISODE_FIELD_NUMBER: _ClassVar[int]
    STEPS_FIELD_NUMBER: _ClassVar[int]
    MISSED_STEPS_FIELD_NUMBER: _ClassVar[int]
    REASON_FIELD_NUMBER: _ClassVar[int]
    MONOTONIC_NS_FIELD_NUMBER: _ClassVar[int]
    WALL_NS_FIELD_NUMBER: _ClassVar[int]
    episode: int
    steps: int
    missed_steps: int
    reason: str
    monotonic_ns: int
    wall_ns: int
    def __init__(self, episode: _Optional[int] = ..., steps: _Optional[int] = ..., missed_steps: _Optional[int] = ..., reason: _Optional[str] = ..., monotonic_ns: _Optional[int] = ..., wall_ns: _Optional[int] = ...) -> None: ...
