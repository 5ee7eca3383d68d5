"""`make reloads`: a fleet is given one bundle after the other while teams play. Every act has to be its bundle's.

Two bundles of the same spaces take turns; the second is the first with its agents' graphs exchanged, so that a wrong
bundle's action is another one. Two teams play short episodes, a third one episode that outlasts all reloads.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import pytest

from healthy_client import BUNDLE
from hmarl.runtime.bundle import Bundle, load_bundle, to_plain, write_bundle
from hmarl.runtime.reload import HOLD_S
from hmarl.runtime.session import Policy, PolicySession
from hmarl.sdk.clients.client import AgentClient
from hmarl.sdk.clients.endpoints import load_endpoints
from hmarl.sdk.clients.together import reset_together
from hmarl.sdk.errors import HmarlError
from processes import LIMIT_S, children, fleet_process, rss_mib

pytestmark = pytest.mark.reliability
ACTS = int(os.environ.get("HMARL_RELOAD_ACTS", "100000"))
_EPISODE = 25


def exchanged(path: Path, bundle: Bundle) -> Bundle:
    """The same bundle, its agents' graphs passed round."""
    manifest = to_plain(bundle.manifest)
    files = {name: bundle.read(name) for name in bundle.manifest.files}
    graphs = [agent.file for agent in bundle.manifest.agents]
    kept = {name: content for name, content in files.items() if not name.startswith("parity/")}
    for file, other in zip(graphs, graphs[1:] + graphs[:1], strict=True):
        kept[file] = files[other]
    return write_bundle(path, manifest, kept)


@dataclass
class Tally:
    """What the teams got."""

    acts: int = 0
    episodes: int = 0
    wrong: int = 0
    stale: int = 0
    mixed: int = 0
    errors: list[str] = field(default_factory=list)
    times: list[tuple[float, float]] = field(default_factory=list)  # when an act ended, and how long it took

    def longest_ms(self, begin: float, end: float) -> tuple[float, float]:
        """The longest act and the 99th percentile between two times."""
        took = [1e3 * s for at, s in list(self.times) if begin <= at and at - s <= end]
        return (max(took), float(np.percentile(took, 99))) if took else (0.0, 0.0)


class Playing:
    """A team of clients; each act is held against the same draw of the bundle that its episode began on."""

    def __init__(
        self, addresses: dict[str, str], policies: dict[str, list[Policy]], length: int, stream: bool, tally: Tally
    ) -> None:
        self._clients = [AgentClient(address, timeout_s=LIMIT_S, stream=stream) for address in addresses.values()]
        self._policies = policies
        self._length = length
        self._tally = tally
        self._generator = np.random.default_rng(length + stream)
        self._sessions: list[PolicySession] = []
        self._step = 0

    def play(self) -> None:
        """One step, of a new episode where the last one has ended."""
        if self._step % self._length == 0:
            self._begin()
        tally = self._tally
        for client, session in zip(self._clients, self._sessions, strict=True):
            seen = self._generator.normal(size=client.spec.observation_size).astype(np.float32)
            got = client.act(seen)
            tally.acts += 1
            tally.times.append((time.monotonic(), got.latency_s))
            tally.stale += not got.fresh or got.step != self._step or got.missed_steps > 0
            tally.wrong += got.action != session.act(seen, step=self._step).action
        self._step += 1

    def _begin(self) -> None:
        seed = int(self._generator.integers(2**40))
        sha256 = reset_together(self._clients, seed, sample=True)
        self._sessions = [policy.session() for policy in self._policies[sha256]]
        for session in self._sessions:
            session.reset(seed, sample=True)
        self._step = 0
        self._tally.episodes += 1
        self._tally.mixed += any(client.info.bundle_sha256 != sha256 for client in self._clients)

    def close(self) -> None:
        for client in self._clients:
            client.close()


@contextmanager
def teams(addresses: dict[str, str], bundles: dict[str, Bundle], tally: Tally) -> Iterator[threading.Event]:
    """Teams that play until the event is set: one thread, so that no client waits for another one's."""
    policies = {sha256: [Policy(bundle, name) for name in addresses] for sha256, bundle in bundles.items()}
    lengths = (_EPISODE, 4 * _EPISODE, 2 * ACTS)
    players = [Playing(addresses, policies, length, number % 2 == 1, tally) for number, length in enumerate(lengths)]
    ended = threading.Event()

    def play() -> None:
        try:
            while not ended.is_set():
                for player in players:
                    player.play()
        except HmarlError as error:
            tally.errors.append(str(error))
        for player in players:
            player.close()

    thread = threading.Thread(target=play, daemon=True)
    thread.start()
    try:
        yield ended
    finally:
        ended.set()
        thread.join(2 * LIMIT_S)


def reload(out: Path, bundle: Bundle) -> tuple[float, float]:
    """Give the fleet a bundle; from when to when."""
    begin = time.monotonic()
    command = [sys.executable, "-m", "hmarl.runtime.commands.fleet", "reload", str(out), str(bundle.path), "--json"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["bundle_sha256"] == bundle.sha256
    return begin, time.monotonic()


def test_reloads_under_load(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    first = load_bundle(BUNDLE)
    second = exchanged(tmp_path / "second", first)
    tally, rows, out = Tally(), [], tmp_path / "endpoints.json"
    with fleet_process(first, out) as fleet:
        assert fleet.stdout is not None
        fleet.stdout.readline()
        members = children(fleet.pid)
        addresses = load_endpoints(out)
        with teams(addresses, {bundle.sha256: bundle for bundle in (first, second)}, tally) as ended:
            time.sleep(5.0)
            before = [rss_mib(pid) for pid in members]
            while tally.acts < ACTS and not tally.errors:
                begin, end = reload(out, (second, first)[len(rows) % 2])
                time.sleep(end - begin)  # as long without a reload, on the same machine at about the same time
                beside = tally.longest_ms(end, time.monotonic())
                rows.append((end - begin, *tally.longest_ms(begin, end), *beside, max(map(rss_mib, members))))
            ended.set()
            time.sleep(HOLD_S + 5.0)
        after = [rss_mib(pid) for pid in members]
        assert children(fleet.pid) == members, "the same processes"
    with capsys.disabled():
        print(f"\n{tally.acts:,} acts in {tally.episodes:,} episodes, {len(rows)} reloads")
        print(f"wrong {tally.wrong}, lost or stale {tally.stale}, episodes of two bundles {tally.mixed}")
        print("  reload | s | act, ms: longest | p99 | without a reload: longest | p99 | largest RSS of an agent, MiB")
        for index, row in enumerate(rows, start=1):
            if index <= 5 or index % 10 == 0 or index == len(rows):
                print(f"  {index} | " + " | ".join(f"{value:.1f}" for value in row))
        for name, reduced in (("median", np.median(rows, axis=0)), ("largest", np.max(rows, axis=0))):
            print(f"  {name} | " + " | ".join(f"{value:.1f}" for value in reduced))
        print("  RSS, MiB: " + ", ".join(f"{was:.1f} -> {now:.1f}" for was, now in zip(before, after, strict=True)))
    assert tally.errors == []
    assert tally.acts >= ACTS
    assert tally.wrong + tally.stale + tally.mixed == 0
    assert all(now <= was + 16.0 for was, now in zip(before, after, strict=True))
