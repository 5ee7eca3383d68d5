"""What a loss between two rungs is likely due to: explicit rules, the first that holds being the first suspect.

Rules look at facts alone: what the bundle says of itself, what clients have counted, whose actions were the same. They
name a suspect, not a culprit; docs/gap.md lists them.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

from hmarl.runtime.manifest import Manifest
from hmarl.sdk.environments.faulty import split_faults
from hmarl.sdk.faults import AgentFaults, FaultModel, Outage, parse_faults
from hmarl.sdk.gap.document import Serving, Suspect
from hmarl.sdk.gap.ladder import CENTRAL, LOCAL, ONNX

# States of a policy that carry an instruction, which says nothing of what was observed.
_OF_INSTRUCTIONS = ("instruction_state", "last_instruction")
_LATE = ("DEADLINE_EXCEEDED", "LATE_REPLY")


@dataclass(frozen=True)
class Facts:
    """What rules look at.

    Attributes:
        manifest: of the bundle.
        agent_ids: of the environment.
        broken_graphs: asked when it matters: where the bundle's graphs do not compute its own recorded outputs.
    """

    manifest: Manifest
    agent_ids: tuple[str, ...]
    broken_graphs: Callable[[], list[str]] = field(default=list)

    @property
    def remembers(self) -> bool:
        """Whether any policy carries what it observed from step to step."""
        return any(state.input not in _OF_INSTRUCTIONS for agent in self.manifest.agents for state in agent.states)

    @cached_property
    def trained(self) -> FaultModel:
        """The faults that the team was trained with."""
        return trained_faults(self.manifest.environment.arguments)


def trained_faults(arguments: dict[str, Any]) -> FaultModel:
    """Those among an environment's arguments."""
    _, (given, single) = split_faults(arguments)
    return parse_faults(given, single)


@dataclass(frozen=True)
class Step:
    """Two neighbours, of which the later one has lost.

    Attributes:
        start, to: their names.
        faults: of the later one.
        same_actions: episodes in which all actions were the same, None where that is not known.
        episodes: in all.
        serving: what was counted when the later one played, None where nothing is served.
    """

    start: str
    to: str
    faults: str
    same_actions: int | None
    episodes: int
    serving: Serving | None


def suspects_of(step: Step, facts: Facts) -> list[Suspect]:
    """All suspects, the first one first; never none."""
    neighbours = {CENTRAL: _of_imitation, LOCAL: _of_export, ONNX: _of_serving}
    rule = _under_faults if step.faults else neighbours[step.start]
    found = list(rule(step, facts))
    return found or [
        Suspect(
            rule="unknown",
            why="nothing that was counted or checked explains it",
            remedy="play more episodes (--episodes), which tell whether it is chance",
        )
    ]


# --- the rules -------------------------------------------------------------------------------------------------------


def _of_imitation(step: Step, facts: Facts) -> Iterator[Suspect]:
    """From a team that knows more to local policies."""
    students = facts.manifest.students
    again = facts.manifest.training.get("redistillation")
    if students is not None:
        followed = [] if students.action_agreement is None else [f"{students.action_agreement:.0%} of the actions"]
        followed += [] if students.goal_accuracy is None else [f"{students.goal_accuracy:.0%} of the goals"]
        said = f", whom they match in {' and '.join(followed)}" if followed else ""
        why = f"students act for the {students.teacher}{said}: what their agents do not observe they have to guess"
        remedy = (
            "hmarl-export RUN --distil --set distillation.told=team tells whether they lack information or practice"
        )
    elif again is not None:
        follows = again["after" if again["kept"] else "before"]
        why = (
            f"local conductors stand in for the central one, with whom they agree in {follows['agreement']:.0%} of the "
            f"steps (KL {follows['kl']:.3g})"
        )
        remedy = "hmarl-export RUN --distil makes students that remember; algorithm.local_share trains agents with them"
    else:
        why = "local policies imitate a team that knows more than one agent observes"
        remedy = "train longer, or hmarl-export RUN --distil: students that remember"
    yield Suspect(rule="imitation", why=why, remedy=remedy)


def _of_export(step: Step, facts: Facts) -> Iterator[Suspect]:
    """From torch to ONNX Runtime."""
    broken = facts.broken_graphs()
    if broken:
        more = f", and {len(broken) - 1} more" if len(broken) > 1 else ""
        yield Suspect(
            rule="export parity",
            why=f"the bundle's graphs do not compute what torch did at export: {broken[0]}{more}",
            remedy="export the run again",
        )
    elif step.same_actions is not None and step.same_actions < step.episodes:
        yield Suspect(
            rule="other policies",
            why=f"actions differ in {step.episodes - step.same_actions} of {step.episodes} episodes, though the graphs "
            "compute what was recorded at export: near ties, or a bundle of other policies than this run's",
            remedy="export the run again on this machine",
        )


def _of_serving(step: Step, facts: Facts) -> Iterator[Suspect]:
    """From one process to one an agent."""
    serving = step.serving or Serving()
    late = sum(serving.reasons.get(each, 0) for each in _LATE)
    share = serving.fallbacks / max(serving.acts, 1)
    counted = f"{serving.fallbacks:,} of {serving.acts:,} acts ({share:.1%}) were the fallback's"
    causes = ", ".join(f"{name} {count:,}" for name, count in serving.reasons.items())
    deadlines = Suspect(
        rule="deadlines",
        why=f"{counted}: no fresh action in time ({causes}; {serving.late_replies:,} late replies)",
        remedy="give acts more time (--deadline-s), or the agents more cores",
    )
    unreachable = Suspect(
        rule="unreachable agents",
        why=f"{counted}: no answer ({causes})",
        remedy="look at the agents' logs, and whether they run",
    )
    if late:
        yield deadlines
    if serving.fallbacks > late:
        yield unreachable
    if serving.rejoins or serving.state_resets:
        yield Suspect(
            rule="restarts",
            why=f"agents were joined again {serving.rejoins:,} times, {serving.state_resets:,} times without memory",
            remedy="look at the agents' logs for why they restarted",
        )


def _under_faults(step: Step, facts: Facts) -> Iterator[Suspect]:
    """From served to served under faults."""
    model = parse_faults(step.faults)
    faults = [model.of(each) for each in facts.agent_ids]
    trained = [facts.trained.of(each) for each in facts.agent_ids]
    for names, untrained in _UNTRAINED.items():
        if any(_has(each, names) for each in faults) and not any(_has(each, names) for each in trained):
            yield untrained
    if not facts.remembers and any(_has(each, _SENSES) for each in faults):
        yield Suspect(
            rule="no memory",
            why="the policies remember nothing, so that nothing bridges what is late or lost",
            remedy="train with --set algorithm.recurrent=true",
        )
    if any(_has(each, _ABSENCE) for each in faults):
        yield Suspect(
            rule="missing agents",
            why="nothing acts in an agent's part but its fallback (fallback=...)",
            remedy="choose a fallback that does less harm, and train with env.faults.out",
        )
    yield Suspect(
        rule="lost information",
        why="what an agent does not see in time, or sees with noise, it cannot act on",
        remedy="a better link or sensor",
    )
    yield from _of_serving(step, facts)


_SENSES = ("delay", "loss", "freeze")
_ABSENCE = ("out", "restart")


def _has(faults: AgentFaults, names: tuple[str, ...]) -> bool:
    return any(getattr(faults, name) not in (0.0, (0, 0), Outage()) for name in names)


def _untrained(what: str, example: str) -> Suspect:
    return Suspect(
        rule="trained without faults",
        why=f"the team was trained without {what}",
        remedy=f"train with --set env.faults.{example}",
    )


_UNTRAINED = {
    _SENSES: _untrained("late and lost observations", "delay=2 and --set env.faults.loss=0.2"),
    ("noise",): _untrained("noise on its observations", "noise=0.1"),
    ("action_delay", "action_loss"): _untrained("late and lost actions", "action_loss=0.1"),
    _ABSENCE: _untrained("agents that are out", "out=0.01:20"),
}
