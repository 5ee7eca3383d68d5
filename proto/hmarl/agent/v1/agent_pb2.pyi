from google.protobuf.internal import containers as _containers
from google.protobuf.internal import enum_type_wrapper as _enum_type_wrapper
from google.protobuf import descriptor as _descriptor
from google.protobuf import message as _message
from collections.abc import Iterable as _Iterable, Mapping as _Mapping
from typing import ClassVar as _ClassVar, Optional as _Optional, Union as _Union

DESCRIPTOR: _descriptor.FileDescriptor

class DataType(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    DATA_TYPE_UNSPECIFIED: _ClassVar[DataType]
    DATA_TYPE_FLOAT32: _ClassVar[DataType]
    DATA_TYPE_INT64: _ClassVar[DataType]
    DATA_TYPE_BOOL: _ClassVar[DataType]
    DATA_TYPE_UINT8: _ClassVar[DataType]

class InstructionChoice(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    INSTRUCTION_CHOICE_UNSPECIFIED: _ClassVar[InstructionChoice]
    INSTRUCTION_CHOICE_ARGMAX: _ClassVar[InstructionChoice]
    INSTRUCTION_CHOICE_SAMPLE: _ClassVar[InstructionChoice]
    INSTRUCTION_CHOICE_COMMON: _ClassVar[InstructionChoice]
DATA_TYPE_UNSPECIFIED: DataType
DATA_TYPE_FLOAT32: DataType
DATA_TYPE_INT64: DataType
DATA_TYPE_BOOL: DataType
DATA_TYPE_UINT8: DataType
INSTRUCTION_CHOICE_UNSPECIFIED: InstructionChoice
INSTRUCTION_CHOICE_ARGMAX: InstructionChoice
INSTRUCTION_CHOICE_SAMPLE: InstructionChoice
INSTRUCTION_CHOICE_COMMON: InstructionChoice

class Tensor(_message.Message):
    __slots__ = ("data_type", "shape", "data")
    DATA_TYPE_FIELD_NUMBER: _ClassVar[int]
    SHAPE_FIELD_NUMBER: _ClassVar[int]
    DATA_FIELD_NUMBER: _ClassVar[int]
    data_type: DataType
    shape: _containers.RepeatedScalarFieldContainer[int]
    data: bytes
    def __init__(self, data_type: _Optional[_Union[DataType, str]] = ..., shape: _Optional[_Iterable[int]] = ..., data: _Optional[bytes] = ...) -> None: ...

class GetAgentInfoRequest(_message.Message):
    __slots__ = ("bundle_sha256",)
    BUNDLE_SHA256_FIELD_NUMBER: _ClassVar[int]
    bundle_sha256: str
    def __init__(self, bundle_sha256: _Optional[str] = ...) -> None: ...

class GetAgentInfoResponse(_message.Message):
    __slots__ = ("agent_id", "agent_manifest_json", "bundle_name", "bundle_sha256", "algorithm", "execution_provider", "hmarl_version", "control_period_seconds", "environment_json")
    AGENT_ID_FIELD_NUMBER: _ClassVar[int]
    AGENT_MANIFEST_JSON_FIELD_NUMBER: _ClassVar[int]
    BUNDLE_NAME_FIELD_NUMBER: _ClassVar[int]
    BUNDLE_SHA256_FIELD_NUMBER: _ClassVar[int]
    ALGORITHM_FIELD_NUMBER: _ClassVar[int]
    EXECUTION_PROVIDER_FIELD_NUMBER: _ClassVar[int]
    HMARL_VERSION_FIELD_NUMBER: _ClassVar[int]
    CONTROL_PERIOD_SECONDS_FIELD_NUMBER: _ClassVar[int]
    ENVIRONMENT_JSON_FIELD_NUMBER: _ClassVar[int]
    agent_id: str
    agent_manifest_json: str
    bundle_name: str
    bundle_sha256: str
    algorithm: str
    execution_provider: str
    hmarl_version: str
    control_period_seconds: float
    environment_json: str
    def __init__(self, agent_id: _Optional[str] = ..., agent_manifest_json: _Optional[str] = ..., bundle_name: _Optional[str] = ..., bundle_sha256: _Optional[str] = ..., algorithm: _Optional[str] = ..., execution_provider: _Optional[str] = ..., hmarl_version: _Optional[str] = ..., control_period_seconds: _Optional[float] = ..., environment_json: _Optional[str] = ...) -> None: ...

class StartEpisodeRequest(_message.Message):
    __slots__ = ("seed", "sample", "instruction_choice", "first_step", "diagnostics", "bundle_sha256")
    SEED_FIELD_NUMBER: _ClassVar[int]
    SAMPLE_FIELD_NUMBER: _ClassVar[int]
    INSTRUCTION_CHOICE_FIELD_NUMBER: _ClassVar[int]
    FIRST_STEP_FIELD_NUMBER: _ClassVar[int]
    DIAGNOSTICS_FIELD_NUMBER: _ClassVar[int]
    BUNDLE_SHA256_FIELD_NUMBER: _ClassVar[int]
    seed: int
    sample: bool
    instruction_choice: InstructionChoice
    first_step: int
    diagnostics: bool
    bundle_sha256: str
    def __init__(self, seed: _Optional[int] = ..., sample: _Optional[bool] = ..., instruction_choice: _Optional[_Union[InstructionChoice, str]] = ..., first_step: _Optional[int] = ..., diagnostics: _Optional[bool] = ..., bundle_sha256: _Optional[str] = ...) -> None: ...

class StartEpisodeResponse(_message.Message):
    __slots__ = ("session_id", "state_reset_mid_episode", "agent_id", "bundle_sha256")
    SESSION_ID_FIELD_NUMBER: _ClassVar[int]
    STATE_RESET_MID_EPISODE_FIELD_NUMBER: _ClassVar[int]
    AGENT_ID_FIELD_NUMBER: _ClassVar[int]
    BUNDLE_SHA256_FIELD_NUMBER: _ClassVar[int]
    session_id: str
    state_reset_mid_episode: bool
    agent_id: str
    bundle_sha256: str
    def __init__(self, session_id: _Optional[str] = ..., state_reset_mid_episode: _Optional[bool] = ..., agent_id: _Optional[str] = ..., bundle_sha256: _Optional[str] = ...) -> None: ...

class ActRequest(_message.Message):
    __slots__ = ("session_id", "step", "observation", "action_mask")
    SESSION_ID_FIELD_NUMBER: _ClassVar[int]
    STEP_FIELD_NUMBER: _ClassVar[int]
    OBSERVATION_FIELD_NUMBER: _ClassVar[int]
    ACTION_MASK_FIELD_NUMBER: _ClassVar[int]
    session_id: str
    step: int
    observation: Tensor
    action_mask: Tensor
    def __init__(self, session_id: _Optional[str] = ..., step: _Optional[int] = ..., observation: _Optional[_Union[Tensor, _Mapping]] = ..., action_mask: _Optional[_Union[Tensor, _Mapping]] = ...) -> None: ...

class ActResponse(_message.Message):
    __slots__ = ("step", "action", "missed_steps", "replayed", "diagnostics")
    class DiagnosticsEntry(_message.Message):
        __slots__ = ("key", "value")
        KEY_FIELD_NUMBER: _ClassVar[int]
        VALUE_FIELD_NUMBER: _ClassVar[int]
        key: str
        value: Tensor
        def __init__(self, key: _Optional[str] = ..., value: _Optional[_Union[Tensor, _Mapping]] = ...) -> None: ...
    STEP_FIELD_NUMBER: _ClassVar[int]
    ACTION_FIELD_NUMBER: _ClassVar[int]
    MISSED_STEPS_FIELD_NUMBER: _ClassVar[int]
    REPLAYED_FIELD_NUMBER: _ClassVar[int]
    DIAGNOSTICS_FIELD_NUMBER: _ClassVar[int]
    step: int
    action: Tensor
    missed_steps: int
    replayed: bool
    diagnostics: _containers.MessageMap[str, Tensor]
    def __init__(self, step: _Optional[int] = ..., action: _Optional[_Union[Tensor, _Mapping]] = ..., missed_steps: _Optional[int] = ..., replayed: _Optional[bool] = ..., diagnostics: _Optional[_Mapping[str, Tensor]] = ...) -> None: ...

class StreamActRequest(_message.Message):
    __slots__ = ("act", "metadata")
    class MetadataEntry(_message.Message):
        __slots__ = ("key", "value")
        KEY_FIELD_NUMBER: _ClassVar[int]
        VALUE_FIELD_NUMBER: _ClassVar[int]
        key: str
        value: str
        def __init__(self, key: _Optional[str] = ..., value: _Optional[str] = ...) -> None: ...
    ACT_FIELD_NUMBER: _ClassVar[int]
    METADATA_FIELD_NUMBER: _ClassVar[int]
    act: ActRequest
    metadata: _containers.ScalarMap[str, str]
    def __init__(self, act: _Optional[_Union[ActRequest, _Mapping]] = ..., metadata: _Optional[_Mapping[str, str]] = ...) -> None: ...

class StreamActResponse(_message.Message):
    __slots__ = ("act", "error")
    ACT_FIELD_NUMBER: _ClassVar[int]
    ERROR_FIELD_NUMBER: _ClassVar[int]
    act: ActResponse
    error: StreamActError
    def __init__(self, act: _Optional[_Union[ActResponse, _Mapping]] = ..., error: _Optional[_Union[StreamActError, _Mapping]] = ...) -> None: ...

class StreamActError(_message.Message):
    __slots__ = ("step", "code", "message")
    STEP_FIELD_NUMBER: _ClassVar[int]
    CODE_FIELD_NUMBER: _ClassVar[int]
    MESSAGE_FIELD_NUMBER: _ClassVar[int]
    step: int
    code: int
    message: str
    def __init__(self, step: _Optional[int] = ..., code: _Optional[int] = ..., message: _Optional[str] = ...) -> None: ...

class EndEpisodeRequest(_message.Message):
    __slots__ = ("session_id",)
    SESSION_ID_FIELD_NUMBER: _ClassVar[int]
    session_id: str
    def __init__(self, session_id: _Optional[str] = ...) -> None: ...

class EndEpisodeResponse(_message.Message):
    __slots__ = ("steps", "missed_steps")
    STEPS_FIELD_NUMBER: _ClassVar[int]
    MISSED_STEPS_FIELD_NUMBER: _ClassVar[int]
    steps: int
    missed_steps: int
    def __init__(self, steps: _Optional[int] = ..., missed_steps: _Optional[int] = ...) -> None: ...
