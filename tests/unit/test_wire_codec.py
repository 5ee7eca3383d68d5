"""The codec of ``hmarl.agent.v1``: arrays, acts, replies and choices as messages and back."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from hmarl.agent.v1 import agent_pb2
from hmarl.agent.v1.messages import (
    INSTRUCTION_CHOICES,
    choice_name,
    read_act,
    refusal,
    status_of,
    write_act,
    write_reply,
)
from hmarl.agent.v1.status import Code
from hmarl.agent.v1.tensors import WireError, to_action, to_array, to_own_array, to_tensor
from hmarl.runtime.choices import CHOICES, checked_choice, effective_choice
from hmarl.runtime.errors import UsageError

ROOT = Path(__file__).parents[2]
INT64, FLOAT32 = np.dtype(np.int64), np.dtype(np.float32)


@pytest.mark.parametrize("array", [np.arange(6, dtype=np.float32).reshape(2, 3), np.array([-1, 2**40]), np.eye(2) > 0])
def test_an_array_comes_back_as_it_went(array: np.ndarray) -> None:
    tensor = agent_pb2.Tensor.FromString(to_tensor(array).SerializeToString())
    for got in (to_array(tensor, "x"), to_array(tensor, "x", list(array.shape)), to_own_array(tensor, "x")):
        np.testing.assert_array_equal(got, array)
        assert got.dtype == array.dtype
    own = to_own_array(tensor, "x")
    own[...] = 0  # the caller's own, and writable
    np.testing.assert_array_equal(to_array(tensor, "x"), array)


def test_a_request_is_read_as_it_was_written() -> None:
    observation, mask = np.arange(3, dtype=np.float32), np.array([True, False])
    request = agent_pb2.ActRequest()
    write_act(request, "s", 7, observation, mask)
    assert (request.session_id, request.step) == ("s", 7)
    for got, sent in zip(read_act(request, [3], [2]), (observation, mask), strict=True):
        np.testing.assert_array_equal(got, sent)
    bare = agent_pb2.ActRequest()
    write_act(bare, "s", 0, observation, None)
    assert read_act(bare, [3], [2])[1] is None
    with pytest.raises(WireError, match=r"^x\.shape: got 12 bytes for 2 sizes, expected the shape \(4,\)$"):
        to_array(to_tensor(observation[None]), "x", [4])
    with pytest.raises(WireError, match=r"^action_mask\.shape: got bool \(2,\), expected the shape \(5,\)$"):
        read_act(request, [3], [5])


def test_a_reply_holds_what_was_written_and_no_default_values() -> None:
    reply = agent_pb2.ActResponse()
    write_reply(reply, 3, 5, 2, True, {"logits": np.ones(2, np.float32)})
    assert (reply.step, reply.missed_steps, reply.replayed) == (5, 2, True)
    assert to_action(reply.action, "action", (), INT64) == 3
    np.testing.assert_array_equal(to_own_array(reply.diagnostics["logits"], "logits"), [1.0, 1.0])
    least = agent_pb2.ActResponse()
    write_reply(least, 0, 0, 0, False, {})
    assert least.ListFields() == [(least.DESCRIPTOR.fields_by_name["action"], least.action)]


@pytest.mark.parametrize(
    ("value", "shape", "dtype", "said"),
    [
        (np.ones(2, np.float32), (3,), FLOAT32, r"action.shape: got float32 \(2,\), expected the shape \(3,\)"),
        (np.ones(2, np.float32), (2,), INT64, "action.data_type: got float32, expected int64"),
        (np.array(1.0, np.float32), (), INT64, "action.data_type: got float32, expected int64"),
        (4, (2,), INT64, r"action.shape: got 8 bytes for 0 sizes, expected the shape \(2,\)"),
        (np.array([4]), (), INT64, r"action.shape: got 8 bytes for 1 sizes, expected the shape \(\)"),
    ],
)
def test_an_action_of_another_form_is_refused(
    value: int | np.ndarray, shape: tuple[int, ...], dtype: np.dtype, said: str
) -> None:
    with pytest.raises(WireError, match=f"^{said}$"):
        to_action(to_tensor(value), "action", shape, dtype)


def test_a_refusal_carries_every_status_code() -> None:
    for code in Code:
        response = refusal(4, code, "no")
        assert (status_of(response.error), response.error.step, response.error.message) == (code, 4, "no")
    assert status_of(agent_pb2.StreamActError(code=99)) is Code.UNKNOWN


def test_the_protocol_and_the_runtime_know_the_same_choices() -> None:
    assert set(INSTRUCTION_CHOICES) == {None, *CHOICES}
    assert {choice_name(number) for number in INSTRUCTION_CHOICES.values()} == {None, *CHOICES}
    assert INSTRUCTION_CHOICES["common"] == agent_pb2.INSTRUCTION_CHOICE_COMMON
    assert (effective_choice(None, True), effective_choice(None, False)) == ("common", "argmax")
    assert effective_choice("sample", False) == "sample"
    with pytest.raises(WireError, match=r"^instruction_choice: got 17, expected one of \[0, 1, 2, 3\]$"):
        choice_name(17)
    for wrong in ("best", 1, ["argmax"], np.zeros(2)):
        with pytest.raises(UsageError, match=r"^instruction_choice: got .*, expected one of argmax, sample, common$"):
            checked_choice(wrong)


def test_nothing_else_lists_the_choices_or_builds_tensors() -> None:
    """Listed by hand or written field by field elsewhere, a new choice or data type would be forgotten there."""
    listing = re.compile(r"DATA_TYPE_|INSTRUCTION_CHOICE_|[\"']argmax[\"'], *[\"']sample[\"']")
    sources = [path for part in ("runtime", "sdk", "trainer", "scripts") for path in (ROOT / part).rglob("*.py")]
    found = {path.name for path in sources if listing.search(path.read_text())}
    assert found == {"choices.py"}


def test_the_codec_imports_nothing_else_of_hmarl() -> None:
    program = (
        "import sys, hmarl.agent.v1.messages; "
        "print(*sorted(name for name in sys.modules if name.startswith('hmarl.') and 'hmarl.agent' not in name))"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True, timeout=120)
    assert done.stdout.split() == []
