"""How requests end, by the codes of gRPC (google.rpc.Code), for all transports; needs no gRPC."""

from __future__ import annotations

from enum import IntEnum


class Code(IntEnum):
    """A status code; numbers and names are gRPC's."""

    OK = 0
    CANCELLED = 1
    UNKNOWN = 2
    INVALID_ARGUMENT = 3
    DEADLINE_EXCEEDED = 4
    NOT_FOUND = 5
    ALREADY_EXISTS = 6
    PERMISSION_DENIED = 7
    RESOURCE_EXHAUSTED = 8
    FAILED_PRECONDITION = 9
    ABORTED = 10
    OUT_OF_RANGE = 11
    UNIMPLEMENTED = 12
    INTERNAL = 13
    UNAVAILABLE = 14
    DATA_LOSS = 15
    UNAUTHENTICATED = 16


def code_of(number: int) -> Code:
    """The code of a number; UNKNOWN for one that has no name."""
    return Code(number) if 0 <= number <= Code.UNAUTHENTICATED else Code.UNKNOWN
