"""The worker process: runs environments, passes arrays through shared memory and signals through pipes.

This file is executed by its path, by the interpreter of hmarl or by another one (``env.python``), so it stands alone:
it imports the standard library and NumPy and nothing else, neither hmarl nor protobuf, and runs on Python 3.8 or newer.

Standard input carries commands, standard output the replies (what an environment prints goes to standard error);
nothing is pickled. The end of its input means that the parent has gone, and the worker leaves too; a guardian process
beside it ends it when it does not, because the environment hangs.
"""

from __future__ import annotations

import dis
import faulthandler
import inspect
import json
import os
import reprlib
import select
import signal
import struct
import sys
import sysconfig
import traceback
import warnings
from contextlib import contextmanager, suppress
from multiprocessing import resource_tracker
from multiprocessing.shared_memory import SharedMemory
from typing import IO, TYPE_CHECKING, Any, NamedTuple

import numpy as np

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping, Sequence

    import numpy.typing as npt

    # Name, shape and dtype of every array of B environments, in the order in which they lie in memory; plain JSON.
    Layout = Sequence[tuple[str, Sequence[int], str]]

_HEADER = struct.Struct("<cI")  # code, length of the payload in bytes
START, RESET, STEP, RENDER, FINDINGS = b"I", b"R", b"S", b"P", b"N"
DONE, FAILED, NO_ENTRY = b"D", b"F", b"E"
_ALIGNMENT_BYTES = 64
# Seconds that the environments have to close themselves once the parent has gone.
_GRACE_S = 5.0
# What the code of an environment may raise. To call sys.exit is a failure of its own, not a wish of ours.
FAILURES = (Exception, SystemExit)
# The environment variable by which copies know their number.
COPY_INDEX = "HMARL_COPY_INDEX"
# Errors that tell all there is to tell without the name of their class.
_SELF_EXPLAINING = ("ContractError", "EnvironmentFault", "UsageError", "MissingExtraError")


class ContractError(Exception):
    """An environment does not do what its interface promises; the message says what was got and what was expected."""


class EntryError(Exception):
    """What an import path names could not be imported."""


# --- messages --------------------------------------------------------------------------------------------------------


def send(stream: IO[bytes], code: bytes, payload: bytes = b"") -> None:
    """Write one message."""
    message = memoryview(_HEADER.pack(code, len(payload)) + payload)
    while message:
        message = message[stream.write(message) :]


def receive(read: Callable[[int], bytes]) -> tuple[bytes, bytes] | None:
    """Code and payload of the next message; None at the end of the stream.

    Args:
        read: returns at most so many bytes, none at the end of the stream.
    """
    header = _read(read, _HEADER.size)
    if header is None:
        return None
    code, length = _HEADER.unpack(header)
    payload = _read(read, length)
    return None if payload is None else (code, payload)


def _read(read: Callable[[int], bytes], length: int) -> bytes | None:
    parts = bytearray()
    while len(parts) < length:
        part = read(length - len(parts))
        if not part:
            return None
        parts += part
    return bytes(parts)


# --- arrays ----------------------------------------------------------------------------------------------------------


class Moment(NamedTuple):
    """What is seen at one step, as in ``hmarl.sdk.environment.Observation``: views of the shared arrays."""

    observations: tuple[npt.NDArray[np.float32], ...]
    action_masks: tuple[npt.NDArray[np.bool_] | None, ...]
    state: npt.NDArray[np.float32]
    active: npt.NDArray[np.bool_]


class Buffers:
    """The arrays of B environments, in ordinary or in shared memory.

    Args:
        layout: the arrays, in order.
        memory: at least ``size_bytes(layout)`` bytes, all zero; allocated here when None.

    Attributes:
        now: what is seen now.
        final: what was seen before auto-reset; only rows whose episode has just ended are up to date.
        rewards: [B, N] float32.
        terminated: [B] bool.
        truncated: [B] bool.
        success: [B] bool, False where the environment does not know success.
        actions: one array per group, [B, N_group, *action_shape].
        seeds: [B] int64, read at reset.
        at_work: [B] bool, True while the environment's own code runs; tells which one killed its process.
    """

    def __init__(self, layout: Layout, memory: memoryview | None = None) -> None:
        memory = memoryview(bytearray(self.size_bytes(layout))) if memory is None else memory
        arrays: dict[str, npt.NDArray[Any]] = {}
        offset = 0
        for name, shape, dtype in layout:
            arrays[name] = np.ndarray(tuple(shape), np.dtype(dtype), buffer=memory, offset=offset)
            offset += _aligned_bytes(shape, dtype)
        groups = sum(name.startswith("actions.") for name in arrays)
        self.now, self.final = (
            Moment(
                observations=tuple(arrays[f"{moment}.observations.{group}"] for group in range(groups)),
                action_masks=tuple(arrays.get(f"{moment}.masks.{group}") for group in range(groups)),
                state=arrays[f"{moment}.state"],
                active=arrays[f"{moment}.active"],
            )
            for moment in ("now", "final")
        )
        self.actions = tuple(arrays[f"actions.{group}"] for group in range(groups))
        self.rewards, self.seeds = arrays["rewards"], arrays["seeds"]
        self.terminated, self.truncated, self.success = arrays["terminated"], arrays["truncated"], arrays["success"]
        self.at_work = arrays["at_work"]

    @staticmethod
    def size_bytes(layout: Layout) -> int:
        """Bytes that the arrays take, alignment included."""
        return sum(_aligned_bytes(shape, dtype) for _, shape, dtype in layout)

    def release(self) -> None:
        """Let go of the memory, so that a shared block can be closed."""
        self.__dict__.clear()


def _aligned_bytes(shape: Sequence[int], dtype: str) -> int:
    size = int(np.prod(shape)) * np.dtype(dtype).itemsize
    return -(-size // _ALIGNMENT_BYTES) * _ALIGNMENT_BYTES


@contextmanager
def numbered(number: str | None) -> Iterator[None]:
    """Tell the code that runs meanwhile, and what it starts, the number of its copy: by ``HMARL_COPY_INDEX``."""
    before = os.environ.get(COPY_INDEX)
    if before == number:
        yield
        return
    _set_number(number)
    try:
        yield
    finally:
        _set_number(before)


def _set_number(number: str | None) -> None:
    if number is None:
        os.environ.pop(COPY_INDEX, None)
    else:
        os.environ[COPY_INDEX] = number


def episode_seed(seed: int, episode: int) -> int:
    """Seed of a copy's ``episode``-th auto-reset (from 1), derived from the seed given to ``reset``: in [0, 2**31)."""
    return int(np.random.SeedSequence([seed, episode]).generate_state(1)[0] >> 1)


# --- environments with SMAC's interface ------------------------------------------------------------------------------


class MultiAgentCopy:
    """One environment with SMAC's ``MultiAgentEnv`` interface behind flat arrays.

    An agent is active while it has a legal action besides number 0, the no-op that SMAC leaves to the dead; for the
    others 0 is played. The step's one reward is shared out equally among those that were active. An episode is cut off
    when ``info["episode_limit"]`` says so, else terminated; ``info["battle_won"]`` is its success.

    Seeds go, whichever comes first, to ``reset(seed=...)`` (every episode), to the constructor (at ``reset``, for which
    the environment is made anew), or to ``seed(...)`` (every episode).

    Args:
        entry: import path ``package.module:name`` of a class or function that makes the environment.
        arguments: keyword arguments for it.
        offered: further ones, passed when it takes them.

    Raises:
        EntryError: ``entry`` could not be imported.
        ContractError: it could not be called, or made something without the interface.
    """

    def __init__(self, entry: str, arguments: Mapping[str, Any], offered: Mapping[str, Any]) -> None:
        self._factory = _import_entry(entry)
        self._entry = entry
        takes = {name: value for name, value in offered.items() if _takes(self._factory, name)}
        self._number = os.environ.get(COPY_INDEX)
        if "copy_index" in _parameters(self._factory) and self._number is not None:
            takes["copy_index"] = int(self._number)
        self._arguments = {**takes, **arguments}
        self.environment = self._make()
        missing = [name for name in _INTERFACE if not callable(getattr(self.environment, name, None))]
        if missing:
            kind = type(self.environment).__name__
            raise ContractError(f"{entry}: got a {kind} without {', '.join(missing)}, expected SMAC's MultiAgentEnv")
        info = self.environment.get_env_info()
        absent = [key for key in ("n_agents", "n_actions", "obs_shape", "state_shape") if key not in info]
        if absent:
            raise ContractError(f"{entry}: get_env_info: got no {', '.join(absent)}, expected SMAC's")
        self._agents, self._choices = int(info["n_agents"]), int(info["n_actions"])
        self._sizes = {name: int(np.prod(info[f"{name}_shape"])) for name in ("obs", "state")}
        self._limit = int(info.get("episode_limit") or 0)
        if self._choices < 2:
            raise ContractError(f"{entry}: got n_actions={self._choices}, expected 2 or more: 0 is the no-op")
        self._seeding = self._find_seeding()
        self._seed, self._episode = 0, 0
        self._active = np.zeros(self._agents, np.bool_)

    @property
    def description(self) -> dict[str, int]:
        """What a spec is made of, as plain JSON; an ``episode_limit`` of 0 means unknown."""
        return {
            "agents": self._agents,
            "actions": self._choices,
            "observation_size": self._sizes["obs"],
            "state_size": self._sizes["state"],
            "episode_limit": self._limit,
        }

    def reset(self, buffers: Buffers, row: int) -> None:
        """Start an episode from ``buffers.seeds[row]``."""
        self._seed, self._episode = int(buffers.seeds[row]), 0
        if self._seeding == "constructor":
            self.close()
            with numbered(self._number):
                self.environment = self._make(seed=self._seed)
        self._begin(buffers, row, self._seed)

    def step(self, buffers: Buffers, row: int) -> None:
        """Advance by one step with the actions of ``row``; start anew when the episode has ended."""
        before = self._active
        result = self.environment.step([int(action) for action in np.where(before, buffers.actions[0][row], 0)])
        if len(result) != 3:
            raise ContractError(f"step: got {len(result)} values, expected (reward, terminated, info)")
        reward, ended, info = result
        info = info or {}
        cut_off = bool(ended and info.get("episode_limit"))
        buffers.rewards[row] = np.where(before, one_number("step", reward) / before.sum(), 0.0)
        buffers.truncated[row] = cut_off
        buffers.terminated[row] = bool(ended) and not cut_off
        buffers.success[row] = self._won(info)
        if not ended:
            self._show_running(buffers.now, row)
            return
        self._show(buffers.final, row)
        self._episode += 1
        self._begin(buffers, row, episode_seed(self._seed, self._episode))

    def render(self) -> None:
        """None: the interface has no pictures."""

    def findings(self) -> list[dict[str, Any]]:
        """None: what the interface asks is checked at every step."""
        return []

    def close(self) -> None:
        """Close the environment; what fails on the way out no longer matters."""
        with suppress(*FAILURES):
            self.environment.close()

    def _make(self, **seed: int) -> Any:
        arguments = {**self._arguments, **seed}
        try:
            return self._factory(**arguments)
        except FAILURES as error:
            given = ", ".join(f"{name}={value!r}" for name, value in arguments.items()) or "no arguments"
            takes = ", ".join(_parameters(self._factory)) or "no arguments"
            raise ContractError(f"{self._entry} with {given}: {explained(error)}; it takes: {takes}") from error

    def _find_seeding(self) -> str | None:
        if "seed" in _parameters(self.environment.reset):
            return "reset"
        if _takes(self._factory, "seed"):
            return "constructor"
        return "method" if _parameters(getattr(self.environment, "seed", None)) else None

    def _begin(self, buffers: Buffers, row: int, seed: int) -> None:
        with numbered(self._number):
            if self._seeding == "method":
                self.environment.seed(seed)
            if self._seeding == "reset":
                self.environment.reset(seed=seed)
            else:
                self.environment.reset()
        self._show_running(buffers.now, row)

    def _show_running(self, target: Moment, row: int) -> None:
        self._show(target, row)
        if not self._active.any():
            raise ContractError("the episode goes on, but no agent has a legal action besides the no-op (number 0)")

    def _show(self, target: Moment, row: int) -> None:
        """Write one row of ``target``; agents without a legal action besides the no-op as having left."""
        legal = self._array("get_avail_actions", (self._agents, self._choices)) != 0
        self._active = active = legal[:, 1:].any(axis=1)
        observations = self._array("get_obs", (self._agents, self._sizes["obs"]))
        target.observations[0][row] = np.where(active[:, None], observations, 0.0)
        if target.action_masks[0] is not None:
            target.action_masks[0][row] = legal | ~active[:, None]
        target.state[row] = self._array("get_state", (self._sizes["state"],))
        target.active[row] = active

    def _array(self, method: str, shape: tuple[int, ...]) -> npt.NDArray[np.float32]:
        array = np.asarray(getattr(self.environment, method)())
        if array.dtype.kind not in "fiub":
            raise ContractError(f"{method}: got {shown(array)}, expected an array of numbers of shape {shape}")
        if array.size != np.prod(shape):
            raise ContractError(f"{method}: got an array of shape {array.shape}, expected {shape}")
        return array.astype(np.float32).reshape(shape)

    def _won(self, info: Mapping[str, Any]) -> bool:
        won = info.get("battle_won", getattr(self.environment, "battle_won", False))
        return bool(won() if callable(won) else won)


_INTERFACE = ("get_obs", "get_state", "get_avail_actions", "step", "reset", "get_env_info")


def _import_entry(entry: str) -> Callable[..., Any]:
    try:
        found = import_object(entry)
    except FAILURES as error:
        raise EntryError(explained(error)) from error
    if not callable(found):
        raise EntryError(f"{entry}: got a {type(found).__name__}, expected a class or function")
    function: Callable[..., Any] = found
    return function


def _parameters(function: Any) -> dict[str, Any]:
    """Parameters that a function takes, with their kinds; none where it does not say."""
    try:
        return {each.name: each.kind for each in inspect.signature(function).parameters.values()}
    except (TypeError, ValueError):
        return {}


def _takes(function: Any, name: str) -> bool:
    """Whether a function has a parameter of that name, or takes any by ``**``."""
    parameters = _parameters(function)
    return name in parameters or inspect.Parameter.VAR_KEYWORD in parameters.values()


def make_multi_agent_copy(**settings: Any) -> MultiAgentCopy:
    """What a ``WorkerPool`` is told to make: see ``MultiAgentCopy``."""
    return MultiAgentCopy(**settings)


# --- the process -----------------------------------------------------------------------------------------------------


def is_failure(error: BaseException) -> bool:
    """Whether the code of an environment failed, and Ctrl-C was not pressed.

    A KeyboardInterrupt that a ``raise`` of other code than hmarl's has raised is a failure too.
    """
    if not isinstance(error, KeyboardInterrupt):
        return isinstance(error, FAILURES)
    last = error.__traceback__
    while last is not None and last.tb_next is not None:
        last = last.tb_next
    if last is None or (last.tb_frame.f_globals.get("__package__") or "").split(".")[0] == "hmarl":
        return False
    return dis.opname[last.tb_frame.f_code.co_code[last.tb_lasti]] == "RAISE_VARARGS"


def one_number(where: str, value: Any) -> float:
    """A reward as a number; an array of one element is one too.

    Raises:
        ContractError: it is none.
    """
    if type(value) is float:
        return value
    array = np.asarray(value)
    if array.size == 1 and array.dtype.kind in "fiub":
        return float(array.reshape(()))
    hint = "; of several objectives, add up a weighted sum" if array.size > 1 else ""
    raise ContractError(f"{where}: got the reward {shown(value)}, expected one number{hint}")


def shown(value: Any) -> str:
    """A value in a few words, for messages."""
    if isinstance(value, np.ndarray) and value.dtype.hasobject:
        value = value.tolist()
    if isinstance(value, np.ndarray) and value.size > 1:
        return f"an array of shape {value.shape} and dtype {value.dtype}"
    return " ".join(reprlib.repr(value).split())


def failure_message(row: int, error: BaseException) -> str:
    """How an error of environment ``row`` is told: with its index."""
    return f"environment {row}: {explained(error)}"


def explained(error: BaseException) -> str:
    """An error in one line: its kind, its own words, and the environment's file and line that it comes from."""
    kind, words = type(error).__name__, " ".join(str(error).split())
    if isinstance(error, SystemExit):
        told = f"it called sys.exit({error.code!r})"
    elif kind in _SELF_EXPLAINING:
        told = words
    else:
        told = f"{kind}: {words}" if words else kind
    place = _place(error)
    # Only Python 3.11 and newer can add notes.
    notes = "".join(f"; {note}" for note in getattr(error, "__notes__", ()))
    return told + (f" ({place})" if place else "") + notes


def _place(error: BaseException) -> str | None:
    """FILE:LINE of the innermost frame that is the user's own; of an installed package's where there is none.

    None when the error comes from hmarl itself.
    """
    here = os.path.dirname(os.path.abspath(__file__)) + os.sep
    frames = [(frame.f_code.co_filename, line) for frame, line in traceback.walk_tb(error.__traceback__)]
    theirs = [frame for frame in frames if not os.path.abspath(frame[0]).startswith(here)]
    own = [frame for frame in theirs if not _is_installed(frame[0])]
    if not theirs:
        return None
    file, line = (own or theirs)[-1]
    return f"{file}:{line}"


def _is_installed(file: str) -> bool:
    standard = (sysconfig.get_paths()["stdlib"], "<")
    return file.startswith(standard) or "site-packages" in file or "dist-packages" in file


def import_object(path: str) -> Any:
    """The object at ``package.module:name``."""
    module, _, name = path.partition(":")
    return getattr(__import__(module, fromlist=[name]), name)


def main() -> None:
    """Obey the commands on standard input until it ends."""
    # Ctrl-C reaches the whole process group; the parent decides what comes of it.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    # A crash in native code then shows where it happened.
    faulthandler.enable()
    alive = _start_guardian()
    commands = os.fdopen(os.dup(0), "rb", buffering=0)
    replies = os.fdopen(os.dup(1), "wb", buffering=0)
    os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
    os.dup2(2, 1)
    with suppress(BrokenPipeError):
        _serve(commands, replies)
    os.close(alive)


def _start_guardian() -> int:
    """Start a process that ends this one when the parent has gone and an environment hangs.

    A process, because a thread could not run while native code holds the interpreter's lock.

    Returns:
        A file descriptor; the guardian leaves when it is closed, at the latest at this process's end.
    """
    worker = os.getpid()
    gone, alive = os.pipe()
    with warnings.catch_warnings():
        # Threads of a BLAS do no harm: the child does nothing but wait.
        warnings.simplefilter("ignore", DeprecationWarning)
        child = os.fork()
    if child:
        os.close(gone)
        # It is no child of this process, for environments that wait for all of theirs.
        os.waitpid(child, 0)
        return alive
    try:
        os.close(alive)
        os.close(1)
        if os.fork() == 0:
            _guard(worker, 0, gone)
    finally:
        os._exit(0)


def _guard(worker: int, commands: int, gone: int) -> None:
    """Wait for the end of the worker; some time after that of the parent, end it and what it has started."""
    poll = select.poll()
    # Told of nothing but that the other side has closed its end.
    poll.register(commands, 0)
    poll.register(gone, 0)
    ended = dict(poll.poll())
    if gone not in ended:
        poll.unregister(commands)
        if not poll.poll(1000 * _GRACE_S):
            # The group is the worker's own, unless it was started by hand.
            if os.getpgrp() == worker:
                os.killpg(worker, signal.SIGKILL)
            else:
                os.kill(worker, signal.SIGKILL)


def _serve(commands: IO[bytes], replies: IO[bytes]) -> None:
    message = receive(commands.read)
    if message is None:
        return
    start = json.loads(message[1])
    _set_path(start["path"])
    rows: list[int] = start["rows"]
    copies: dict[int, Any] = {}
    memory: SharedMemory | None = None
    buffers: Buffers | None = None
    try:
        # The only one's, where there is but one copy here.
        _set_number(start["numbers"][0])
        make_copy = import_object(start["maker"])
        for index, row in enumerate(rows):
            with numbered(start["numbers"][index]):
                copies[row] = make_copy(**start["settings"])
        if start["memory"] is None:
            send(replies, DONE, json.dumps(copies[rows[0]].description).encode())
            return
        memory = _attach(start["memory"])
        buffers = Buffers(start["layout"], memory.buf)
        send(replies, DONE)
        _obey(commands, replies, copies, buffers)
    except BrokenPipeError:
        raise
    except EntryError as error:
        send(replies, NO_ENTRY, str(error).encode())
    except BaseException as error:
        # An interrupt too is the environment's own: this process ignores Ctrl-C.
        if os.environ.get("HMARL_DEBUG") == "1":
            traceback.print_exc()
        # Before there are buffers, the first that is missing.
        failed = [row for row in rows if (buffers.at_work[row] if buffers is not None else row not in copies)]
        send(replies, FAILED, failure_message((failed or rows)[0], error).encode())
    finally:
        for copy in copies.values():
            copy.close()
        if buffers is not None:
            buffers.release()
        if memory is not None:
            memory.close()


def _obey(commands: IO[bytes], replies: IO[bytes], copies: Mapping[int, Any], buffers: Buffers) -> None:
    while (message := receive(commands.read)) is not None:
        command, payload = message
        reply = b""
        if command == FINDINGS:
            reply = json.dumps([finding for copy in copies.values() for finding in copy.findings()]).encode()
        for row in [int(payload)] if command == RENDER else copies if command != FINDINGS else ():
            buffers.at_work[row] = True
            if command == RENDER:
                reply = _picture(copies[row])
            elif command == RESET:
                copies[row].reset(buffers, row)
            else:
                copies[row].step(buffers, row)
            buffers.at_work[row] = False
        send(replies, DONE, reply)


def _picture(copy: Any) -> bytes:
    """One line of JSON, then the picture's bytes; a renderer that fails costs nothing but the picture."""
    try:
        picture = copy.render()
        if picture is None:
            return b"{}\n"
        array = np.ascontiguousarray(picture)
        if array.dtype.hasobject:
            raise ContractError(f"got a {type(picture).__name__} of {array.dtype}, expected an array of numbers")
        header, pixels = {"shape": array.shape, "dtype": array.dtype.str}, array.tobytes()
    except BaseException as error:
        header, pixels = {"error": explained(error)}, b""
    return json.dumps(header).encode() + b"\n" + pixels


def _set_path(path: list[str] | None) -> None:
    """Look for modules where the parent does; in another interpreter, wherever that one does.

    The folder of this file, which Python puts first, would hide the packages smac, rware and pettingzoo.
    """
    if path is not None:
        sys.path[:] = path
        return
    here = os.path.dirname(os.path.abspath(__file__))
    sys.path[:] = [folder for folder in sys.path if os.path.abspath(folder or os.curdir) != here]


def _attach(name: str) -> SharedMemory:
    """Map the parent's block without becoming its owner."""
    if sys.version_info >= (3, 13):
        return SharedMemory(name=name, track=False)
    # Before Python 3.13 attaching registers the block for removal at this process's exit (python/cpython#82300).
    register = resource_tracker.register
    resource_tracker.register = lambda *_: None
    try:
        return SharedMemory(name=name)
    finally:
        resource_tracker.register = register


if __name__ == "__main__":
    main()
