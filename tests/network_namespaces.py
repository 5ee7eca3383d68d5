"""Agents in network namespaces of their own, each with one cable to its client, and what went over the cables.

One namespace holds the client, with a virtual cable to each agent's. Nothing is forwarded from cable to cable, and the
agents have no route but to the client's end of their own. Needs root, iproute2 and tcpdump.
"""

from __future__ import annotations

import os
import secrets
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path

import pytest

PORT = 50051
_IPV4, _ARP, _IPV6 = 0x0800, 0x0806, 0x86DD
_TCP, _ICMPV6 = 6, 58
_NEIGHBOURS = {*range(130, 138), 143}  # who is there: neighbour and router discovery, and who listens to it


def ip(*words: object) -> None:
    """Run iproute2's ip."""
    subprocess.run(["ip", *map(str, words)], check=True, capture_output=True, text=True)


def needs_namespaces() -> None:
    """Skip, with the reason, where namespaces cannot be made."""
    for program in ("ip", "tcpdump"):
        if shutil.which(program) is None:
            pytest.skip(f"{program} is not installed: apt-get install iproute2 tcpdump")
    name = f"hmarl-{secrets.token_hex(3)}"
    if subprocess.run(["ip", "netns", "add", name], capture_output=True, check=False).returncode:
        pytest.skip("network namespaces cannot be made here (ip netns add): that needs root")
    ip("netns", "delete", name)


@dataclass(frozen=True)
class Cable:
    """An agent's namespace and its cable.

    Attributes:
        inside: words before a command that let it run there.
        client_ip: the client's end.
        agent_ip: the agent's end.
        client_namespace: where the client's end is.
        client_device: what it is called there.
    """

    inside: tuple[str, ...]
    client_ip: str
    agent_ip: str
    client_namespace: str
    client_device: str

    @property
    def address(self) -> str:
        """Where the agent listens."""
        return f"{self.agent_ip}:{PORT}"

    def cut(self) -> None:
        """Take the client's end down."""
        self._set("down")

    def mend(self) -> None:
        """Take it up again."""
        self._set("up")

    def _set(self, state: str) -> None:
        ip("-netns", self.client_namespace, "link", "set", self.client_device, state)


@dataclass(frozen=True)
class Network:
    """One client's namespace, and a cable for each agent.

    Attributes:
        client: words before a command that let it run in the client's namespace.
        cables: of the agents, by number.
    """

    client: tuple[str, ...]
    cables: tuple[Cable, ...]

    @contextmanager
    def forwarding(self) -> Iterator[None]:
        """What nothing in this project does: packets go from cable to cable until the end of the block."""
        self._forward("add", 1)
        yield
        self._forward("delete", 0)

    def _forward(self, what: str, forwarded: int) -> None:
        subprocess.run([*self.client, "sysctl", "-qw", f"net.ipv4.ip_forward={forwarded}"], check=True)
        for cable in self.cables:
            ip("-netns", cable.inside[-1], "route", what, "default", "via", cable.client_ip)


@contextmanager
def network(agents: int) -> Iterator[Network]:
    """Namespaces for a client and its agents, until the end of the block."""
    name = f"hmarl-{secrets.token_hex(3)}"
    names = [f"{name}-c", *(f"{name}-{number}" for number in range(agents))]
    with ExitStack() as stack:
        for each in names:
            ip("netns", "add", each)
            stack.callback(subprocess.run, ["ip", "netns", "delete", each], check=False)
            quiet = (
                "net.ipv4.ip_forward=0",
                "net.ipv6.conf.all.disable_ipv6=1",
                "net.ipv6.conf.default.disable_ipv6=1",
            )
            subprocess.run(["ip", "netns", "exec", each, "sysctl", "-qw", *quiet], check=True)
            ip("-netns", each, "link", "set", "lo", "up")
        yield Network(_inside(names[0]), tuple(_cable(names[0], each, number) for number, each in enumerate(names[1:])))


def _inside(name: str) -> tuple[str, ...]:
    return ("ip", "netns", "exec", name)


def _cable(client: str, agent: str, number: int) -> Cable:
    """10.77.NUMBER.1 at the client's end, 10.77.NUMBER.2 at the agent's."""
    device, ips = f"agent{number}", (f"10.77.{number}.1", f"10.77.{number}.2")
    ip("-netns", agent, "link", "add", "eth0", "type", "veth", "peer", "name", device, "netns", client)
    for name, end, address in ((client, device, ips[0]), (agent, "eth0", ips[1])):
        ip("-netns", name, "address", "add", f"{address}/30", "dev", end)
        ip("-netns", name, "link", "set", end, "up")
    return Cable(_inside(agent), *ips, client, device)


@contextmanager
def captured(cable: Cable, file: Path) -> Iterator[None]:
    """All that goes over a cable, written to a file until the end of the block."""
    command = [*cable.inside, "tcpdump", "-i", "eth0", "-n", "-U", "-Z", "root", "--immediate-mode", "-w", str(file)]
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True) as process:
        assert process.stderr is not None
        line = ""
        while "listening on" not in line:
            line = process.stderr.readline()
            assert line, "tcpdump does not start"
        try:
            yield
        finally:
            process.terminate()
            _, said = process.communicate(timeout=30)
            assert "\n0 packets dropped by kernel" in f"\n{said}", said


@dataclass(frozen=True)
class Verdict:
    """What went over a cable.

    Attributes:
        own: packets of the client's connections to its agent.
        foreign: the others, in words.
    """

    own: int
    foreign: tuple[str, ...]


def judged(cable: Cable, file: Path) -> Verdict:
    """Which packets belong to connections that the client made to its agent; asking who is there does not count."""
    own, foreign = 0, []
    made: set[int] = set()  # the client's ports, from which it has made a connection
    for packet in _packets(file):
        kind = int.from_bytes(packet[12:14])
        if kind == _ARP or (kind == _IPV6 and packet[20] in (0, _ICMPV6) and _asks_who_is_there(packet)):
            continue
        if kind != _IPV4:
            foreign.append(f"a packet of kind {kind:#06x}")
            continue
        header = 14 + 4 * (packet[14] & 15)
        source, target = (".".join(map(str, packet[at : at + 4])) for at in (26, 30))
        ports = [int.from_bytes(packet[header + at : header + at + 2]) for at in (0, 2)]
        tcp = packet[23] == _TCP
        if tcp and (source, target, ports[1]) == (cable.client_ip, cable.agent_ip, PORT):
            if packet[header + 13] & 0b10010 == 0b10:  # SYN without ACK
                made.add(ports[0])
            own += ports[0] in made
            continue
        if tcp and (source, ports[0], target) == (cable.agent_ip, PORT, cable.client_ip) and ports[1] in made:
            own += 1
            continue
        foreign.append(f"{source}:{ports[0]} -> {target}:{ports[1]}, protocol {packet[23]}")
    return Verdict(own, tuple(foreign))


def _asks_who_is_there(packet: bytes) -> bool:
    """Whether an ICMPv6 message, perhaps behind a hop-by-hop header, is discovery."""
    at = 54 if packet[20] == _ICMPV6 else 54 + 8 * (1 + packet[55])
    return packet[at] in _NEIGHBOURS


def _packets(file: Path) -> Iterator[bytes]:
    """Frames of a capture in libpcap's format, in this machine's byte order."""
    content = file.read_bytes()
    order = sys.byteorder
    assert int.from_bytes(content[:4], order) == 0xA1B2C3D4, "not a capture of this machine"
    assert int.from_bytes(content[20:24], order) == 1, "not Ethernet"
    at = 24
    while at + 16 <= len(content):
        length = int.from_bytes(content[at + 8 : at + 12], order)
        yield content[at + 16 : at + 16 + length]
        at += 16 + length


def run_inside(inside: Sequence[str], *command: object, **environment: str) -> subprocess.CompletedProcess[str]:
    """Run a program in a namespace, without the proxies of this machine."""
    kept = {name: value for name, value in os.environ.items() if not name.lower().endswith("_proxy")}
    words = [*inside, *map(str, command)]
    return subprocess.run(words, env=kept | environment, capture_output=True, text=True, timeout=120, check=False)


Judge = Callable[[], list[Verdict]]


@contextmanager
def watched(network: Network, folder: Path) -> Iterator[Judge]:
    """All cables captured until the end of the block; what is yielded judges them afterwards."""
    files = [folder / f"agent_{number}.pcap" for number in range(len(network.cables))]
    with ExitStack() as stack:
        for cable, file in zip(network.cables, files, strict=True):
            stack.enter_context(captured(cable, file))
        yield lambda: [judged(cable, file) for cable, file in zip(network.cables, files, strict=True)]
