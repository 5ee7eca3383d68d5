"""Lines that are written by a thread of their own: in order, counted where they are lost, never waited for."""

from __future__ import annotations

import os

from full_pipe import FullPipe
from hmarl.runtime.commands._output import LINES, Writer


def lost(lines: int) -> str:
    return f"{lines} lost"


def test_lines_come_out_in_order() -> None:
    reader, descriptor = os.pipe()
    writer = Writer(descriptor, "utf-8")
    for number in range(50):
        writer.put(f"line {number}")
    assert writer.flush(20)
    os.close(descriptor)
    with open(reader, encoding="utf-8") as stream:
        assert stream.read().splitlines() == [f"line {number}" for number in range(50)]


def test_what_nothing_reads_is_lost_and_counted_where_it_is_missing() -> None:
    with FullPipe() as pipe:
        writer = Writer(pipe.writer, "utf-8", lost)
        total = 3 * LINES
        for number in range(total):
            writer.put(f"line {number}")
        assert not writer.flush(0.1)
        waiting = os.read(pipe.reader, 2**20)
        assert set(waiting) == {ord(".")}
        while not writer.flush(0.05):  # the reader reads again
            waiting += os.read(pipe.reader, 2**20)
        writer.put("the last line")
        assert writer.flush(20)
        lines = (waiting.decode() + pipe.read_to_the_end()).lstrip(".").splitlines()
    kept = [line for line in lines if line.startswith("line ")]
    assert kept == [f"line {number}" for number in range(len(kept))], "the first ones, in order"
    assert LINES <= len(kept) <= LINES + 1
    assert lines[len(kept) :] == [f"{total - len(kept)} lost", "the last line"]


def test_what_the_encoding_cannot_express_is_written_in_plain_letters() -> None:
    reader, descriptor = os.pipe()
    writer = Writer(descriptor, "ascii")
    writer.put("± 1 … é")
    assert writer.flush(20)
    assert os.read(reader, 100) == b"+- 1 ... e\n"
    os.close(reader)
    writer.put("no reader is left")  # a broken pipe
    assert writer.flush(20)
    os.close(descriptor)


def test_without_a_stream_nothing_is_written() -> None:
    writer = Writer(None, "utf-8")
    writer.put("line")
    assert writer.flush(0)
