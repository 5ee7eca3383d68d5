"""Robots in a control loop, each of their agents a process of its own, which one can kill while watching.

    pip install '.[mujoco]' -c constraints.txt
    python examples/robot_cell.py                # then open http://127.0.0.1:8080

Each robot is a HalfCheetah with two agents: one moves the hind leg (blue), one the front leg (orange). Kill one in the
browser: its last action is held for 0.2 s, then its joints go limp; the other agents are asked as before. Start it
again: its client joins the episode, and the robot runs on. Ctrl-C ends it and prints how well the loop kept time.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import multiprocessing
import os
import signal
import struct
import subprocess
import sys
import tempfile
import threading
import zlib
from collections.abc import Mapping
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import unquote

import numpy as np

from hmarl.sdk import AgentClient, Command, ControlLoop, Hold, LoopSummary, Zero, make_environment

HERE = Path(__file__).resolve().parent
BUNDLE, PAGE = HERE.parent / "models" / "halfcheetah-2x3-hamdpo", HERE / "robot_cell.html"
SIGNALS = {"kill": signal.SIGKILL, "freeze": signal.SIGSTOP, "start": signal.SIGCONT}
TASK, IDS, RATE_HZ = "mamujoco/HalfCheetah-2x3", ("agent_0", "agent_1"), 20.0


def make_robots(count: int) -> Any:
    """The physics of all robots, which run for ever."""
    return make_environment(TASK, count, threads=1, horizon=10**9)


class Cell:
    """The robots: what their agents observe, and what they do. An agent is called ``robot 1 agent_0`` and so on."""

    def __init__(self, robots: int) -> None:
        self.places = {f"robot {row + 1} {one}": (row, place) for row in range(robots) for place, one in enumerate(IDS)}
        self.environment = make_robots(robots)
        self.seen = self.environment.reset(np.arange(robots))
        self._upright, self._fallen = self.environment.get_state(), np.zeros(robots, int)

    def read(self) -> dict[str, np.ndarray]:
        """The observation of each agent."""
        return {name: self.seen.observations[0][place] for name, place in self.places.items()}

    def write(self, commands: Mapping[str, Command]) -> None:
        """One control period of physics; robots that have lain on their back for a second are put on their feet."""
        actions = np.zeros((self.environment.batch_size, len(IDS), 3), np.float32)
        for name, place in self.places.items():
            actions[place] = commands[name].action
        self.seen = self.environment.step((actions,)).observation
        self._fallen = np.where(np.cos(self.seen.state[:, 1]) < 0.0, self._fallen + 1, 0)
        if (down := self._fallen > RATE_HZ).any():
            state = self.environment.get_state()
            for key, upright in self._upright.items():
                state[key][down] = upright[down]
            self.seen = self.environment.set_state(state)


class Processes:
    """One ``hmarl-agent`` for each agent of each robot, on a Unix socket that carries frames."""

    def __init__(self, names: list[str], folder: str) -> None:
        self._folder, self._frozen = folder, set[str]()
        self._running = {name: self._started(name) for name in names}

    def address(self, name: str) -> str:
        """Where an agent is served, also after it was started again."""
        return f"frames:{self._folder}/{name.replace(' ', '-')}"

    def _started(self, name: str) -> subprocess.Popen[bytes]:
        words = ["-m", "hmarl.runtime.commands.agent", str(BUNDLE), "--agent", name.rsplit(maxsplit=1)[-1]]
        words += ["--frames", self.address(name).removeprefix("frames:"), "--no-grpc", "--log-level", "warning"]
        return subprocess.Popen([sys.executable, *words], stdout=subprocess.DEVNULL, start_new_session=True)

    def state(self, name: str) -> str:
        """Of an agent's process."""
        return "killed" if self._running[name].poll() is not None else "frozen" if name in self._frozen else "running"

    def obey(self, orders: Any) -> None:
        """Kill, freeze and start agents as the viewer is told to."""
        for order, name in iter(orders.get, None):
            process = self._running.get(name)
            if process is not None and process.poll() is None and order in SIGNALS:
                process.send_signal(SIGNALS[order])
                (self._frozen.add if order == "freeze" else self._frozen.discard)(name)
            elif process is not None and order == "start":
                self._running[name] = self._started(name)

    def end(self) -> None:
        """Kill all of them, and wait until they are gone."""
        for process in self._running.values():
            process.kill()
            process.wait()


def png(picture: np.ndarray) -> bytes:
    """A picture [height, width, 3] uint8 as a file."""

    def chunk(kind: bytes, content: bytes) -> bytes:
        return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))

    height, width, _ = picture.shape
    rows = np.concatenate([np.zeros((height, 1), np.uint8), picture.reshape(height, -1)], axis=1)
    head, body = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0), zlib.compress(rows.tobytes(), 1)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", head) + chunk(b"IDAT", body) + chunk(b"IEND", b"")


def view(robots: int, port: int, states: Any, orders: Any, ready: Any) -> None:
    """Draw and serve, in a process of its own, so that neither holds up the loop."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    os.nice(10)
    shown: dict[str, bytes] = {"/": PAGE.read_bytes()}

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            body = shown.get(self.path.partition("?")[0], b"")
            self.send_response(200 if body else 404)
            self.send_header("Content-Type", "image/png" if ".png" in self.path else "text/html")
            self.end_headers()
            self.wfile.write(body)

        def do_POST(self) -> None:
            orders.put(unquote(self.path[1:]).partition("?")[::2])
            self.send_response(204)
            self.end_headers()

        def log_message(self, *arguments: object) -> None:
            """Requests are not logged."""

    server = ThreadingHTTPServer(("127.0.0.1", port), Handler)
    ready.put(server.server_port)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    environment = make_robots(robots)
    environment.reset(np.arange(robots))
    for state, status in iter(states.get, None):
        environment.set_state(state)
        pictures = {f"/{robot}.png": png(environment.render(robot)) for robot in range(robots)}
        shown.update(pictures, **{"/status": json.dumps(status).encode()})


def status(cell: Cell, processes: Processes, commands: Mapping[str, Command], summary: LoopSummary) -> dict[str, Any]:
    """What the page shows beside the pictures."""
    told = f"{summary.ticks} ticks at {RATE_HZ:g} Hz, {summary.deadline_misses} of them with a deadline missed; "
    told += f"99 in 100 began at most {1000 * summary.lateness_s.p99_s:.2f} ms late"
    agents = {name: {"process": processes.state(name), "reason": each.reason} for name, each in commands.items()}
    speeds = [round(float(each), 1) for each in cell.seen.state[:, 8]]  # metres a second
    return {"robots": speeds, "tick": summary.ticks, "loop": told, "agents": agents}


def main() -> None:
    """Start agents and viewer, and run the loop until Ctrl-C."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--robots", type=int, default=2)
    parser.add_argument("--port", type=int, default=8080)
    options = parser.parse_args()
    context = multiprocessing.get_context("spawn")
    states, orders, ready = (context.Queue() for _ in range(3))
    viewer = context.Process(target=view, args=(options.robots, options.port, states, orders, ready), daemon=True)
    viewer.start()
    cell = Cell(options.robots)
    with contextlib.ExitStack() as stack:
        processes = Processes(list(cell.places), stack.enter_context(tempfile.TemporaryDirectory()))
        stack.callback(processes.end)
        threading.Thread(target=processes.obey, args=(orders,), daemon=True).start()
        agents = {name: stack.enter_context(AgentClient(processes.address(name))) for name in cell.places}
        for agent in agents.values():
            agent.reset(seed=1)

        def write(commands: Mapping[str, Command]) -> None:
            cell.write(commands)
            if states.empty():  # otherwise the viewer is still drawing, and gets a later one
                states.put((cell.environment.get_state(), status(cell, processes, commands, loop.summary)))

        held = Hold(expires_after_s=0.2, then=Zero())
        loop = stack.enter_context(ControlLoop(RATE_HZ, agents, cell.read, write, fallback=held, safe_action=Zero()))
        for number in (signal.SIGINT, signal.SIGTERM):
            signal.signal(number, lambda *_: loop.stop())
        print(f"http://127.0.0.1:{ready.get(timeout=60)}", flush=True)
        print(loop.run())


if __name__ == "__main__":
    main()
