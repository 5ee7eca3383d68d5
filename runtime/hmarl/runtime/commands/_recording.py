"""The options of the programs that record, and what they stand for."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from hmarl.runtime.command_line import PATH, POSITIVE, option
from hmarl.runtime.recording.settings import RecordSettings

if TYPE_CHECKING:
    from hmarl.runtime.manifest import AgentModel
    from hmarl.runtime.recording.agent import AgentRecorder

LOGGER = logging.getLogger("hmarl.agent")


def record_options() -> tuple[click.Option, ...]:
    """Those of an agent and of a fleet."""
    return (
        option(
            "--record",
            "record all sessions in DIR/AGENT, for hmarl-replay (extra 'record')",
            PATH,
            shown="DIR",
            variable=True,
        ),
        option(
            "--record-total-mb",
            "MiB that an agent's recordings may take; the oldest are deleted",
            POSITIVE,
            default=RecordSettings.total_mb,
            shown="MIB",
            variable=True,
        ),
        option(
            "--record-file-mb",
            "MiB after which a recording goes on in another file",
            POSITIVE,
            default=RecordSettings.file_mb,
            shown="MIB",
            variable=True,
        ),
        option(
            "--record-keep-s",
            "seconds for which recordings are kept",
            POSITIVE,
            default=RecordSettings.keep_s,
            shown="SECONDS",
            variable=True,
        ),
    )


def take_recording(given: dict[str, Any]) -> RecordSettings | None:
    """Take the options out of a command's arguments; None where nothing is to be recorded.

    Raises:
        MissingExtraError: the extra is not installed.
    """
    folder: Path | None = given.pop("record")
    settings = {name: given.pop(f"record_{name}") for name in ("total_mb", "file_mb", "keep_s")}
    if folder is None:
        return None
    from hmarl.runtime.recording import library  # noqa: F401, PLC0415 - part of the record extra, missed at once

    return RecordSettings(folder.absolute(), **settings)


def as_words(settings: RecordSettings | None) -> list[str]:
    """The options that say the same to a member of a fleet."""
    if settings is None:
        return []
    words = [f"--record={settings.folder}", f"--record-total-mb={settings.total_mb!r}"]
    return [*words, f"--record-file-mb={settings.file_mb!r}", f"--record-keep-s={settings.keep_s!r}"]


def recorder(settings: RecordSettings | None, agent: AgentModel) -> AgentRecorder | None:
    """What records an agent; None where nothing is to be recorded.

    Raises:
        UsageError: the folder cannot be made, or is not to be written to.
    """
    if settings is None:
        return None
    from hmarl.runtime.recording.agent import AgentRecorder  # noqa: PLC0415 - part of the record extra

    made = AgentRecorder(settings, agent)
    LOGGER.info("recording all sessions in %s", made.folder)
    return made
