"""Does an environment keep the contract of ``VectorEnvironment``? One check per promise, over whole episodes.

``hmarl-check-env`` prints the outcome; tests of users' own environments call ``check_environment`` and assert that
every result has passed.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass, fields, is_dataclass
from functools import partial
from typing import Any, get_args

import numpy as np
import numpy.typing as npt
from gymnasium import spaces

from hmarl.sdk.environment import Finding, FindsFaults, LocatesAgents, Observation, StepResult, VectorEnvironment
from hmarl.sdk.errors import UsageError
from hmarl.sdk.spaces import AgentSpec, EnvironmentSpec, TeamReward, check_bounds
from hmarl.sdk.team import sample_actions

_TOLERANCE = 1e-5
_MOST_STEPS = 250
_STEPS_WITHOUT_HORIZON = 100
_MOST_FINDINGS = 3  # told in one line

Maker = Callable[[int], VectorEnvironment]


@dataclass(frozen=True)
class CheckResult:
    """The outcome of one check: its name, whether it passed, and what was found."""

    name: str
    passed: bool
    detail: str


class Violation(Exception):
    """An environment breaks its contract; the message says what was got and what was expected."""


@dataclass(frozen=True)
class _Trace:
    """Random legal play, everything as NumPy copies."""

    first: Observation
    results: list[StepResult]
    # What became of the arrays that were handed out, once the play was over.
    kept_first: Observation
    kept_results: list[StepResult]

    def observations(self) -> Iterator[tuple[str, Observation]]:
        """Every observation with a name for messages."""
        yield "reset", self.first
        for number, result in enumerate(self.results, 1):
            yield f"step {number}", result.observation
            if result.final is not None:
                yield f"step {number} (final)", result.final


@dataclass(frozen=True)
class _Context:
    make: Maker
    batch_size: int
    steps: int
    seeds: npt.NDArray[np.int64]
    deterministic: bool
    spec: EnvironmentSpec
    independent: bool
    trace: _Trace
    # What the environment itself has found during the play.
    findings: list[Finding]

    def play(self, seeds: npt.NDArray[np.int64], action_keys: Sequence[int]) -> _Trace:
        """Play in a fresh batch of ``len(seeds)`` environments; row b's actions follow from ``action_keys[b]``."""
        with closing(self.make(len(seeds))) as environment:
            return _play(environment, environment.reset(seeds), action_keys, self.steps)


def check_environment(
    make: Maker,
    *,
    batch_size: int = 4,
    steps: int | None = None,
    seed: int = 0,
    deterministic: bool = False,
    progress: Callable[[str, int, int], None] = lambda name, done, total: None,
) -> list[CheckResult]:
    """Check an environment against every promise of ``VectorEnvironment``.

    Args:
        make: makes a fresh batch of that many environments, e.g. ``lambda b: make("mpe/simple_spread", b)``.
        batch_size: size of the batch that is looked at, 2 or more.
        steps: steps of play; by default two episodes, at most 250 steps, 100 where the horizon is unknown.
        seed: seeds the play.
        deterministic: the task has nothing random, so different seeds may give the same episode. An environment with a
            true attribute ``deterministic`` says so itself.
        progress: told before each check its name, how many are done, and of how many.

    Returns:
        One result per check, in order. When random play itself fails, only the checks up to there.

    Raises:
        HmarlError: the environment could not be made.
        UsageError: a batch of fewer than 2.
    """
    if batch_size < 2:
        raise UsageError(f"batch_size: got {batch_size}, expected at least 2")
    total = len(_CHECKS) + 2
    progress("spec", 0, total)
    with closing(make(batch_size)) as environment:
        spec = environment.spec
        independent = bool(getattr(environment, "independent_copies", True))
        deterministic = deterministic or bool(getattr(environment, "deterministic", False))
        results = [_outcome("spec", partial(_check_spec, spec, environment.batch_size, batch_size))]
        steps = steps or min(2 * spec.horizon + 1 if spec.horizon else _STEPS_WITHOUT_HORIZON, _MOST_STEPS)
        seeds = np.random.default_rng(seed).choice(2**31 - 1, size=batch_size, replace=False).astype(np.int64)
        played: list[_Trace] = []
        findings: list[Finding] = []

        def random_play() -> str:
            if isinstance(environment, FindsFaults):
                environment.findings()  # from here on it watches
            played.append(_play(environment, environment.reset(seeds), range(batch_size), steps))
            if isinstance(environment, FindsFaults):
                findings.extend(environment.findings())
            return f"{steps} steps of {batch_size} environments with random legal actions"

        progress("random play", 1, total)
        results.append(_outcome("random play", random_play))
    if not played:
        return results
    context = _Context(make, batch_size, steps, seeds, deterministic, spec, independent, played[0], findings)
    for name, check in _CHECKS:
        progress(name, len(results), total)
        results.append(_outcome(name, partial(check, context)))
    return results


def _outcome(name: str, check: Callable[[], str]) -> CheckResult:
    try:
        return CheckResult(name, True, check())
    except Violation as violation:
        return CheckResult(name, False, str(violation))
    except SystemExit as error:
        return CheckResult(name, False, f"the environment called sys.exit({error.code!r})")
    except Exception as error:
        return CheckResult(name, False, f"{type(error).__name__}: {error}")


def _require(condition: Any, message: str) -> None:
    if not bool(condition):
        raise Violation(message)


def _require_no_findings(context: _Context, check: str) -> None:
    """Fail with what the environment has found in the code that it wraps, as far as it belongs to a check."""
    found = [each for each in context.findings if each.check == check]
    told = "; ".join(f"{each.what} ({each.count} times, first {each.example})" for each in found[:_MOST_FINDINGS])
    rest = len(found) - _MOST_FINDINGS
    _require(not found, f"{told}; and {rest} more of this kind" if rest > 0 else told)


# --- playing ---------------------------------------------------------------------------------------------------------


def _numpy(value: Any) -> Any:
    """A copy with NumPy arrays in place of arrays and tensors; dataclasses and tuples are followed."""
    if value is None:
        return None
    if isinstance(value, tuple):
        return tuple(_numpy(item) for item in value)
    if is_dataclass(value) and not isinstance(value, type):
        return type(value)(**{field.name: _numpy(getattr(value, field.name)) for field in fields(value)})
    return np.array(value.cpu().numpy() if hasattr(value, "cpu") else value)


def _play(environment: VectorEnvironment, observation: Observation, action_keys: Sequence[int], steps: int) -> _Trace:
    generators = [np.random.default_rng(int(key)) for key in action_keys]
    handed_out: list[StepResult] = []
    first, results = _numpy(observation), []
    seen: Observation = first
    for _ in range(steps):
        result = environment.step(_actions(environment.spec, seen, generators))
        handed_out.append(result)
        results.append(_numpy(result))
        seen = results[-1].observation
    return _Trace(first, results, _numpy(observation), [_numpy(result) for result in handed_out])


def _actions(
    spec: EnvironmentSpec, seen: Observation, generators: Sequence[np.random.Generator]
) -> tuple[npt.NDArray[Any], ...]:
    """Row by row, so that a row's actions do not depend on the size of the batch."""
    blocks = []
    for group, masks in zip(spec.groups, seen.action_masks, strict=True):
        space, shape = group.example.action_space, (len(group.agents),)
        rows = [
            sample_actions(space, shape, None if masks is None else masks[row], generator)
            for row, generator in enumerate(generators)
        ]
        blocks.append(np.stack(rows).astype(group.example.action_dtype))
    return tuple(blocks)


def _difference(left: Any, right: Any, tolerance: float = 0.0) -> str | None:
    """Where two results first differ, as a path of field names; None when they are equal."""
    if left is None or right is None:
        return None if left is right else "one is missing"
    if isinstance(left, tuple | list):
        pairs = [(str(index), *pair) for index, pair in enumerate(zip(left, right, strict=True))]
    elif is_dataclass(left):
        pairs = [(field.name, getattr(left, field.name), getattr(right, field.name)) for field in fields(left)]
    else:
        same_shape = np.shape(left) == np.shape(right)
        near = partial(np.allclose, rtol=tolerance, atol=tolerance, equal_nan=True)
        equal = near if tolerance else partial(np.array_equal, equal_nan=np.asarray(left).dtype.kind == "f")
        return None if same_shape and equal(left, right) else "values"
    for name, one, other in pairs:
        found = _difference(one, other, tolerance)
        if found is not None:
            return f"{name}.{found}"
    return None


def _row(value: Any, rows: Any) -> Any:
    """The given rows of every array."""
    if value is None:
        return None
    if isinstance(value, tuple | list):
        return type(value)(_row(item, rows) for item in value)
    if is_dataclass(value) and not isinstance(value, type):
        return type(value)(**{field.name: _row(getattr(value, field.name), rows) for field in fields(value)})
    return value[rows]


def _first_difference(one: _Trace, other: _Trace, tolerance: float = 0.0) -> str | None:
    """Step and field at which two plays part; the final observation counts only where an episode ended."""
    found = _difference(one.first, other.first, tolerance)
    if found is not None:
        return f"reset: {found}"
    for number, (left, right) in enumerate(zip(one.results, other.results, strict=True), 1):
        for name in ("observation", "rewards", "terminated", "truncated", "success"):
            found = _difference(getattr(left, name), getattr(right, name), tolerance)
            if found is not None:
                return f"step {number}: {name}.{found}"
        ended = left.terminated | left.truncated
        if ended.any():
            found = _difference(_row(left.final, ended), _row(right.final, ended), tolerance)
            if found is not None:
                return f"step {number}: final.{found}"
    return None


# --- the checks ------------------------------------------------------------------------------------------------------


def _check_spec(spec: EnvironmentSpec, got_batch: int, batch_size: int) -> str:
    _require(got_batch == batch_size, f"batch_size: got {got_batch}, expected {batch_size}")
    rewards = get_args(TeamReward)
    _require(spec.team_reward in rewards, f"team_reward: got {spec.team_reward!r}, expected one of {rewards}")
    _require(spec.state_size > 0, f"state_size: got {spec.state_size}, expected at least 1")
    _require(spec.horizon is None or spec.horizon > 0, f"horizon: got {spec.horizon}, expected None or at least 1")
    for agent in spec.agents:
        _check_agent(agent)
    return f"{_counted(spec.agents, 'agent')} in {_counted(spec.groups, 'group')}, state of {spec.state_size}"


def _counted(things: Sequence[Any], name: str) -> str:
    return f"{len(things)} {name}{'' if len(things) == 1 else 's'}"


def _check_agent(agent: AgentSpec) -> None:
    where, space = f"agent '{agent.id}'", agent.action_space
    _require(agent.observation_size > 0, f"{where}: observation_size: got {agent.observation_size}, expected 1 or more")
    parts = sum(length for _, length in agent.observation_layout)
    described = not agent.observation_layout or parts == agent.observation_size
    _require(described, f"{where}: observation_layout covers {parts} numbers of {agent.observation_size}")
    if isinstance(space, spaces.Discrete):
        _require(int(space.start) == 0, f"{where}: Discrete starts at {space.start}, expected 0")
    elif isinstance(space, spaces.MultiDiscrete):
        _require(space.nvec.ndim == 1, f"{where}: MultiDiscrete of shape {space.nvec.shape}, expected one dimension")
    elif isinstance(space, spaces.Box):
        try:
            check_bounds(agent.id, space)
        except UsageError as error:
            raise Violation(str(error)) from error
        _require(len(space.shape) == 1, f"{where}: action Box of shape {space.shape}, expected one dimension")
        _require(space.dtype == np.float32, f"{where}: action Box of dtype {space.dtype}, expected float32")
        _require(not agent.has_action_mask, f"{where}: has an action mask, but its actions are continuous")
    else:
        raise Violation(f"{where}: got action space {space}, expected Discrete, MultiDiscrete or Box")


def _expect_array(where: str, array: Any, shape: tuple[int, ...], kind: type[Any] | np.dtype[Any]) -> None:
    got = None if array is None else (array.shape, array.dtype)
    expected = f"{list(shape)} {np.dtype(kind)}"
    _require(got is not None, f"{where}: got None, expected {expected}")
    matches = array.shape == shape and array.dtype == np.dtype(kind)
    _require(matches, f"{where}: got {list(array.shape)} {array.dtype}, expected {expected}")


def _check_shapes(context: _Context) -> str:
    spec, batch = context.spec, context.batch_size
    for where, seen in context.trace.observations():
        _expect_array(f"{where}: state", seen.state, (batch, spec.state_size), spec.state_dtype)
        _expect_array(f"{where}: active", seen.active, (batch, len(spec.agents)), np.bool_)
        found = (len(seen.observations), len(seen.action_masks))
        groups = len(spec.groups)
        _require(found == (groups, groups), f"{where}: got {found} observations and masks, expected {groups} each")
        for index, group in enumerate(spec.groups):
            leading, agent = (batch, len(group.agents)), group.example
            size = (*leading, agent.observation_size)
            _expect_array(f"{where}: observations[{index}]", seen.observations[index], size, agent.observation_dtype)
            name, mask = f"{where}: action_masks[{index}]", seen.action_masks[index]
            if agent.has_action_mask:
                _expect_array(name, mask, (*leading, agent.mask_size), np.bool_)
            else:
                _require(mask is None, f"{name}: got an array, expected None (has_action_mask is False)")
    for number, result in enumerate(context.trace.results, 1):
        _expect_array(f"step {number}: rewards", result.rewards, (batch, len(spec.agents)), np.float32)
        _expect_array(f"step {number}: terminated", result.terminated, (batch,), np.bool_)
        _expect_array(f"step {number}: truncated", result.truncated, (batch,), np.bool_)
        if spec.has_success:
            _expect_array(f"step {number}: success", result.success, (batch,), np.bool_)
    _require_no_findings(context, "shapes and dtypes")
    return "observations, masks, state, active, rewards and flags"


def _check_common(context: _Context) -> str:
    spec, parts = context.spec, context.spec.common_observations
    for where, seen in context.trace.observations():
        of_agent = {
            index: seen.observations[g][:, member]
            for g, group in enumerate(spec.groups)
            for member, index in enumerate(group.agents)
        }
        for part in parts:
            shown = np.stack([of_agent[i][:, _columns(agent, part)] for i, agent in enumerate(spec.agents)], 1)
            first = shown[np.arange(len(shown)), seen.active.argmax(1)][:, None]
            differs = ((shown != first).any(-1) & seen.active).nonzero()
            if len(differs[0]):
                row, other = differs[0][0], spec.agents[differs[1][0]].id
                one = spec.agents[seen.active[row].argmax()].id
                raise Violation(f"{where}, environment {row}: '{part}' is not the same for '{one}' and '{other}'")
    return f"{', '.join(parts)}: alike for all agents" if parts else "none declared"


def _columns(agent: AgentSpec, part: str) -> list[int]:
    """Where a part of an agent's observation lies."""
    names = [name for name, length in agent.observation_layout for _ in range(length)]
    return [place for place, name in enumerate(names) if name == part]


def _check_finite(context: _Context) -> str:
    for where, seen in context.trace.observations():
        named = {f"observations[{index}]": array for index, array in enumerate(seen.observations)}
        for name, array in {**named, "state": seen.state}.items():
            bad = int((~np.isfinite(array)).sum())
            _require(bad == 0, f"{where}: {name} has {bad} entries that are NaN or infinite")
    for number, result in enumerate(context.trace.results, 1):
        _require(np.isfinite(result.rewards).all(), f"step {number}: rewards has entries that are NaN or infinite")
    return "no NaN, no infinity"


def _check_masks(context: _Context) -> str:
    masked = [index for index, group in enumerate(context.spec.groups) if group.example.has_action_mask]
    for where, seen in context.trace.observations():
        for index in masked:
            group, mask = context.spec.groups[index], np.asarray(seen.action_masks[index])
            space = group.example.action_space
            sizes = space.nvec if isinstance(space, spaces.MultiDiscrete) else [mask.shape[-1]]
            for branch in np.split(mask, np.cumsum(sizes)[:-1], axis=-1):
                _require(branch.any(-1).all(), f"{where}: a mask of group {index} allows no action at all")
            gone = ~seen.active[:, list(group.agents)]
            _require(mask[gone].all(), f"{where}: the mask of an agent that has left is not all true")
    if not masked:
        return "no masks"
    have = "has" if len(masked) == 1 else "have"
    return f"{len(masked)} of {_counted(context.spec.groups, 'group')} {have} masks, each with a legal action"


def _check_active(context: _Context) -> str:
    groups = context.spec.groups
    for where, seen in context.trace.observations():
        for index, group in enumerate(groups):
            gone = ~seen.active[:, list(group.agents)]
            silent = not np.asarray(seen.observations[index])[gone].any()
            _require(silent, f"{where}: the observation of an agent that has left is not zero (group {index})")
        if "final" not in where:
            _require(seen.active.any(1).all(), f"{where}: a running environment has no active agent")
    before, left = context.trace.first.active, 0
    for number, result in enumerate(context.trace.results, 1):
        unpaid = not result.rewards[~before].any()
        _require(unpaid, f"step {number}: an agent that had left before got a reward")
        before = result.observation.active
        left += int((~before).sum())
    _require_no_findings(context, "active agents")
    return "agents leave and stay silent" if left else "no agent left during the play"


def _check_kept(context: _Context) -> str:
    trace = context.trace
    found = _difference(trace.first, trace.kept_first) or _difference(trace.results, trace.kept_results)
    _require(found is None, f"an array handed out earlier was overwritten by a later step ({found}); hand out copies")
    return "arrays handed out are not overwritten later"


def _check_same_seed(context: _Context) -> str:
    keys = range(context.batch_size)
    found = _first_difference(context.trace, context.play(context.seeds, keys))
    _require(found is None, f"two fresh instances with equal seeds and actions part at {found}")
    with closing(context.make(context.batch_size)) as environment:
        _play(environment, environment.reset(context.seeds + 1), keys, 3)
        again = _play(environment, environment.reset(context.seeds), keys, context.steps)
    found = _first_difference(context.trace, again)
    _require(found is None, f"after a reset with equal seeds a used instance parts from a fresh one at {found}")
    return f"equal over {context.steps} steps, in fresh and in used instances"


def _check_different_seeds(context: _Context) -> str:
    # One key for all rows: whatever differs, differs because of the seeds.
    keys = [0] * context.batch_size
    other = context.play(np.full_like(context.seeds, context.seeds[1]), keys)
    one = context.play(np.full_like(context.seeds, context.seeds[0]), keys)
    if _first_difference(one, other) is None:
        hint = "is the seed used? (say so if the task is deterministic)"
        _require(context.deterministic, f"different seeds give the same {context.steps} steps: {hint}")
        return "the task is deterministic"
    mixed = context.play(context.seeds, keys)
    first, second = (_rows(mixed, slice(row, row + 1)) for row in (0, 1))
    found = _first_difference(first, second)
    _require(found is not None, "environments of one batch play the same episode although their seeds differ")
    return f"they part at {found}"


def _rows(trace: _Trace, rows: Any) -> _Trace:
    first, results = _row(trace.first, rows), [_row(result, rows) for result in trace.results]
    return _Trace(first, results, first, results)


def _check_batch_size(context: _Context) -> str:
    if not context.independent:
        return "not promised (independent_copies is False)"
    for row in {0, context.batch_size - 1}:
        alone = context.play(context.seeds[row : row + 1], [row])
        found = _first_difference(_rows(context.trace, slice(row, row + 1)), alone, _TOLERANCE)
        _require(found is None, f"environment {row} of {context.batch_size} and the same one alone part at {found}")
    return f"batches of {context.batch_size} and 1 agree"


def _check_auto_reset(context: _Context) -> str:
    episodes, changed = 0, False
    for number, result in enumerate(context.trace.results, 1):
        ended = result.terminated | result.truncated
        if not ended.any():
            _require(result.final is None, f"step {number}: got a final observation, but no episode ended")
            continue
        _require(result.final is not None, f"step {number}: an episode ended, but final is None")
        running = _difference(_row(result.final, ~ended), _row(result.observation, ~ended))
        _require(running is None, f"step {number}: where no episode ended, final differs from observation ({running})")
        episodes += int(ended.sum())
        changed |= _difference(_row(result.final, ended), _row(result.observation, ended)) is not None
    if episodes == 0:
        horizon = context.spec.declared_horizon
        known = horizon is not None and horizon <= context.steps
        _require(not known, f"no episode ended in {context.steps} steps, the horizon is {horizon}")
        return f"no episode ended in {context.steps} steps; give more steps"
    moves = any(_difference(context.trace.first, result.observation) for result in context.trace.results)
    kept = changed or not moves
    _require(kept, "final always equals the next episode's first observation: is it overwritten by the reset?")
    return f"{episodes} episodes ended, each with its final observation"


def _check_flags(context: _Context) -> str:
    for number, result in enumerate(context.trace.results, 1):
        both = result.terminated & result.truncated
        _require(not both.any(), f"step {number}: environment {int(both.argmax())} is both terminated and truncated")
    terminated = sum(int(result.terminated.sum()) for result in context.trace.results)
    truncated = sum(int(result.truncated.sum()) for result in context.trace.results)
    return f"{terminated} terminated, {truncated} truncated, none both"


def _check_horizon(context: _Context) -> str:
    horizon = context.spec.declared_horizon
    if horizon is None:
        guess = context.spec.horizon
        return "the horizon is unknown" if guess is None else f"the horizon of {guess} steps is a guess"
    lengths = np.zeros(context.batch_size, dtype=np.int64)
    for number, result in enumerate(context.trace.results, 1):
        lengths += 1
        ended = result.terminated | result.truncated
        early = result.truncated & (lengths < horizon)
        _require(
            not early.any(), f"step {number}: truncated after {lengths[early][:1]} steps, the horizon is {horizon}"
        )
        late = ~ended & (lengths >= horizon)
        _require(
            not late.any(), f"step {number}: an episode goes on after {lengths[late][:1]} steps, horizon {horizon}"
        )
        lengths[ended] = 0
    return f"no episode is longer than {horizon} steps"


def _check_save_and_restore(context: _Context) -> str:
    keys, later = range(context.batch_size), range(100, 100 + context.batch_size)
    with closing(context.make(context.batch_size)) as environment:
        before = _play(environment, environment.reset(context.seeds), keys, max(1, context.steps // 3))
        state = environment.get_state()
        if state is None:
            return "not supported (get_state is None)"
        for name, array in state.items():
            plain = isinstance(array, np.ndarray) and not array.dtype.hasobject
            _require(plain, f"get_state: '{name}' is a {type(array).__name__}, expected a plain NumPy array")
        saved = {name: array.copy() for name, array in state.items()}
        on = _play(environment, before.results[-1].observation, later, context.steps)
        again = _play(environment, environment.set_state(saved), later, context.steps)
    found = _first_difference(on, again)
    _require(found is None, f"the same instance, restored, parts from its own continuation at {found}")
    with closing(context.make(context.batch_size)) as fresh:
        other = _play(fresh, fresh.set_state(saved), later, context.steps)
    found = _first_difference(on, other)
    _require(found is None, f"a fresh instance, restored, parts from the saved one at {found}")
    return f"bit for bit over {context.steps} steps, {sum(array.nbytes for array in saved.values())} bytes"


def _check_agent_pixels(context: _Context) -> str:
    with closing(context.make(context.batch_size)) as environment:
        if not isinstance(environment, LocatesAgents):
            return "not supported (no agent_pixels)"
        seen, shape = _numpy(environment.reset(context.seeds)), (len(context.spec.agents), 3)
        later = max(1, context.steps // 3)
        for moment in ("reset", f"step {later}"):
            for index in (0, context.batch_size - 1):
                picture = environment.render(index)
                size = None if picture is None else picture.shape[1::-1]
                found = np.asarray(environment.agent_pixels(index))
                _expect_array(f"{moment}: agent_pixels({index})", found, shape, np.float64)
                there = np.isfinite(found).all(1)
                matches = np.array_equal(there, seen.active[index])
                _require(matches, f"{moment}: agent_pixels({index}): NaN elsewhere than where agents have left")
                _require(size is not None, f"{moment}: agent_pixels({index}), but render({index}) is None")
                inside = (found[there, :2] >= 0).all() and (found[there, :2] < np.array(size)).all()
                _require(inside, f"{moment}: agent_pixels({index}): an agent is outside of the picture")
            if moment == "reset":
                seen = _play(environment, seen, range(context.batch_size), later).results[-1].observation
    return "within the pictures, NaN for agents that have left"


def _check_close(context: _Context) -> str:
    for used in (True, False):
        environment = context.make(context.batch_size)
        if used:
            environment.reset(context.seeds)
        environment.close()
        environment.close()
    return "twice without an error, used and unused"


_CHECKS: tuple[tuple[str, Callable[[_Context], str]], ...] = (
    ("shapes and dtypes", _check_shapes),
    ("finite values", _check_finite),
    ("action masks", _check_masks),
    ("active agents", _check_active),
    ("common observations", _check_common),
    ("results kept", _check_kept),
    ("same seed, same episode", _check_same_seed),
    ("different seeds differ", _check_different_seeds),
    ("batch size", _check_batch_size),
    ("auto-reset and final", _check_auto_reset),
    ("terminated or truncated", _check_flags),
    ("horizon", _check_horizon),
    ("save and restore", _check_save_and_restore),
    ("agents in pictures", _check_agent_pixels),
    ("close", _check_close),
)
