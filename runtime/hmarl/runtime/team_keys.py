"""The certificates of a fleet's members, and of those who ask them on this machine: issued, named, renewed."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace
from pathlib import Path

from hmarl.runtime.authority import Authority, DamagedCertificateError, Role, this_machine
from hmarl.runtime.errors import HmarlError, UsageError
from hmarl.runtime.settings import SecuritySettings

LOGGER = logging.getLogger("hmarl.fleet")
MEMBER_DAYS = 7.0
FLEET = "fleet"  # of the fleet's own page of metrics
LOCAL_CLIENT = "local"  # of programs on this machine that read the endpoints file
_LOOK_EVERY_S = 30.0


class TeamKeys:
    """A fleet's use of an authority, which is made if there is none.

    Args:
        path: the authority's folder.
        agent_ids: the members.
        hosts: names and addresses under which they are reached, beside those of this machine.
        days: that their certificates are valid.
        page: whether the fleet itself needs one, for its page of metrics.
        clock: monotonic seconds.

    Raises:
        UsageError: the folder holds something else, or others may read its key.
        MissingExtraError: the package ``cryptography`` is not installed.
    """

    def __init__(
        self,
        path: Path,
        agent_ids: Iterable[str],
        hosts: Sequence[str] = (),
        days: float = MEMBER_DAYS,
        page: bool = False,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._authority = _opened(path)
        self._hosts = tuple(hosts)
        self._days = days
        self._clock = clock
        self._look_at = 0.0
        self._wanted: list[tuple[Role, str]] = [("client", LOCAL_CLIENT)]
        self._wanted += [("agent", agent_id) for agent_id in agent_ids]
        self._wanted += [("fleet", FLEET)] if page else []
        self._renew()

    def settings(self, agent_id: str, others: SecuritySettings) -> SecuritySettings:
        """What protects a member.

        Args:
            agent_id: which.
            others: what else is asked for.
        """
        return self._settings("agent", agent_id, others)

    def own_settings(self, others: SecuritySettings) -> SecuritySettings:
        """What protects the fleet's own page of metrics, where it has one.

        Args:
            others: what else is asked for.
        """
        return self._settings("fleet", FLEET, others) if ("fleet", FLEET) in self._wanted else others

    def _settings(self, role: Role, name: str, others: SecuritySettings) -> SecuritySettings:
        issued = self._authority.find(role, name)
        return replace(
            others,
            tls_cert=issued.certificate,
            tls_key=issued.key,
            tls_client_ca=self._authority.certificate,
            allow_file=self._authority.allowed,
        )

    def description(self) -> dict[str, str]:
        """Where clients on this machine find what they need, for the endpoints file."""
        issued = self._authority.find("client", LOCAL_CLIENT)
        return {"ca": str(self._authority.certificate), "cert": str(issued.certificate), "key": str(issued.key)}

    def tend(self) -> None:
        """Renew what is due, now and then; members and clients read it again by themselves."""
        if self._clock() < self._look_at:
            return
        try:
            self._renew()
        except Exception as error:  # whatever lies in that folder: looking after the members goes on
            unknown = None if isinstance(error, HmarlError | OSError) else error
            LOGGER.error("cannot renew certificates, trying again in %g s: %s", _LOOK_EVERY_S, error, exc_info=unknown)
        self._look_at = self._clock() + _LOOK_EVERY_S

    def _renew(self) -> None:
        for role, name in self._wanted:
            if role == "client" and not self._authority.has(role, name):
                self._authority.issue_client(name, self._days)
            elif not self._authority.has(role, name) or not self._well(role, name):
                self._authority.replace(role, name, self._hosts_of(role), self._days)
            else:
                continue
            LOGGER.info("issued a certificate for %s '%s'", role, name)
        self._look_at = self._clock() + _LOOK_EVERY_S

    def _well(self, role: Role, name: str) -> bool:
        """Whether a certificate needs no renewal."""
        try:
            issued = self._authority.find(role, name)
        except DamagedCertificateError as error:
            LOGGER.warning("%s; making another one", error)
            return False
        fits = role == "client" or set(self._hosts) <= set(issued.hosts)
        return fits and not self._authority.is_due(issued)

    def _hosts_of(self, role: Role) -> Sequence[str]:
        return [] if role == "client" else list(dict.fromkeys([*this_machine(), *self._hosts]))


def _opened(path: Path) -> Authority:
    """The authority of a folder, which is made if there is none, also when another fleet is making it."""
    try:
        return Authority.create(path)
    except UsageError:
        if not (path / "ca.pem").exists():
            raise
        return Authority(path)
