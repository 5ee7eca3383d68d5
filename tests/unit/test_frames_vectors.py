"""The test vectors of frames: protobuf reads and writes exactly these bytes."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from google.protobuf import json_format

from hmarl.agent.v1 import frames_pb2

VECTORS = json.loads((Path(__file__).parents[2] / "proto" / "conformance" / "frames.json").read_text())
KINDS: dict[str, Any] = {"FrameRequest": frames_pb2.FrameRequest, "FrameResponse": frames_pb2.FrameResponse}


@pytest.mark.parametrize("vector", VECTORS["frames"], ids=lambda vector: vector["name"])
def test_a_message_is_these_bytes_and_they_are_this_message(vector: dict[str, Any]) -> None:
    message = json_format.ParseDict(vector["json"], KINDS[vector["message"]]())
    content = bytes.fromhex(vector["hex"])
    prefix = 1 if content[0] < 0x80 else 2
    assert message.SerializeToString(deterministic=True) == content[prefix:]
    assert KINDS[vector["message"]].FromString(content[prefix:]) == message
    length = content[0] & 0x7F | (content[1] << 7 if prefix == 2 else 0)
    assert length == len(content) - prefix
