"""A gRPC server in front of a real agent that answers as other servers may: older ones, or ones that end streams."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from types import TracebackType
from typing import Self

import grpc

from hmarl.agent.v1 import agent_pb2, agent_pb2_grpc


class AgentProxy(agent_pb2_grpc.AgentServiceServicer):
    """Passes requests on to the agent at ``target``.

    Attributes:
        address: where it listens.
        identity: whether replies to StartEpisode say whose session it is, as those of older servers do not.
        stream_length: requests after which a stream is ended once its client is silent; None: never.
        stream_end: the status of that end.
        starts: seconds that StartEpisode takes.
        ended: sessions that were ended.
    """

    def __init__(self, target: str) -> None:
        self._channel = grpc.insecure_channel(target, [("grpc.enable_http_proxy", 0)])
        self._agent = agent_pb2_grpc.AgentServiceStub(self._channel)
        self.identity = True
        self.stream_length: int | None = None
        self.stream_end = grpc.StatusCode.OK
        self.starts_s = 0.0
        self.started: list[str] = []
        self.ended: list[str] = []
        self._wait = threading.Event()
        self._server = grpc.server(ThreadPoolExecutor(8))
        agent_pb2_grpc.add_AgentServiceServicer_to_server(self, self._server)
        self.address = f"127.0.0.1:{self._server.add_insecure_port('127.0.0.1:0')}"
        self._server.start()

    def GetAgentInfo(
        self, request: agent_pb2.GetAgentInfoRequest, context: grpc.ServicerContext
    ) -> agent_pb2.GetAgentInfoResponse:
        return self._agent.GetAgentInfo(request)

    def StartEpisode(
        self, request: agent_pb2.StartEpisodeRequest, context: grpc.ServicerContext
    ) -> agent_pb2.StartEpisodeResponse:
        self._wait.wait(self.starts_s)
        response = self._agent.StartEpisode(request)
        self.started.append(response.session_id)
        if not self.identity:
            response.ClearField("agent_id")
            response.ClearField("bundle_sha256")
        return response

    def Act(self, request: agent_pb2.ActRequest, context: grpc.ServicerContext) -> agent_pb2.ActResponse:
        try:
            return self._agent.Act(request)
        except grpc.RpcError as error:
            context.abort(error.code(), error.details())

    def StreamAct(
        self, request_iterator: Iterator[agent_pb2.StreamActRequest], context: grpc.ServicerContext
    ) -> Iterator[agent_pb2.StreamActResponse]:
        for number, request in enumerate(request_iterator, start=1):
            yield agent_pb2.StreamActResponse(act=self._agent.Act(request.act))
            if number == self.stream_length:
                break
        if self.stream_end is not grpc.StatusCode.OK:
            context.abort(self.stream_end, "the stream was idle")

    def EndEpisode(
        self, request: agent_pb2.EndEpisodeRequest, context: grpc.ServicerContext
    ) -> agent_pb2.EndEpisodeResponse:
        self.ended.append(request.session_id)
        return self._agent.EndEpisode(request)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._wait.set()
        self._server.stop(0).wait(10)
        self._channel.close()
