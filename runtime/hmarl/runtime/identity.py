"""Who calls: what a client shows (a certificate, a token), whether it is let in, and what it is called from then on."""

from __future__ import annotations

import logging
import time
from collections import Counter, OrderedDict
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple, TypeAlias

from hmarl.runtime import hashing
from hmarl.runtime.errors import ForbiddenError, HmarlError, QuotaError, UnauthenticatedError, one_line
from hmarl.runtime.places import UNKNOWN_PEER
from hmarl.runtime.quotas import RequestQuota
from hmarl.runtime.reloading import Reloaded
from hmarl.runtime.repeats import RepeatLog
from hmarl.runtime.secret_files import Tokens

if TYPE_CHECKING:
    import grpc

Context: TypeAlias = "grpc.ServicerContext"
Metadata: TypeAlias = Iterable[tuple[str, str | bytes]]
_Properties: TypeAlias = Mapping[str, Sequence[bytes]]
_BEARER = "bearer "
_TOLD_CERTIFICATES = 1024


@dataclass(frozen=True)
class Caller:
    """Who calls.

    Attributes:
        name: tells one client from another; who counts for quotas and limits.
        owner: whose sessions it may act in; None where clients cannot prove who they are.
    """

    name: str
    owner: str | None = None


_PROBE = Caller("the process itself")


class Shown(NamedTuple):
    """What a caller shows, by whatever protocol.

    Attributes:
        tls: whether it came encrypted.
        pem: its certificate, which TLS has verified; empty without one.
        names: those of its certificate: URIs, DNS names, common names.
        bearer: its token; None without one.
    """

    tls: bool
    pem: bytes
    names: Sequence[str]
    bearer: str | None


@dataclass(frozen=True)
class Asked:
    """What clients have to show.

    Attributes:
        tls: an encrypted connection.
        certificates: a client certificate, which TLS has verified.
        allowed: the names that are let in; None for all.
        listed: further such names, of a file; None for none.
        tokens: one of these bearer tokens; None for none.
    """

    tls: bool = False
    certificates: bool = False
    allowed: frozenset[str] | None = None
    listed: Reloaded[frozenset[str]] | None = None
    tokens: Reloaded[Tokens] | None = None

    def allows(self, name: str) -> bool:
        """Whether a certificate of this name is let in."""
        if self.allowed is None and self.listed is None:
            return True
        return name in (self.allowed or ()) or (self.listed is not None and name in self.listed.value)

    def look(self) -> bool:
        """See at once whether the files say something else by now."""
        looked = [each.look() for each in (self.listed, self.tokens) if each is not None]
        return any(looked)


class Guard:
    """Lets callers in or not, and knows those whose calls are open.

    Args:
        asked: what they have to show.
        quota: how many requests a second they may send.
        log: told of those that are not let in.
        secret: shown by the process itself, or its supervisor; None makes one up.
        clock: seconds since 1970.

    Attributes:
        asked: what callers have to show.
        rejected: how many calls were not let in, by reason: ``plaintext``, ``certificate``, ``token``, ``quota``.
    """

    def __init__(
        self,
        asked: Asked,
        quota: RequestQuota,
        log: RepeatLog,
        secret: str | None = None,
        clock: Callable[[], float] = time.time,
    ) -> None:
        self.asked = asked
        self.rejected: Counter[str] = Counter()
        self._quota = quota
        self._log = log
        self._secret = (secret or hashing.token_urlsafe(32)).encode()
        self._clock = clock
        self._told = asked.tls or asked.tokens is not None
        # Without a lock: adding, removing and finding are one step each.
        self._callers: dict[Context, Caller] = {}
        self._expiries: OrderedDict[bytes, float] = OrderedDict()

    @property
    def metadata(self) -> tuple[tuple[str, str], ...]:
        """What the process shows when it calls itself."""
        return (("authorization", f"Bearer {self._secret.decode()}"),) if self._told else ()

    @property
    def own_metadata(self) -> dict[str, str]:
        """The same where nothing else is asked for, but the process is to be told from others."""
        return {"authorization": f"Bearer {self._secret.decode()}"}

    def is_own(self, metadata: Metadata) -> bool:
        """Whether a request shows the secret of the process itself, or its supervisor."""
        bearer = bearer_of(metadata)
        return bearer is not None and hashing.equal(bearer.encode(), self._secret)

    def count(self, caller: Caller) -> None:
        """Count a request of a caller that is known and let in.

        Raises:
            QuotaError: it has sent too many.
        """
        if self._quota.per_s:
            try:
                self._quota.take(caller.name)
            except QuotaError as error:
                raise self.reject(error, caller.name) from None

    def reject(self, error: HmarlError, caller: str) -> HmarlError:
        """Count and log that a caller is not let in; returns the error, to be raised.

        Args:
            error: whose message begins with what it is about.
            caller: who it is.
        """
        reason = str(error).partition(":")[0]
        self.rejected["quota" if isinstance(error, QuotaError) else reason] += 1
        self._log.say(f"rejected {type(error).__name__}", logging.WARNING, f"rejected {caller}: {error}")
        return error

    def admit(self, context: Context, *, open_to_all: bool = False) -> None:
        """Let a call in, or another request of one that is open.

        Args:
            context: the call.
            open_to_all: whatever it shows.

        Raises:
            UnauthenticatedError: it does not show what is asked for.
            ForbiddenError: its name is not among those that are let in.
            QuotaError: its client has sent too many requests.
        """
        try:
            if self._told and not open_to_all:
                caller = self._identify(context)
                self._callers[context] = caller
                if caller is _PROBE:
                    return
        except HmarlError as error:
            raise self.reject(error, peer_of(context)) from None
        if self._quota.per_s:
            self.count(self.caller(context))

    def admit_reader(self, shown: Shown, peer: str) -> None:
        """Let one in who asks by another protocol than gRPC, by the same rules.

        Args:
            shown: what it shows.
            peer: its host.

        Raises:
            UnauthenticatedError: see ``admit``, for this and the others.
            ForbiddenError: likewise.
            QuotaError: likewise.
        """
        try:
            name = self._name_of(shown)
        except HmarlError as error:
            raise self.reject(error, peer) from None
        self.count(Caller(name or peer))

    def dismiss(self, context: Context) -> None:
        """Forget a call that has ended."""
        self._callers.pop(context, None)

    def caller(self, context: Context) -> Caller:
        """Who makes a call that was let in."""
        return self._callers.get(context) or Caller(peer_of(context))

    def _identify(self, context: Context) -> Caller:
        metadata = context.invocation_metadata()
        if self.is_own(metadata):
            return _PROBE
        name = self._name_of(_shown(context.auth_context() if self.asked.tls else {}, bearer_of(metadata)))
        return Caller(peer_of(context)) if name is None else Caller(name, name)

    def _name_of(self, shown: Shown) -> str | None:
        """Who shows this; None where nothing is asked for that would say so."""
        names = []
        if self.asked.tls:
            if not shown.tls:
                raise UnauthenticatedError("plaintext: got a call without TLS, expected one over TLS")
            if self.asked.certificates:
                names.append(self._certified_name(shown.pem, shown.names))
        if self.asked.tokens is not None:
            names.append(self._token_name(self.asked.tokens, shown.bearer))
        return "\0".join(names) or None

    def _certified_name(self, pem: bytes, names: Sequence[str]) -> str:
        """The name by which a client's certificate is let in."""
        if not pem:
            raise UnauthenticatedError(
                "certificate: got none, expected one of this agent's authority (--tls-client-ca)"
            )
        if not names:
            raise UnauthenticatedError("certificate: got no name in it, expected a URI, a DNS name or a common name")
        if self._clock() > self._expiry(pem):
            raise UnauthenticatedError(
                f"certificate: that of '{one_line(names[0], 100)}' has expired since the connection was made: renew "
                "it, and connect again"
            )
        found = next(filter(self.asked.allows, names), None)
        if found is None and self.asked.look():  # put on the list a moment ago
            found = next(filter(self.asked.allows, names), None)
        if found is not None:
            return found
        raise ForbiddenError(
            f"certificate: got '{one_line(', '.join(names), 150)}', which is not among the clients that are let in "
            "(--allow-client): ask whoever runs this agent to add it"
        )

    def _token_name(self, tokens: Reloaded[Tokens], bearer: str | None) -> str:
        """Whose token it is."""
        if bearer is None:
            raise UnauthenticatedError(
                "token: got none, expected metadata 'authorization: Bearer TOKEN' with one of this agent's tokens "
                "(--token-file): give the client a token file"
            )
        name = tokens.value.name_of(bearer)
        if name is None and self.asked.look():
            name = tokens.value.name_of(bearer)
        if name is None:
            raise UnauthenticatedError(
                "token: got one that is none of this agent's (--token-file): has it been replaced? Give the client's "
                "token file the present one"
            )
        return name

    def _expiry(self, pem: bytes) -> float:
        found = self._expiries.get(pem)
        if found is None:
            from hmarl.runtime.certificates import validity  # noqa: PLC0415 - only where there are certificates

            try:
                found = validity(pem)[1]
            except ValueError:
                raise UnauthenticatedError("certificate: got one that cannot be read, expected X.509") from None
            self._expiries[pem] = found
            if len(self._expiries) > _TOLD_CERTIFICATES:
                self._expiries.popitem(last=False)
        return found


def peer_of(context: Context) -> str:
    """Who calls: the connection on this machine, the host elsewhere; Unix sockets do not tell their peers apart."""
    peer: str = context.peer()
    if peer.startswith(("ipv4:127.", "ipv6:[::1]", "ipv6:%5B::1%5D")):
        return peer
    return UNKNOWN_PEER if peer.startswith("unix") else peer.rpartition(":")[0]


def bearer_of(metadata: Metadata) -> str | None:
    """The token among entries of metadata, or headers; None where there is none."""
    for key, value in metadata:
        if key == "authorization" and isinstance(value, str) and value[: len(_BEARER)].lower() == _BEARER:
            return value[len(_BEARER) :].strip()
    return None


def _shown(properties: _Properties, bearer: str | None) -> Shown:
    """What a call shows, as gRPC knows it."""
    kinds = ("peer_uri", "peer_dns", "x509_common_name")
    return Shown(
        list(properties.get("transport_security_type", ())) == [b"ssl"],
        b"".join(properties.get("x509_pem_cert", ())),
        [name.decode(errors="replace") for kind in kinds for name in properties.get(kind, ()) if name],
        bearer,
    )
