"""Any scenario of VMAS, the vectorised multi-agent simulator, e.g. ``vmas/navigation``; arrays are torch tensors.

Arguments of ours, all others go to the scenario:

- ``continuous_actions`` (True); False gives Discrete actions.
- ``multidiscrete_actions`` (False): with discrete actions, one choice per axis instead of one for all combinations.
- ``max_steps`` (100): steps after which an episode is truncated; None for never.
- ``device`` ("cpu"): where torch computes.

The team reward is the mean of the agents' rewards; the state is the concatenation of the agents' observations. VMAS
draws the random numbers of all B environments from one stream: ``reset`` derives its seed from all the seeds together,
so that equal seeds give equal runs for the same B, but environment b's episodes depend on the other seeds and on B.
Each ``VmasVector`` has a stream of its own, apart from the process's global ones and from other instances'.
"""

from __future__ import annotations

import random
import re
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
import vmas
from gymnasium import spaces
from vmas.simulator.environment import Environment

from hmarl.sdk.environment import VECTORISED, Array, Observation, StepResult
from hmarl.sdk.environments.vmas import drawing, saving
from hmarl.sdk.errors import EnvironmentFault, UsageError, did_you_mean, unknown_name
from hmarl.sdk.spaces import ActionSpace, AgentSpec, EnvironmentSpec

_FOLDER = Path(vmas.__file__).parent / "scenarios"
_FILES = {
    path.relative_to(_FOLDER).with_suffix("").as_posix(): path
    for path in sorted(_FOLDER.rglob("*.py"))
    if path.stem != "__init__"
}
TASKS = list(_FILES)
COPY_COST = VECTORISED

# Parameters of vmas.make_env that are settled here and would not reach the scenario.
_SETTLED = {"scenario", "num_envs", "wrapper", "seed", "dict_spaces", "clamp_actions", "grad_enabled"}
_SETTLED |= {"terminated_truncated", "wrapper_kwargs"}


def make(
    task: str,
    batch_size: int,
    *,
    continuous_actions: bool = True,
    multidiscrete_actions: bool = False,
    max_steps: int | None = 100,
    device: str = "cpu",
    **arguments: Any,
) -> VmasVector:
    """Make B environments of one VMAS scenario.

    Args:
        task: name of a scenario, e.g. ``navigation`` or ``mpe/simple_tag`` (``simple_tag`` will do).
        batch_size: B.
        continuous_actions: Box actions, else Discrete ones.
        multidiscrete_actions: with discrete actions, one choice per axis instead of one for all combinations.
        max_steps: the horizon, None for none.
        device: torch device.
        arguments: the scenario's own, e.g. ``n_agents``.

    Raises:
        UsageError: no such scenario, or an argument that it does not take or cannot work with.
    """
    if max_steps is not None and (isinstance(max_steps, bool) or not isinstance(max_steps, int) or max_steps < 1):
        raise UsageError(f"max_steps: got {max_steps!r}, expected a whole number, 1 or more, or null")
    path = _scenario_path(task)
    settings = {
        "continuous_actions": continuous_actions,
        "multidiscrete_actions": multidiscrete_actions,
        "max_steps": max_steps,
        "device": device,
    }
    return VmasVector(f"vmas/{task}", path, batch_size, settings, arguments)


def _scenario_path(task: str) -> Path:
    by_stem = {path.stem: path for path in _FILES.values()}
    path = _FILES.get(task) or by_stem.get(task)
    if path is None:
        raise UsageError(unknown_name("vmas scenario", task, _FILES, "hmarl-envs vmas"))
    return path


class VmasVector:
    """B environments of one VMAS scenario; see the module's description.

    Args:
        name: the environment's name in the spec.
        path: the scenario's file.
        batch_size: B.
        settings: keyword arguments for ``vmas.make_env``.
        arguments: keyword arguments for the scenario.
    """

    # An environment's episodes depend on the whole batch's seeds.
    independent_copies = False

    def __init__(
        self, name: str, path: Path, batch_size: int, settings: Mapping[str, Any], arguments: Mapping[str, Any]
    ) -> None:
        self.batch_size = batch_size
        # Also while the world is made: some scenarios draw colours or masses then.
        self._random_states: list[Any] = [
            torch.Generator().manual_seed(0).get_state(),
            np.random.RandomState(0).get_state(),
            random.Random(0).getstate(),
        ]
        self.device = _device(name, settings["device"])
        self._cuda_state: torch.Tensor | None = None
        if self.device.type == "cuda":
            self._cuda_state = torch.Generator(self.device).manual_seed(0).get_state()
        self._opengl = True
        with self._own_randomness():
            self._environment = _make_environment(name, path, batch_size, settings, arguments)
            seen = self._environment.reset(seed=0)
        self.spec = EnvironmentSpec(
            name=name,
            agents=_agent_specs(self._environment, seen),
            state_size=sum(_flat(part).shape[1] for part in seen),
            horizon=settings["max_steps"],
            team_reward="mean",
            control_period_s=float(self._environment.world.dt),
            arguments={**settings, **arguments},
        )
        self._last = self._observation(seen)

    def reset(self, seeds: npt.NDArray[np.int64]) -> Observation:
        """Start B new episodes, from one random stream whose seed is derived from all of ``seeds``."""
        words = np.random.SeedSequence([int(seed) for seed in np.asarray(seeds)]).generate_state(1)
        with self._own_randomness():
            self._last = self._observation(self._environment.reset(seed=int(words[0] >> 1)))
        return self._last

    def step(self, actions: tuple[Array, ...]) -> StepResult:
        """Advance all environments by one step; see ``VectorEnvironment.step``. Actions may be NumPy arrays too.

        Raises:
            EnvironmentFault: the simulator refused the actions (an index out of range, NaN).
        """
        try:
            with self._own_randomness():
                seen, rewards, terminated, truncated, _ = self._environment.step(self._per_agent(actions))
                shown = self._observation(seen)
                ended = terminated | truncated
                final = shown if bool(ended.any()) else None
                self._last = shown if final is None else self._restarted(shown, ended)
        except AssertionError as error:
            raise EnvironmentFault(f"{self.spec.name}: {str(error) or 'got actions that are not numbers'}") from error
        return StepResult(
            observation=self._last,
            rewards=torch.stack([reward.float() for reward in rewards], dim=1),
            terminated=terminated,
            truncated=truncated & ~terminated,
            # Where nothing ended, what is shown is what the next step starts from.
            final=final,
        )

    def get_state(self) -> Mapping[str, npt.NDArray[Any]] | None:
        """Everything that determines the future; None when the scenario holds what arrays cannot represent."""
        try:
            last = [self._last.observations[group][:, place] for group, place in self._places()]
            roots = {"steps": self._environment.steps, "last": last}
            saved = saving.save(self._anchors(), roots, (type(self._environment.scenario).__module__,))
        except saving.UnsavableError:
            return None
        torch_state, (_, keys, position, has_gauss, gauss), (version, words, next_gauss) = self._random_states
        saved["made_with"] = np.frombuffer(self._made_with().encode(), np.uint8)
        saved["random_torch"] = torch_state.numpy().copy()
        saved["random_numpy_keys"] = keys.copy()
        saved["random_numpy_rest"] = np.array([position, has_gauss, gauss], np.float64)
        saved["random_python_words"] = np.array([version, *words], np.uint64)
        saved["random_python_gauss"] = np.array([] if next_gauss is None else [next_gauss], np.float64)
        if self._cuda_state is not None:
            saved["random_cuda"] = self._cuda_state.numpy().copy()
        return saved

    def set_state(self, state: Mapping[str, npt.NDArray[Any]]) -> Observation:
        """Restore what ``get_state`` returned, of an instance made with the same arguments and batch size.

        Raises:
            UsageError: the state does not fit this environment, which must then be reset.
        """
        made_with = state["made_with"].tobytes().decode() if "made_with" in state else "nothing that is known"
        if made_with != self._made_with():
            raise UsageError(
                f"{self.spec.name}: the saved state does not fit this environment: it is of {made_with}, "
                f"expected {self._made_with()}"
            )
        try:
            restored = saving.restore(self._anchors(), state, self.device)
            position, has_gauss, gauss = state["random_numpy_rest"].tolist()
            numpy_state = ("MT19937", state["random_numpy_keys"].copy(), int(position), int(has_gauss), gauss)
            version, *words = state["random_python_words"].tolist()
            next_gauss = state["random_python_gauss"].tolist()
            python_state = (version, tuple(words), next_gauss[0] if next_gauss else None)
            self._random_states = [torch.from_numpy(state["random_torch"].copy()), numpy_state, python_state]
            if self._cuda_state is not None:
                self._cuda_state = torch.from_numpy(state["random_cuda"].copy())
        except (KeyError, IndexError, TypeError, ValueError, RuntimeError) as error:
            raise UsageError(f"{self.spec.name}: the saved state does not fit this environment: {error}") from error
        self._environment.steps = restored["steps"]
        self._last = self._observation(restored["last"])
        return self._last

    def render(self, index: int = 0) -> npt.NDArray[np.uint8] | None:
        """Picture of one environment: VMAS's own where OpenGL works, else a plain one drawn in NumPy."""
        if self._opengl:
            try:
                with self._own_randomness():
                    return np.ascontiguousarray(self._environment.render(mode="rgb_array", env_index=index), np.uint8)
            except Exception:
                # pyglet fails in many ways without a display or EGL; none of them matters for the plain picture.
                self._opengl = False
        return drawing.draw(self._environment, index)

    def agent_pixels(self, index: int = 0) -> npt.NDArray[np.float64]:
        """[N, 3] x, y and radius of the agents in the picture that was drawn last; see ``LocatesAgents``."""
        return drawing.agent_pixels(self._environment, index, self._opengl)

    def close(self) -> None:
        """Close the window that VMAS may have opened; a second call does nothing."""
        viewer, self._environment.viewer = self._environment.viewer, None
        if viewer is not None:
            viewer.close()

    def _made_with(self) -> str:
        """What must be equal for a state to fit; the device may differ."""
        arguments = {name: value for name, value in self.spec.arguments.items() if name != "device"}
        return f"{self.batch_size} x {self.spec.name} with {arguments!r}"

    def _anchors(self) -> list[Any]:
        """The objects that hold the simulation's state."""
        world = self._environment.world
        return [world, self._environment.scenario, *world.agents, *world.landmarks]

    def _places(self) -> list[tuple[int, int]]:
        """(group, position) of every agent, in the agents' order."""
        places = {
            agent: (group, position)
            for group, members in enumerate(self.spec.groups)
            for position, agent in enumerate(members.agents)
        }
        return [places[agent] for agent in range(len(self.spec.agents))]

    def _per_agent(self, actions: tuple[Array, ...]) -> list[torch.Tensor]:
        tensors = [torch.as_tensor(block, device=self.device) for block in actions]
        chosen = [tensors[group][:, position] for group, position in self._places()]
        return [action.unsqueeze(-1) if action.dim() == 1 else action for action in chosen]

    def _observation(self, seen: list[Any]) -> Observation:
        flat = [_flat(part) for part in seen]
        groups = tuple(torch.stack([flat[agent] for agent in group.agents], dim=1) for group in self.spec.groups)
        active = torch.ones((self.batch_size, len(flat)), dtype=torch.bool, device=self.device)
        return Observation(groups, (None,) * len(groups), torch.cat(flat, dim=1), active)

    def _restarted(self, shown: Observation, ended: torch.Tensor) -> Observation:
        """Reset the environments that ended; the others keep what they showed (observations may be noisy)."""
        if bool(ended.all()):
            return self._observation(self._environment.reset())
        for index in ended.nonzero().flatten().tolist():
            self._environment.reset_at(index, return_observations=False)
        (seen,) = self._environment.get_from_scenario(
            get_observations=True, get_rewards=False, get_infos=False, get_dones=False
        )
        fresh = self._observation(seen)
        return Observation(
            observations=tuple(
                torch.where(ended[:, None, None], new, old)
                for new, old in zip(fresh.observations, shown.observations, strict=True)
            ),
            action_masks=shown.action_masks,
            state=torch.where(ended[:, None], fresh.state, shown.state),
            active=shown.active,
        )

    @contextmanager
    def _own_randomness(self) -> Iterator[None]:
        """Lend this instance's random states to VMAS, whose class attribute all instances would share.

        VMAS swaps that attribute's states with the process's around every call, but not when the call raises.
        """
        shared = Environment.vmas_random_state
        theirs, ours = list(shared), self._random_states
        process = (torch.random.get_rng_state(), np.random.get_state(), random.getstate())  # noqa: NPY002
        cuda_before = torch.cuda.get_rng_state(self.device) if self._cuda_state is not None else None
        if self._cuda_state is not None:
            torch.cuda.set_rng_state(self._cuda_state, self.device)
        shared[:] = ours
        try:
            yield
        except BaseException:
            torch.random.set_rng_state(process[0])
            np.random.set_state(process[1])  # noqa: NPY002
            random.setstate(process[2])
            raise
        finally:
            self._random_states = list(shared)
            shared[:] = theirs
            if cuda_before is not None:
                self._cuda_state = torch.cuda.get_rng_state(self.device)
                torch.cuda.set_rng_state(cuda_before, self.device)


def _device(name: str, device: str) -> torch.device:
    try:
        found = torch.device(device)
        torch.empty(0, device=found)
    except (RuntimeError, AssertionError, TypeError) as error:
        raise UsageError(f"{name}: device: got {device!r}, expected 'cpu' or a CUDA device: {error}") from error
    return found


def _make_environment(
    name: str, path: Path, batch_size: int, settings: Mapping[str, Any], arguments: Mapping[str, Any]
) -> Environment:
    settled = sorted(_SETTLED & set(arguments))
    if settled:
        raise UsageError(f"{name}: the argument '{settled[0]}' cannot be set, hmarl settles it")
    try:
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            environment = vmas.make_env(
                str(path), batch_size, terminated_truncated=True, clamp_actions=True, **settings, **arguments
            )
    except Exception as error:
        given = ", ".join(f"{key}={value!r}" for key, value in {**settings, **arguments}.items())
        words = str(error) or type(error).__name__
        raise UsageError(f"{name} with {given}: {words}; {_known_arguments(path)}") from error
    for warning in caught:
        # The only way in which VMAS tells that it ignored an argument.
        if "passed but not used by the scenario" in str(warning.message):
            raise UsageError(f"{name}: {_unknown_arguments(path, arguments)}; {_known_arguments(path)}")
    return environment


def _argument_names(path: Path) -> list[str]:
    """Arguments that the scenario's source reads; VMAS declares them nowhere."""
    return list(dict.fromkeys(re.findall(r"kwargs\.(?:pop|get)\(\s*[\"'](\w+)", path.read_text(encoding="utf-8"))))


def _known_arguments(path: Path) -> str:
    return f"the scenario takes: {', '.join(_argument_names(path)) or 'no arguments'}"


def _unknown_arguments(path: Path, arguments: Mapping[str, Any]) -> str:
    known = _argument_names(path)
    unknown = [key for key in arguments if key not in known] or list(arguments)
    return f"unknown argument '{unknown[0]}'{did_you_mean(unknown[0], known)}"


def _agent_specs(environment: Environment, seen: list[Any]) -> tuple[AgentSpec, ...]:
    return tuple(
        AgentSpec(
            id=agent.name,
            observation_size=_flat(part).shape[1],
            action_space=_action_space(space),
            observation_layout=_with_position(tuple(_layout(part)), _flat(part), agent.state.pos),
        )
        for agent, part, space in zip(environment.agents, seen, environment.action_space, strict=True)
    )


def _action_space(space: Any) -> ActionSpace:
    """The old gym's space, as VMAS has them, as Gymnasium's."""
    if hasattr(space, "nvec"):
        return spaces.MultiDiscrete(np.asarray(space.nvec))
    if hasattr(space, "n"):
        return spaces.Discrete(int(space.n))
    return spaces.Box(np.asarray(space.low, np.float32), np.asarray(space.high, np.float32), dtype=np.float32)


def _flat(part: Any) -> torch.Tensor:
    """One agent's observation, a tensor or nested dictionaries of them in their order, as [B, size] float32."""
    if isinstance(part, dict):
        return torch.cat([_flat(item) for item in part.values()], dim=1)
    tensor: torch.Tensor = part
    return tensor.reshape(tensor.shape[0], -1).float()


def _layout(part: Any, prefix: str = "") -> Iterator[tuple[str, int]]:
    if isinstance(part, dict):
        for key, item in part.items():
            yield from _layout(item, f"{prefix}.{key}" if prefix else str(key))
    else:
        yield prefix or "observation", _flat(part).shape[1]


def _with_position(
    layout: tuple[tuple[str, int], ...], seen: torch.Tensor, position: torch.Tensor
) -> tuple[tuple[str, int], ...]:
    """The layout of an undivided observation [B, D] with its part ``position`` named: scenarios show agents where they
    are, [B, 2], but do not say at which place.
    """
    if [name for name, _ in layout] != ["observation"] or not bool(position.any()):
        return layout
    width = position.shape[1]
    shown = (start for start in range(seen.shape[1] - width + 1) if seen[:, start : start + width].equal(position))
    start = next(shown, None)
    if start is None:
        return layout
    parts = (("before", start), ("position", width), ("observation", seen.shape[1] - start - width))
    return tuple((name, length) for name, length in parts if length)
