"""Which suspect is named for which loss: the rules that docs/gap.md lists."""

from __future__ import annotations

from typing import Any

import pytest
from msgspec.structs import replace

from hmarl.runtime.manifest import Manifest, StudentsModel
from hmarl.sdk.gap.document import Serving, Suspect
from hmarl.sdk.gap.ladder import CENTRAL, LOCAL, ONNX, SERVED, faulted_name
from hmarl.sdk.gap.suspects import Facts, Step, suspects_of
from toy_bundle import write_toy_bundle

AGENTS = ("agent_0", "agent_1")


@pytest.fixture(scope="module")
def manifests(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Manifest]:
    """One whose policies remember, and one whose do not."""
    folder = tmp_path_factory.mktemp("bundles")
    return {name: write_toy_bundle(folder / name, plain=name == "plain").manifest for name in ("plain", "remembers")}


def facts(manifest: Manifest, broken: tuple[str, ...] = (), **arguments: Any) -> Facts:
    environment = replace(manifest.environment, arguments=arguments)
    return Facts(replace(manifest, environment=environment), AGENTS, lambda: list(broken))


def step(start: str, to: str, faults: str = "", same: int | None = None, serving: Serving | None = None) -> Step:
    return Step(start, to, faults, same, 10, serving)


def rules(found: list[Suspect]) -> list[str]:
    return [each.rule for each in found]


def test_from_central_to_local_it_is_imitation(manifests: dict[str, Manifest]) -> None:
    plain = manifests["plain"]
    (found,) = suspects_of(step(CENTRAL, LOCAL), facts(plain))
    assert (found.rule, "imitate a team that knows more" in found.why) == ("imitation", True)
    students = StudentsModel(
        teacher="guider", rounds=3, steps=9, stopped="rounds", episodes=5, seed=0, sampled=False, teacher_return=2.0,
        students_return=1.0, gap=1.0, kl=0.5, action_agreement=0.75, goal_accuracy=0.5,
    )  # fmt: skip
    (found,) = suspects_of(step(CENTRAL, LOCAL), facts(replace(plain, students=students)))
    assert found.why.startswith(
        "students act for the guider, whom they match in 75% of the actions and 50% of the goals"
    )
    standing = {"kl": 0.25, "agreement": 0.5, "return_mean": 1.0, "choice": "common"}
    again = {"kept": True, "before": {**standing, "agreement": 0.1}, "after": standing}
    (found,) = suspects_of(step(CENTRAL, LOCAL), facts(replace(plain, training={"redistillation": again})))
    assert "with whom they agree in 50% of the steps (KL 0.25)" in found.why


def test_from_torch_to_onnx_it_is_parity_where_a_check_fails_else_policies(
    manifests: dict[str, Manifest],
) -> None:
    plain = manifests["plain"]
    (found,) = suspects_of(step(LOCAL, ONNX, same=0), facts(plain, ("agent_0: off by 3", "agent_1: off by 2")))
    assert found.rule == "export parity"
    assert found.why.endswith("what torch did at export: agent_0: off by 3, and 1 more")
    (found,) = suspects_of(step(LOCAL, ONNX, same=7), facts(plain))
    assert (found.rule, "actions differ in 3 of 10 episodes" in found.why) == ("other policies", True)
    assert rules(suspects_of(step(LOCAL, ONNX, same=10), facts(plain))) == ["unknown"]


def test_from_one_process_to_served_the_clients_counts_decide(manifests: dict[str, Manifest]) -> None:
    plain = facts(manifests["plain"])

    def found(**counts: Any) -> list[Suspect]:
        return suspects_of(step(ONNX, SERVED, serving=Serving(acts=200, **counts)), plain)

    (late,) = found(fallbacks=50, late_replies=4, reasons={"DEADLINE_EXCEEDED": 46, "LATE_REPLY": 4})
    assert late.rule == "deadlines"
    assert late.why == (
        "50 of 200 acts (25.0%) were the fallback's: no fresh action in time (DEADLINE_EXCEEDED 46, LATE_REPLY 4; 4 "
        "late replies)"
    )
    assert rules(found(fallbacks=5, reasons={"UNAVAILABLE": 5})) == ["unreachable agents"]
    assert rules(found(fallbacks=5, reasons={"UNAVAILABLE": 3, "DEADLINE_EXCEEDED": 2})) == [
        "deadlines",
        "unreachable agents",
    ]
    assert rules(found(rejoins=1, state_resets=1)) == ["restarts"]
    assert rules(found()) == ["unknown"]


@pytest.mark.parametrize(
    ("faults", "trained", "kind", "expected"),
    [
        ("delay=2", {}, "plain", ["trained without faults", "no memory", "lost information"]),
        ("delay=2", {}, "remembers", ["trained without faults", "lost information"]),
        ("loss=0.1", {"faults.delay": 2}, "plain", ["no memory", "lost information"]),
        ("delay=2", {"faults": "delay=1"}, "remembers", ["lost information"]),
        ("noise=0.1", {"faults": "delay=1"}, "plain", ["trained without faults", "lost information"]),
        ("action_loss=0.1", {"faults.noise": 0.1}, "remembers", ["trained without faults", "lost information"]),
        ("agent_0:out=0", {}, "plain", ["trained without faults", "missing agents", "lost information"]),
        ("agent_0:out=0", {"faults": "out=0.1:5"}, "plain", ["missing agents", "lost information"]),
    ],
)
def test_under_faults_it_is_the_training_then_the_memory(
    manifests: dict[str, Manifest], faults: str, trained: dict[str, Any], kind: str, expected: list[str]
) -> None:
    found = suspects_of(step(SERVED, faulted_name(faults), faults), facts(manifests[kind], **trained))
    assert rules(found) == expected


def test_a_missed_deadline_under_faults_is_named_too(manifests: dict[str, Manifest]) -> None:
    serving = Serving(acts=10, fallbacks=1, reasons={"LATE_REPLY": 1})
    found = suspects_of(step(SERVED, "served, noise=1", "noise=1", serving=serving), facts(manifests["plain"]))
    assert rules(found)[-1] == "deadlines"
