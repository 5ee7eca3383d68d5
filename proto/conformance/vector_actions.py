"""Replies to an act, those that a client takes and those that it never obeys."""

from __future__ import annotations

from typing import Any

import numpy as np

from hmarl.agent.v1 import agent_pb2 as pb
from hmarl.agent.v1.tensors import to_tensor

MASK = [True, True, False, True, True]  # of five choices; of three and two
STEP = 0


def actions() -> list[dict[str, Any]]:
    """The file's content."""
    return [
        _case("a choice", "discrete", 3, obeyed=True),
        _case("the first past the last", "discrete", 5),
        _case("far out of range", "discrete", 99),
        _case("below zero", "discrete", -1),
        _case("beyond a double's integers", "discrete", 2**62),
        _case("illegal", "discrete", 2),
        _case("a number that is no choice", "discrete", np.array(2.5, np.float32)),
        _case("another step's", "discrete", 3, step=STEP + 1),
        _case("two choices", "branches", np.array([1, 0]), obeyed=True),
        _case("out of range in the first branch", "branches", np.array([3, 0])),
        _case("out of range in the second branch", "branches", np.array([0, 2])),
        _case("below zero in the second branch", "branches", np.array([0, -1])),
        _case("illegal in the first branch", "branches", np.array([2, 0])),
        _case("a branch too few", "branches", np.array([1])),
        _case("numbers", "continuous", np.array([0.5, 2.0], np.float32), obeyed=True),
        _case("numbers past their bounds", "continuous", np.array([5.0, -7.0], np.float32), obeyed=True),
        _case("NaN", "continuous", np.array([np.nan, 1.0], np.float32)),
        _case("infinity", "continuous", np.array([0.0, -np.inf], np.float32)),
        _case("a number too many", "continuous", np.array([0.0, 0.0, 0.0], np.float32)),
    ]


def _case(name: str, agent: str, action: Any, *, obeyed: bool = False, step: int = STEP) -> dict[str, Any]:
    reply = pb.ActResponse(step=step, action=to_tensor(action))
    case = {"name": name, "agent": agent, "hex": reply.SerializeToString(deterministic=True).hex()}
    case |= {"action": np.asarray(action).tolist()} if obeyed else {}
    return case if agent == "continuous" else {**case, "action_mask": MASK}
