"""What the pages of reports have in common: each is one file that holds everything that it shows."""

from __future__ import annotations

import platform
from importlib.metadata import version
from typing import Any

from hmarl.sdk.errors import MissingExtraError


def page_template(name: str) -> Any:
    """A page's template, with the filter ``number``.

    Raises:
        MissingExtraError: a package of the ``eval`` extra is not installed.
    """
    try:
        import jinja2  # noqa: PLC0415 - part of the eval extra
        import matplotlib as mpl  # noqa: F401, PLC0415 - fails here rather than half-way
    except ImportError as error:
        raise MissingExtraError(error.name or "jinja2", "eval", "the HTML report") from error
    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("hmarl.sdk.reports", "templates"), autoescape=True, undefined=jinja2.StrictUndefined
    )
    environment.filters["number"] = number
    return environment.get_template(name)


def surroundings(*packages: str) -> dict[str, Any]:
    """The versions of packages, Python's, and the machine, as pages show them."""
    return {
        "versions": {name: version(name) for name in packages},
        "python": platform.python_version(),
        "machine": f"{platform.system()} {platform.machine()}",
    }


def number(value: Any, digits: int = 2) -> str:
    """A figure for people: fixed digits, a proper minus sign, a dash for what is not there."""
    if value is None:
        return "–"
    return f"{value:,.{digits}f}".replace("-", "\N{MINUS SIGN}")
