"""hmarl-keys: a small certificate authority for a team."""

from __future__ import annotations

import datetime
import json
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, NoReturn

from hmarl.runtime.command_line import AS_JSON, PATH, POSITIVE, argument, choice, command, option
from hmarl.runtime.commands._common import run
from hmarl.runtime.commands._output import OUTPUT
from hmarl.runtime.errors import UsageError

if TYPE_CHECKING:
    from hmarl.runtime.authority import Authority, Issued

_FOLDER = Path("keys")
_LAST_WORDS_S = 5.0


@dataclass(frozen=True)
class Request:
    """The command line, as it was understood."""

    names: tuple[str, ...]
    folder: Path
    hosts: tuple[str, ...]
    days: float | None

    def need_names(self, what: str) -> tuple[str, ...]:
        """The names, of which there must be one at least."""
        if not self.names:
            raise UsageError(f"NAMES: got none, expected {what}")
        return self.names


def _authority(request: Request) -> Authority:
    from hmarl.runtime.authority import Authority  # noqa: PLC0415 - cryptography, once it is needed

    return Authority(request.folder)


def _days(request: Request) -> float:
    from hmarl.runtime.authority import CERTIFICATE_DAYS  # noqa: PLC0415

    return request.days or CERTIFICATE_DAYS


def _init(request: Request) -> tuple[Authority, list[Issued]]:
    from hmarl.runtime.authority import AUTHORITY_DAYS, Authority  # noqa: PLC0415

    if len(request.names) > 1:
        raise UsageError(f"NAMES: got {len(request.names)} folders, expected one at most")
    folder = Path(request.names[0]) if request.names else request.folder
    return Authority.create(folder, days=request.days or AUTHORITY_DAYS), []


def _issue(request: Request) -> tuple[Authority, list[Issued]]:
    names, authority = request.need_names("agents' ids"), _authority(request)
    return authority, [authority.issue_agent(name, request.hosts, _days(request)) for name in names]


def _client(request: Request) -> tuple[Authority, list[Issued]]:
    names, authority = request.need_names("clients' names"), _authority(request)
    return authority, [authority.issue_client(name, _days(request)) for name in names]


def _revoke(request: Request) -> tuple[Authority, list[Issued]]:
    names, authority = request.need_names("clients' names"), _authority(request)
    for name in names:
        authority.revoke(name)
    return authority, [each for each in authority.issued() if each.role == "client" and each.name in names]


def _renew(request: Request) -> tuple[Authority, list[Issued]]:
    authority = _authority(request)
    wanted = [each for each in authority.issued() if each.name in request.names] if request.names else authority.due()
    unknown = set(request.names) - {each.name for each in wanted}
    if unknown:
        raise UsageError(f"NAMES: got {', '.join(sorted(unknown))}, expected names that 'hmarl-keys list' shows")
    return authority, [authority.renew(each) for each in wanted]


def _list(request: Request) -> tuple[Authority, list[Issued]]:
    if request.names:
        raise UsageError(f"NAMES: got {' '.join(request.names)}, expected none with list")
    authority = _authority(request)
    return authority, authority.issued()


_ACTIONS: dict[str, Callable[[Request], tuple[Authority, list[Issued]]]] = {
    "init": _init,
    "issue": _issue,
    "client": _client,
    "renew": _renew,
    "revoke": _revoke,
    "list": _list,
}


@command(
    "hmarl-keys",
    argument("action", "init, issue, client, renew, revoke or list", choice(*_ACTIONS)),
    argument(
        "names",
        "init: a folder, in place of --dir; issue: agents' ids; client, revoke: clients' names; renew: either, or none "
        "for all that are due",
        many=True,
        required=False,
    ),
    option("--dir", "the authority's folder", PATH, default=_FOLDER, shown="DIR", parameter="folder"),
    option(
        "--host",
        "issue: a name or address under which the agents are reached, beside localhost and this "
        "machine's name; repeatable",
        many=True,
        shown="HOST",
        parameter="hosts",
    ),
    option("--days", "days that a certificate is valid: 30 unless given, 3650 for the authority's own", POSITIVE),
    AS_JSON,
    examples=(
        "hmarl-keys init",
        "hmarl-keys issue agent_0 agent_1 --host robot.local",
        "hmarl-keys client operator",
        "hmarl-keys revoke operator",
        "hmarl-keys list",
    ),
)
def keys(
    action: str, names: tuple[str, ...], folder: Path, hosts: tuple[str, ...], days: float | None, as_json: bool
) -> None:
    """Make the keys and certificates by which a team's agents and clients know each other.

    init: create the team's certificate authority, a folder. Its key (ca.key) signs all other certificates: keep it
    on one machine, since whoever has it can let anyone in. Its certificate (ca.pem) is no secret; agents and clients
    need it to check each other.

    issue: make a certificate and key for each agent (agents/NAME.pem and .key).

    client: make a certificate and key for each program that asks agents (clients/NAME.pem and .key), and put its name
    on the list of those that are let in (allowed).

    revoke: take clients off that list.

    renew: renew the certificates that have less than a third of their life left. Run it once a day; agents and
    clients pick the new files up by themselves. A running hmarl-fleet that has made this
    authority, or was given it, does so for its own.

    list: show all certificates and when they expire.

    Needs the extra 'secure': pip install 'hmarl[secure]'.
    """
    authority, issued = _ACTIONS[action](Request(names, folder, hosts, days))
    now = datetime.datetime.now(datetime.UTC)
    if as_json:
        OUTPUT.put(json.dumps(_described(authority, issued)))
    else:
        for line in _told(action, authority, issued, now):
            OUTPUT.put(line)
    OUTPUT.flush(_LAST_WORDS_S)


def _described(authority: Authority, issued: Sequence[Issued]) -> dict[str, object]:
    return {
        "authority": {"certificate": str(authority.certificate), "expires_at": authority.expires_at().isoformat()},
        "certificates": [
            {
                "role": each.role,
                "name": each.name,
                "certificate": str(each.certificate),
                "key": str(each.key),
                "hosts": list(each.hosts),
                "expires_at": each.expires_at.isoformat(),
                **({"allowed": each.allowed} if each.role == "client" else {}),
            }
            for each in issued
        ],
    }


def _told(action: str, authority: Authority, issued: Sequence[Issued], now: datetime.datetime) -> list[str]:
    own = f"authority {authority.certificate} {_until(authority.expires_at(), now)}"
    lines = [own] if action in {"init", "list"} else []
    for each in issued:
        more = f", for {', '.join(each.hosts)}" if each.hosts else ""
        off = ", not let in" if each.role == "client" and not each.allowed else ""
        lines.append(f"{each.role} '{each.name}' {each.certificate} {_until(each.expires_at, now)}{more}{off}")
    if action == "init":
        lines.append(
            f"next: hmarl-fleet BUNDLE --tls {authority.path}, or hmarl-keys issue agent_0 --dir {authority.path}"
        )
    if action == "renew" and not issued:
        lines.append("nothing to renew: all have more than a third of their life left")
    return lines


def _until(end: datetime.datetime, now: datetime.datetime) -> str:
    left = (end - now) / datetime.timedelta(days=1)
    when = f"{end:%Y-%m-%d %H:%M} UTC"
    return f"expired on {when}" if left <= 0 else f"expires on {when}, in {left:.1f} days"


def main(arguments: Sequence[str] | None = None) -> NoReturn:
    """Entry point; leaves with the exit code."""
    sys.exit(run(keys, arguments))


if __name__ == "__main__":
    main()
