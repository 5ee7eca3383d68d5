"""Tokens, lists of names and quotas; files that change, and what stays when they go bad."""

from __future__ import annotations

import logging
import os
from pathlib import Path

import pytest

from hmarl.runtime.bundle import Bundle
from hmarl.runtime.errors import QuotaError, UnknownSessionError, UsageError
from hmarl.runtime.places import Places
from hmarl.runtime.quotas import RequestQuota
from hmarl.runtime.registry import SessionRegistry
from hmarl.runtime.reloading import SETTLING_S, Reloaded
from hmarl.runtime.secret_files import first_token, read_names, read_tokens
from hmarl.runtime.session import Policy
from told_clock import Clock

LOGGER = logging.getLogger("hmarl.test")
FIRST, SECOND = "the-first-token-of-many", "the-second-token-of-many"


def secret(path: Path, text: str) -> Path:
    path.touch(0o600)
    path.write_text(text)
    return path


def test_tokens_have_names_or_share_one(tmp_path: Path) -> None:
    path = secret(tmp_path / "t", f"# ours\n\n{FIRST}\nrobot {SECOND}  # until May\n")
    tokens = read_tokens("--token-file", path)
    assert tokens.name_of(FIRST) == "token"
    assert tokens.name_of(SECOND) == "robot"
    for wrong in ("", FIRST[:-1], f"{FIRST} ", SECOND.upper(), f"robot {SECOND}"):
        assert tokens.name_of(wrong) is None
    assert first_token("--token-file", path) == FIRST
    assert FIRST not in repr(tokens)


@pytest.mark.parametrize(
    "text", ["", "# none\n", "short\n", "a b the-third-token-of-many\n", "the-token-with-ü-in-it\n"]
)
def test_files_without_a_token_are_refused(tmp_path: Path, text: str) -> None:
    with pytest.raises(UsageError, match="--token-file: ") as caught:
        read_tokens("--token-file", secret(tmp_path / "t", text))
    for word in text.split():
        assert len(word) < 6 or word not in str(caught.value), "no secret in an error"


def test_a_list_of_names(tmp_path: Path) -> None:
    path = secret(tmp_path / "n", "operator\n# robot\nhmarl://client/x # the lab's\n")
    assert read_names("--allow-file", path) == {"operator", "hmarl://client/x"}
    path.chmod(0o602)
    with pytest.raises(UsageError, match="others may write"):
        read_names("--allow-file", path)


def test_files_that_change_are_read_again_and_the_last_good_value_stays(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO", "hmarl")
    path, clock = secret(tmp_path / "t", FIRST), Clock()
    value = Reloaded("the tokens", [path], lambda: first_token("--token-file", path), LOGGER, clock)
    assert (value.value, value.look()) == (FIRST, False)
    secret(tmp_path / "new", SECOND).replace(path)
    assert (value.look(), value.value, value.reloads) == (True, SECOND, 1)
    path.write_text("bad")
    assert (value.look(), value.value) == (False, SECOND)
    assert value.failures == 0, "it may be half of two files that belong together"
    clock.now += SETTLING_S
    for _ in range(3):
        assert (value.look(), value.value, value.failures) == (False, SECOND, 1)
        clock.now += SETTLING_S
    path.unlink()
    value.look()
    clock.now += SETTLING_S
    assert (value.look(), value.failures) == (False, 2)
    secret(path, FIRST)
    assert (value.look(), value.value, value.reloads) == (True, FIRST, 2)
    os.chmod(path, 0o644)
    value.look()
    clock.now += SETTLING_S
    assert (value.look(), value.failures) == (False, 3), "its content is the same, but others may read it now"
    os.chmod(path, 0o600)
    assert value.look()
    assert [record.levelname for record in caplog.records].count("ERROR") == 3
    assert FIRST not in caplog.text
    assert "the tokens cannot be used, the last good one stays: --token-file: cannot read" in caplog.text


def test_a_client_has_so_many_requests_a_second() -> None:
    clock = Clock()
    quota = RequestQuota(10.0, clock)
    for _ in range(10):
        quota.take("a")
    with pytest.raises(QuotaError, match=r"more than 10 a second.*\(--client-rate\): wait 0\.100 s"):
        quota.take("a")
    quota.take("b")
    clock.now += 0.11
    quota.take("a")
    with pytest.raises(QuotaError):
        quota.take("a")
    clock.now += 100.0
    for _ in range(10):
        quota.take("a")
    with pytest.raises(QuotaError):
        quota.take("a")
    for number in range(10_000):
        quota.take(f"peer {number}")
    assert len(quota._buckets) <= 4096
    slow = RequestQuota(0.5, clock)
    slow.take("a")
    with pytest.raises(QuotaError, match=r"wait 2\.000 s"):
        slow.take("a")


def test_a_peer_has_so_many_places_whatever_is_free() -> None:
    clock, left = Clock(), []
    places: Places[str] = Places(100, 5.0, left.append, clock=clock, per_peer=2)
    first, second = places.take("a", "1"), places.take("a", "2")
    assert first is not None
    assert second is not None
    assert places.take("a", "3") is None
    assert places.has_most("a")
    assert not places.has_most("b")
    assert places.take("b", "4") is not None
    clock.now += 4.0
    places.use(first)
    clock.now += 1.0
    assert places.take("a", "5") is not None, "its own that it has not used for longest gives way"
    assert left == ["2"]
    assert places.take("a", "6") is None
    places.free(first)
    assert places.take("a", "7") is not None


def test_a_session_is_its_owners_alone(toy_bundle: Bundle) -> None:
    policy = Policy(toy_bundle, "agent_0")
    registry = SessionRegistry(policy, 10, 600.0)
    mine, anyones = policy.session(), policy.session()
    owned = registry.add(mine, "a", "a")
    free = registry.add(anyones, "b")
    assert registry.get(owned, "a") is mine
    assert registry.get(free) is anyones
    for session_id, owner in ((owned, "b"), (owned, None), (free, "a")):
        for look in (registry.get, registry.remove):
            with pytest.raises(UnknownSessionError):
                look(session_id, owner)
    assert len(registry) == 2
    assert registry.remove(owned, "a") is mine
    with pytest.raises(UnknownSessionError):
        registry.get(owned, "a")
