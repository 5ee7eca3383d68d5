"""What security costs: acts over TLS, mTLS and tokens beside plain ones, measured alternately in the same run."""

from __future__ import annotations

import json
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path

import grpc
import numpy as np
import pytest

from agent_process import AgentProcess
from hmarl.runtime.authority import Authority
from hmarl.sdk import AgentClient, Security
from processes import rss_mib
from secured import LOCAL_OPTIONS, Bare, security, server_options, write_tokens
from toy_bundle import write_toy_bundle

pytestmark = pytest.mark.benchmark
TOKEN = "the-correct-horse-battery-staple"
ROUNDS, STARTS = 30, 7
ACTS, CONNECTIONS = 50, 4  # a round


class Kinds:
    """Options of an agent, and what its client shows, by kind of security; the first is the reference."""

    def __init__(self, folder: Path) -> None:
        authority = Authority.create(folder / "keys")
        agent, client = authority.issue_agent("agent_0"), authority.issue_client("operator")
        tokens = write_tokens(folder / "tokens", f"operator {TOKEN}")
        mutual = server_options(authority, agent, "--allow-file", authority.allowed)
        self.options: dict[str, list[str]] = {
            "plain": [],
            "TLS": mutual[:4],
            "mTLS": mutual,
            "TLS and token": [*mutual[:4], "--token-file", str(tokens)],
        }
        self.security: dict[str, Security | None] = {
            "plain": None,
            "TLS": security(authority),
            "mTLS": security(authority, client),
            "TLS and token": security(authority, token_file=tokens),
        }


def paired(functions: dict[str, Callable[[], object]], calls: int) -> dict[str, list[float]]:
    """Median microseconds a call of each function, round by round; all take turns."""
    medians: dict[str, list[float]] = {name: [] for name in functions}
    for _ in range(ROUNDS):
        for name, function in functions.items():
            times = []
            for _ in range(calls):
                started = time.perf_counter()
                function()
                times.append((time.perf_counter() - started) * 1e6)
            medians[name].append(statistics.median(times))
    return medians


def show(what: str, figures: dict[str, list[float]], unit: str) -> None:
    """Medians, and the median and quartiles of the ratios to the reference in the same round."""
    reference = next(iter(figures.values()))
    for name, own in figures.items():
        ratios = sorted(mine / other for mine, other in zip(own, reference, strict=True))
        low, _, high = statistics.quantiles(ratios, n=4)
        print(
            f"\n{what}, {name}: {statistics.median(own):,.2f} {unit}, to plain {statistics.median(ratios):.3f} "
            f"[{low:.3f}, {high:.3f}]",
            end="",
        )


@pytest.mark.parametrize("stream", [False, True])
def test_an_act(tmp_path: Path, stream: bool) -> None:
    bundle = write_toy_bundle(tmp_path / "b", observation_size=18, sizes=(64, 64), plain=True)
    kinds, observation = Kinds(tmp_path), np.zeros(18, np.float32)
    with ExitStack() as stack:
        functions: dict[str, Callable[[], object]] = {}
        for name, options in kinds.options.items():
            process = stack.enter_context(AgentProcess(bundle.path, "agent_0", options=options))
            client = AgentClient(process.address, security=kinds.security[name], stream=stream, timeout_s=20.0)
            stack.enter_context(client)
            client.reset(1)
            functions[name] = lambda client=client: client.act(observation)  # type: ignore[misc]
            for _ in range(200):
                functions[name]()
        show("streamed act" if stream else "unary act", paired(functions, ACTS), "us")


def test_a_connection(tmp_path: Path) -> None:
    """From nothing to the reply to a first call: TCP, and the handshake."""
    bundle = write_toy_bundle(tmp_path / "b", observation_size=18, plain=True)
    kinds = Kinds(tmp_path)
    with ExitStack() as stack:
        functions: dict[str, Callable[[], object]] = {}
        for name, options in kinds.options.items():
            address = stack.enter_context(AgentProcess(bundle.path, "agent_0", options=options)).address
            chosen, credentials = kinds.security[name], None
            if chosen is not None and chosen.ca is not None:
                own = [] if chosen.key is None else [Path(chosen.key).read_bytes(), Path(str(chosen.cert)).read_bytes()]
                credentials = grpc.ssl_channel_credentials(Path(chosen.ca).read_bytes(), *own)

            token = TOKEN if chosen is not None and chosen.token_file is not None else None

            def connect(
                address: str = address,
                credentials: grpc.ChannelCredentials | None = credentials,
                token: str | None = token,
            ) -> None:
                if credentials is None:
                    channel = grpc.insecure_channel(address, LOCAL_OPTIONS)
                else:
                    channel = grpc.secure_channel(address, credentials, LOCAL_OPTIONS)
                with channel:
                    Bare(channel, token).describe()

            functions[name] = connect
        show("connection and first call", paired(functions, CONNECTIONS), "us")


def test_starting_and_memory(tmp_path: Path) -> None:
    bundle = write_toy_bundle(tmp_path / "b", observation_size=18, sizes=(64, 64), plain=True)
    kinds = Kinds(tmp_path)
    command = [sys.executable, "-m", "hmarl.runtime.commands.agent", str(bundle.path), "--agent", "agent_0", "--json"]
    seconds: dict[str, list[float]] = {name: [] for name in kinds.options}
    mib: dict[str, list[float]] = {name: [] for name in kinds.options}
    for _ in range(STARTS):
        for name, options in kinds.options.items():
            started = time.perf_counter()
            words = [*command, "--listen", "127.0.0.1:0", "--log-level", "warning", *options]
            with subprocess.Popen(words, stdout=subprocess.PIPE, text=True) as process:
                assert process.stdout is not None
                address = json.loads(process.stdout.readline())["address"]
                seconds[name].append(time.perf_counter() - started)
                with AgentClient(address, security=kinds.security[name]) as client:
                    client.reset(1)
                    for _ in range(200):
                        client.act(np.zeros(18, np.float32))
                mib[name].append(rss_mib(process.pid))
                process.terminate()
    show("exec to SERVING", seconds, "s")
    show("resident after 200 acts", mib, "MiB")
