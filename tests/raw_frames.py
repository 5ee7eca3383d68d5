"""A client of frames made of a socket and nothing of the SDK's: as in another language, or a rude one."""

from __future__ import annotations

import socket
from types import TracebackType
from typing import Any, Self

import numpy as np

from hmarl.agent.v1 import agent_pb2
from hmarl.agent.v1.frames_pb2 import FrameRequest, FrameResponse
from hmarl.agent.v1.framing import FrameReader, framed
from hmarl.agent.v1.tensors import to_tensor

LIMIT_S = 30.0


class RawFrames:
    """One connection.

    Args:
        address: ``frames:path``.
        size: of the agent's observations.
        mask: of its masks; 0 for none.
    """

    def __init__(self, address: str, size: int = 6, mask: int = 5) -> None:
        self.socket = socket.socket(socket.AF_UNIX)
        self.socket.settimeout(LIMIT_S)
        self.socket.connect(address.removeprefix("frames:"))
        self._size, self._mask = size, mask
        self._reader, self._came = FrameReader(2**26), list[FrameResponse]()
        self._last_id = 0

    def send(self, **fields: Any) -> int:
        """Send a request; returns its id."""
        self._last_id += 1
        self.socket.sendall(framed(FrameRequest(**{"id": self._last_id, **fields})))
        return self._last_id

    def receive(self) -> FrameResponse:
        """The next response.

        Raises:
            EOFError: the agent has closed the connection.
        """
        while not self._came:
            data = self.socket.recv(self._reader.wanted_bytes)
            if not data:
                raise EOFError
            self._came += map(FrameResponse.FromString, self._reader.take(data))
        return self._came.pop(0)

    def ask(self, **fields: Any) -> FrameResponse:
        """The response to a request."""
        number = self.send(**fields)
        response = self.receive()
        assert response.id in (number, 0)
        return response

    def start(self, **fields: Any) -> str:
        """A new session."""
        return self.ask(start_episode=agent_pb2.StartEpisodeRequest(**fields)).start_episode.session_id

    def request(self, session_id: str, step: int) -> agent_pb2.ActRequest:
        """An act's."""
        observation = np.random.default_rng(step).normal(size=self._size).astype(np.float32)
        mask = to_tensor(np.ones(self._mask, np.bool_)) if self._mask else None
        return agent_pb2.ActRequest(
            session_id=session_id, step=step, observation=to_tensor(observation), action_mask=mask
        )

    def act(self, session_id: str, step: int, **fields: Any) -> FrameResponse:
        """The response to an act."""
        return self.ask(act=self.request(session_id, step), **fields)

    @property
    def ended(self) -> bool:
        """Whether the agent closes the connection, whatever it still says."""
        try:
            while True:
                self.receive()
        except (EOFError, ConnectionError):
            return True

    def close(self) -> None:
        self.socket.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()
