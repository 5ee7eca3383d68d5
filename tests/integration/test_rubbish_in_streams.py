"""What is no message, from a client that is let in: it counts as any other request, and so does who sends it."""

from __future__ import annotations

import time
from collections.abc import Iterator
from pathlib import Path
from queue import SimpleQueue

import grpc
import pytest

from agent_process import AgentProcess
from hmarl.agent.v1 import agent_pb2
from hmarl.runtime.bundle import Bundle
from secured import bare, write_tokens

TOKEN, OTHER_TOKEN = "correct-horse-battery-staple", "another-horse-battery-staple"
RUBBISH = b"\xff" * 8
Code = grpc.StatusCode


@pytest.fixture
def tokens(tmp_path: Path) -> Path:
    return write_tokens(tmp_path / "tokens", f"robot {TOKEN}", f"operator {OTHER_TOKEN}")


@pytest.fixture
def told(toy_bundle: Bundle, tokens: Path) -> Iterator[AgentProcess]:
    options = ("--token-file", str(tokens), "--client-rate", "20")
    with AgentProcess(toy_bundle.path, "agent_0", options=options) as process:
        yield process


def stream(channel: grpc.Channel, bodies: Iterator[bytes]) -> Iterator[agent_pb2.StreamActResponse]:
    call = channel.stream_stream(
        "/hmarl.agent.v1.AgentService/StreamAct", response_deserializer=agent_pb2.StreamActResponse.FromString
    )
    return call(bodies, timeout=20, metadata=(("authorization", f"Bearer {TOKEN}"),))  # type: ignore[no-any-return]


def test_rubbish_counts_for_the_quota_and_ends_when_its_sender_is_let_in_no_more(
    told: AgentProcess, tokens: Path
) -> None:
    with bare(told.address, token=TOKEN) as client:
        codes = [reply.error.code for reply in stream(client.channel, iter([RUBBISH] * 100))]
        assert set(codes) == {Code.INVALID_ARGUMENT.value[0], Code.RESOURCE_EXHAUSTED.value[0]}
        assert codes.count(Code.RESOURCE_EXHAUSTED.value[0]) > 20
        time.sleep(1.0)  # another second, another quota
        bodies: SimpleQueue[bytes | None] = SimpleQueue()
        replies = stream(client.channel, iter(bodies.get, None))
        bodies.put(RUBBISH)
        assert next(replies).error.code == Code.INVALID_ARGUMENT.value[0]
        write_tokens(tokens, f"operator {OTHER_TOKEN}")
        time.sleep(2.0)  # files are looked at once a second
        bodies.put(RUBBISH)
        with pytest.raises(grpc.RpcError) as ended:
            next(replies)
        assert ended.value.code() is Code.UNAUTHENTICATED
