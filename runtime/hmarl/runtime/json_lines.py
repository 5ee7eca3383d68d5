"""Log records as JSON, one object a line, for programs that collect logs."""

from __future__ import annotations

import json
import logging
import time

from hmarl.runtime import request_ids

_LONGEST = 16384  # characters of a message or traceback


class JsonLines(logging.Formatter):
    """``{"time", "level", "logger", "agent", "message", "request_id", "error"}``, the latter three where there are any.

    Args:
        agent: whose log it is.
    """

    def __init__(self, agent: str | None = None) -> None:
        super().__init__()
        self._agent = agent

    def format(self, record: logging.LogRecord) -> str:
        """One line."""
        error = self.formatException(record.exc_info) if record.exc_info and record.exc_info[0] is not None else None
        return self.line(record.levelname.lower(), record.name, record.getMessage(), error, record.created)

    def line(self, level: str, logger: str, message: str, error: str | None = None, at: float | None = None) -> str:
        """One line.

        Args:
            level: in small letters.
            logger: who says it.
            message: what.
            error: a traceback.
            at: when, in seconds since 1970; None for now.
        """
        fields = {
            "time": _time(time.time() if at is None else at),
            "level": level,
            "logger": logger,
            "agent": self._agent,
            "message": message[:_LONGEST],
            "request_id": request_ids.current(),
            "error": None if error is None else error[-_LONGEST:],
        }
        return json.dumps({name: value for name, value in fields.items() if value is not None})


def _time(at: float) -> str:
    """RFC 3339, in UTC, to the millisecond."""
    whole = time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(at))
    return f"{whole}.{int(at * 1000) % 1000:03d}Z"
