"""What the runtime's command-line programs share: options, and how errors are said."""

from __future__ import annotations

from collections.abc import Sequence

import click

from hmarl.runtime import command_line
from hmarl.runtime.command_line import PATH, POSITIVE, argument, choice, flag, integer, option
from hmarl.runtime.commands._output import ERRORS, LOG_FORMATS, TEXT, say_error
from hmarl.runtime.errors import UsageError
from hmarl.runtime.settings import PROVIDER, ServerSettings

LOG_LEVELS = ("debug", "info", "warning", "error")
_LAST_WORDS_S = 2.0


def bundle_argument() -> click.Argument:
    """The bundle, of all programs."""
    return argument("bundle", "bundle directory or zip", PATH, variable=True)


def provider_option() -> click.Option:
    """Where policies are computed."""
    return option(
        "--provider",
        "where the policy is computed: cpu, cuda[:DEVICE] or tensorrt[:DEVICE]",
        default=PROVIDER,
        shown="NAME",
        variable=True,
    )


def grace_option() -> click.Option:
    """The end of what serves."""
    return option(
        "--grace-s",
        "seconds that running episodes get on SIGTERM",
        POSITIVE,
        default=ServerSettings.grace_s,
        shown="SECONDS",
        variable=True,
    )


def log_level_option(default: str) -> click.Option:
    """What is logged."""
    return option(
        "--log-level",
        f"least level to log: {', '.join(LOG_LEVELS)}",
        choice(*LOG_LEVELS),
        default=default,
        shown="LEVEL",
        variable=True,
    )


def log_format_option() -> click.Option:
    """How it is written."""
    return option(
        "--log-format",
        "of the lines on standard error: text, or json: one object a line",
        choice(*LOG_FORMATS),
        default=TEXT,
        shown="FORMAT",
        variable=True,
    )


def metrics_option(about: str) -> click.Option:
    """Where measurements are read."""
    return option("--metrics", about, shown="HOST:PORT", variable=True)


def traces_option() -> click.Option:
    """Whether requests are traced."""
    return flag("--traces", "send OpenTelemetry traces, as OTEL_* environment variables say (extra 'otel')")


def oip_flag() -> click.Option:
    """Whether other people's clients may ask."""
    return flag("--oip", "speak the Open Inference Protocol too, to clients of Triton and KServe")


def frames_allow_uid_option() -> click.Option:
    """Who may come to the socket of frames."""
    return option(
        "--frames-allow-uid",
        "let programs of this user, by number, use frames, beside its own and root's; repeatable",
        integer(0),
        many=True,
        shown="UID",
        variable=True,
    )


def no_grpc_flag() -> click.Option:
    """Frames alone."""
    return flag("--no-grpc", "serve by frames alone, and do without gRPC's memory and threads")


def check_frames(frames: bool, no_grpc: bool, users: Sequence[int], option: str = "--frames") -> None:
    """Refuse options that make no sense without frames.

    Args:
        frames: whether there is such a door.
        no_grpc: whether there is no other.
        users: who may come to it.
        option: opens it.

    Raises:
        UsageError: with what is missing.
    """
    if no_grpc and not frames:
        raise UsageError(f"--no-grpc: got it without {option}, expected one way in: give {option}")
    if users and not frames:
        raise UsageError(f"--frames-allow-uid: got it without {option}, expected both")


def run(program: command_line.Command, arguments: Sequence[str] | None = None) -> int:
    """Run a program; what goes wrong is said without waiting for whoever reads it.

    Returns:
        The exit code.
    """
    code = command_line.run(program, arguments, say_error)
    ERRORS.flush(_LAST_WORDS_S)
    return code
