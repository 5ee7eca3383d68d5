"""The protocol described to who asks: ``grpc.reflection.v1alpha``."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

from hmarl.runtime.door import Context, Line, decoded

REFLECTION_SERVICE = "grpc.reflection.v1alpha.ServerReflection"


def describe(services: Sequence[str], line: Line, bodies: Iterator[bytes], context: Context) -> Iterator[Any]:
    """Answer the questions of one client about the services, as long as it goes on asking."""
    from grpc_reflection.v1alpha import reflection, reflection_pb2  # noqa: PLC0415 - memory that few agents need

    place = line.place(context, "descriptions of the protocol")

    def requests() -> Iterator[Any]:
        for body in bodies:
            line.admit(context)
            line.places.use(place)
            yield decoded(reflection_pb2.ServerReflectionRequest, body)

    try:
        yield from reflection.ReflectionServicer(services).ServerReflectionInfo(requests(), context)
    finally:
        line.places.free(place)
