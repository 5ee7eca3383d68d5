from hmarl.agent.v1 import agent_pb2 as _agent_pb2
from google.protobuf.internal import containers as _containers
from google.protobuf import descriptor as _descriptor
from google.protobuf import message as _message
from collections.abc import Mapping as _Mapping
from typing import ClassVar as _ClassVar, Optional as _Optional, Union as _Union

DESCRIPTOR: _descriptor.FileDescriptor

class FrameRequest(_message.Message):
    __slots__ = ("id", "deadline_ns", "metadata", "act", "start_episode", "end_episode", "get_agent_info", "check_health")
    class MetadataEntry(_message.Message):
        __slots__ = ("key", "value")
        KEY_FIELD_NUMBER: _ClassVar[int]
        VALUE_FIELD_NUMBER: _ClassVar[int]
        key: str
        value: str
        def __init__(self, key: _Optional[str] = ..., value: _Optional[str] = ...) -> None: ...
    ID_FIELD_NUMBER: _ClassVar[int]
    DEADLINE_NS_FIELD_NUMBER: _ClassVar[int]
    METADATA_FIELD_NUMBER: _ClassVar[int]
    ACT_FIELD_NUMBER: _ClassVar[int]
    START_EPISODE_FIELD_NUMBER: _ClassVar[int]
    END_EPISODE_FIELD_NUMBER: _ClassVar[int]
    GET_AGENT_INFO_FIELD_NUMBER: _ClassVar[int]
    CHECK_HEALTH_FIELD_NUMBER: _ClassVar[int]
    id: int
    deadline_ns: int
    metadata: _containers.ScalarMap[str, str]
    act: _agent_pb2.ActRequest
    start_episode: _agent_pb2.StartEpisodeRequest
    end_episode: _agent_pb2.EndEpisodeRequest
    get_agent_info: _agent_pb2.GetAgentInfoRequest
    check_health: CheckHealthRequest
    def __init__(self, id: _Optional[int] = ..., deadline_ns: _Optional[int] = ..., metadata: _Optional[_Mapping[str, str]] = ..., act: _Optional[_Union[_agent_pb2.ActRequest, _Mapping]] = ..., start_episode: _Optional[_Union[_agent_pb2.StartEpisodeRequest, _Mapping]] = ..., end_episode: _Optional[_Union[_agent_pb2.EndEpisodeRequest, _Mapping]] = ..., get_agent_info: _Optional[_Union[_agent_pb2.GetAgentInfoRequest, _Mapping]] = ..., check_health: _Optional[_Union[CheckHealthRequest, _Mapping]] = ...) -> None: ...

class FrameResponse(_message.Message):
    __slots__ = ("id", "error", "act", "start_episode", "end_episode", "get_agent_info", "check_health")
    ID_FIELD_NUMBER: _ClassVar[int]
    ERROR_FIELD_NUMBER: _ClassVar[int]
    ACT_FIELD_NUMBER: _ClassVar[int]
    START_EPISODE_FIELD_NUMBER: _ClassVar[int]
    END_EPISODE_FIELD_NUMBER: _ClassVar[int]
    GET_AGENT_INFO_FIELD_NUMBER: _ClassVar[int]
    CHECK_HEALTH_FIELD_NUMBER: _ClassVar[int]
    id: int
    error: FrameError
    act: _agent_pb2.ActResponse
    start_episode: _agent_pb2.StartEpisodeResponse
    end_episode: _agent_pb2.EndEpisodeResponse
    get_agent_info: _agent_pb2.GetAgentInfoResponse
    check_health: CheckHealthResponse
    def __init__(self, id: _Optional[int] = ..., error: _Optional[_Union[FrameError, _Mapping]] = ..., act: _Optional[_Union[_agent_pb2.ActResponse, _Mapping]] = ..., start_episode: _Optional[_Union[_agent_pb2.StartEpisodeResponse, _Mapping]] = ..., end_episode: _Optional[_Union[_agent_pb2.EndEpisodeResponse, _Mapping]] = ..., get_agent_info: _Optional[_Union[_agent_pb2.GetAgentInfoResponse, _Mapping]] = ..., check_health: _Optional[_Union[CheckHealthResponse, _Mapping]] = ...) -> None: ...

class FrameError(_message.Message):
    __slots__ = ("code", "message")
    CODE_FIELD_NUMBER: _ClassVar[int]
    MESSAGE_FIELD_NUMBER: _ClassVar[int]
    code: int
    message: str
    def __init__(self, code: _Optional[int] = ..., message: _Optional[str] = ...) -> None: ...

class CheckHealthRequest(_message.Message):
    __slots__ = ("service",)
    SERVICE_FIELD_NUMBER: _ClassVar[int]
    service: str
    def __init__(self, service: _Optional[str] = ...) -> None: ...

class CheckHealthResponse(_message.Message):
    __slots__ = ("serving",)
    SERVING_FIELD_NUMBER: _ClassVar[int]
    serving: bool
    def __init__(self, serving: _Optional[bool] = ...) -> None: ...
