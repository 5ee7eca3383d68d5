"""What is used of the libraries of the extra ``record``; whoever needs them imports them from here."""

from __future__ import annotations

from hmarl.runtime.errors import MissingExtraError

try:
    import lz4.frame as lz4_frame
    import zstandard
    from mcap.data_stream import ReadDataStream
    from mcap.opcode import Opcode
    from mcap.records import Channel, Chunk, McapRecord, Message, Metadata, Schema
    from mcap.stream_reader import breakup_chunk
    from mcap.well_known import MessageEncoding
    from mcap.writer import MCAP0_MAGIC as MAGIC
    from mcap.writer import CompressionType, Writer
    from mcap_protobuf.schema import build_file_descriptor_set
except ModuleNotFoundError as error:
    package = (error.name or "mcap").partition(".")[0]
    raise MissingExtraError(package, "record", "recording and replaying") from error

__all__ = [
    "MAGIC",
    "Channel",
    "Chunk",
    "CompressionType",
    "McapRecord",
    "Message",
    "MessageEncoding",
    "Metadata",
    "Opcode",
    "ReadDataStream",
    "Schema",
    "Writer",
    "breakup_chunk",
    "build_file_descriptor_set",
    "lz4_frame",
    "zstandard",
]
