"""A client of the Open Inference Protocol, with the project's own generated stubs."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from types import TracebackType
from typing import Any, Self

import grpc
import numpy as np

from hmarl.oip import open_inference_pb2 as pb
from hmarl.oip import open_inference_pb2_grpc as pb_grpc

DATATYPES = {"float32": "FP32", "int64": "INT64", "bool": "BOOL"}
FIELDS = {"FP32": "fp32_contents", "INT64": "int64_contents", "BOOL": "bool_contents"}
Arrays = Mapping[str, np.ndarray]


def parameter(value: bool | int | float | str) -> pb.InferParameter:
    """As Triton's clients send it."""
    if isinstance(value, bool):
        return pb.InferParameter(bool_param=value)
    if isinstance(value, int):
        return pb.InferParameter(int64_param=value)
    return pb.InferParameter(**{"string_param" if isinstance(value, str) else "double_param": value})


def infer_request(
    model: str, inputs: Arrays, *, raw: bool = True, outputs: Sequence[str] = (), version: str = "", **parameters: Any
) -> pb.ModelInferRequest:
    """A request with these inputs [rows, *shape]."""
    request = pb.ModelInferRequest(model_name=model, model_version=version, id="7")
    for name, array in inputs.items():
        tensor = request.inputs.add(name=name, datatype=DATATYPES[array.dtype.name], shape=array.shape)
        if raw:
            request.raw_input_contents.append(array.tobytes())
        else:
            getattr(tensor.contents, FIELDS[tensor.datatype]).extend(array.ravel().tolist())
    for output in outputs:
        request.outputs.add(name=output)
    for name, value in parameters.items():
        request.parameters[name].CopyFrom(parameter(value))
    return request


def outputs_of(response: pb.ModelInferResponse) -> dict[str, np.ndarray]:
    """The reply's arrays by name."""
    arrays = {}
    for index, output in enumerate(response.outputs):
        dtype = next(dtype for dtype, datatype in DATATYPES.items() if datatype == output.datatype)
        if response.raw_output_contents:
            arrays[output.name] = np.frombuffer(response.raw_output_contents[index], dtype).reshape(output.shape)
        else:
            got = getattr(output.contents, FIELDS[output.datatype])
            arrays[output.name] = np.array(got, dtype).reshape(output.shape)
    return arrays


class InferenceClient:
    """One connection to an agent, and its model."""

    def __init__(self, address: str, model: str = "agent_0") -> None:
        self.model = model
        # Channels of one process share connections unless they are told not to, and so would be one peer.
        self.channel = grpc.insecure_channel(address, (("grpc.use_local_subchannel_pool", 1),))
        self.stub = pb_grpc.GRPCInferenceServiceStub(self.channel)

    def reply(self, inputs: Arrays, **more: Any) -> pb.ModelInferResponse:
        return self.stub.ModelInfer(infer_request(self.model, inputs, **more), timeout=20)

    def infer(self, inputs: Arrays, **more: Any) -> dict[str, np.ndarray]:
        return outputs_of(self.reply(inputs, **more))

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.channel.close()
