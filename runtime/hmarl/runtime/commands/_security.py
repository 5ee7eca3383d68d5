"""The options of what serves that say who is let in."""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import Any

import click

from hmarl.runtime.command_line import PATH, POSITIVE, flag, integer, option
from hmarl.runtime.settings import SecuritySettings

SECRET_VARIABLE = "HMARL_PROBE_SECRET_FD"  # set by hmarl-fleet: the pipe with what a member knows its supervisor by
_OPTIONS = {  # by the field of SecuritySettings
    "tls_cert": option("--tls-cert", "serve over TLS, with this certificate (PEM)", PATH, shown="FILE", variable=True),
    "tls_key": option("--tls-key", "the private key of --tls-cert (PEM)", PATH, shown="FILE", variable=True),
    "tls_client_ca": option(
        "--tls-client-ca",
        "let in only clients with a certificate of this authority (PEM)",
        PATH,
        shown="FILE",
        variable=True,
    ),
    "allow_clients": option(
        "--allow-client",
        "of those, let in only this name (URI, DNS or common name); repeatable",
        many=True,
        shown="NAME",
        parameter="allow_clients",
        variable=True,
    ),
    "allow_file": option(
        "--allow-file", "the same, one name a line; read again when it changes", PATH, shown="FILE", variable=True
    ),
    "token_file": option(
        "--token-file",
        "let in only clients that show a token of this file ('TOKEN' or 'NAME TOKEN' a line); read again at changes",
        PATH,
        shown="FILE",
        variable=True,
    ),
    "open_health": flag(
        "--open-health",
        "answer health checks without a token; with --metrics, /readyz and /livez without a certificate too",
        variable=True,
    ),
    "insecure": flag(
        "--insecure",
        "listen beyond this machine without certificates or tokens, behind something that protects it",
        variable=True,
    ),
    "client_sessions": option(
        "--client-sessions",
        "episodes that one client may have open; 0: any number",
        integer(0),
        default=0,
        variable=True,
    ),
    "client_streams": option(
        "--client-streams", "streams that one client may have open; 0: any number", integer(0), default=0, variable=True
    ),
    "client_rate": option(
        "--client-rate", "requests a second that one client may send; any number unless given", POSITIVE, variable=True
    ),
}


def security_options(*without: str) -> list[click.Option]:
    """All options, but for some that are named by their fields."""
    return [each for name, each in _OPTIONS.items() if name not in without]


def take_security(given: dict[str, Any], probe_secret: str | None = None) -> SecuritySettings:
    """The settings, whose options are taken out of what was given."""
    taken = {name: given.pop(name) for name in _OPTIONS if name in given}
    taken = {name: value for name, value in taken.items() if value is not None}
    return SecuritySettings(**taken, probe_secret=probe_secret)


def handed_over(secret: str) -> int:
    """The end of a pipe from which a child reads a secret: /proc would show an environment for as long as it lives.

    Returns:
        The descriptor, which the caller closes once the child has it.
    """
    reading, writing = os.pipe()
    with open(writing, "wb") as stream:
        stream.write(secret.encode())
    return reading


def inherited_secret() -> str | None:
    """What was handed over to this process; None where nothing was. No child of it inherits that."""
    descriptor = os.environ.pop(SECRET_VARIABLE, None)
    if descriptor is None:
        return None
    with open(int(descriptor), "rb") as stream:
        return stream.read().decode()


def as_words(settings: SecuritySettings) -> Sequence[str]:
    """The settings as a command line for an agent; paths are absolute."""
    words = []
    for name, each in _OPTIONS.items():
        value, option_name = getattr(settings, name), each.opts[0]
        if isinstance(value, bool):
            words += [option_name] if value else []
        elif isinstance(value, tuple):
            words += [f"{option_name}={entry}" for entry in value]
        elif value:
            words += [f"{option_name}={value.absolute() if hasattr(value, 'absolute') else value}"]
    return words
