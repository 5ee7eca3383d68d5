"""Settings of a run that do not depend on the algorithm."""

from __future__ import annotations

from typing import Any, ClassVar, Literal

from pydantic import Field, ValidationInfo, field_validator

from hmarl.trainer.networks.settings import Settings
from hmarl.trainer.runs.seeds import EVALUATION_SEED


class RunSettings(Settings):
    """What does not depend on the algorithm (``--set run.KEY=VALUE``)."""

    retired: ClassVar[frozenset[str]] = frozenset({"log_interval_s"})

    steps: int = Field(1_000_000, ge=1, description="environment steps of the whole team, summed over the environments")
    seed: int = Field(0, ge=0, lt=2**31, description="seeds networks, action noise, permutations and environments")
    environments: int = Field(256, ge=1, description="B, environments stepped together, by default no more than fit")
    rollout_length: int = Field(
        25, ge=1, description="T, steps per environment between two updates, by default more with fewer environments"
    )
    workers: int = Field(
        0, ge=0, description="that step a share of the environments each, in this process or, with --ray, in others"
    )
    stale_updates: int = Field(
        0, ge=0, le=1, description="1: workers collect during the update before, by the parameters before it"
    )
    device: str = Field("cpu", description="torch device, e.g. cpu or cuda:0")
    matmul_precision: Literal["highest", "high", "medium"] = Field(
        "highest",
        description="of float32 matrix products on a CUDA device: highest, high (TF32) or medium (bfloat16 where it is "
        "quicker)",
    )
    threads: int = Field(2, ge=1, description="torch's threads within one operation")
    keep_freed_memory: bool = Field(
        True,
        description="glibc keeps the memory of tensors that are gone for the next ones; false returns it to the "
        "system at once, which is slower and holds less",
    )
    evaluation_interval: int = Field(250_000, ge=1, description="environment steps between two evaluations")
    evaluation_episodes: int = Field(100, ge=1, description="episodes of one evaluation, the same seeds every time")
    evaluation_seed: int = Field(
        EVALUATION_SEED, ge=0, description="what the seeds of an evaluation's episodes are derived from"
    )
    evaluation_modes: Literal["both", "judged"] = Field(
        "both",
        description="both: the team that is judged, and those that it is compared with, also play in the way in which "
        "it is not judged (greedy or sampled actions, algorithm.deterministic_evaluation)",
    )
    evaluation_step_limit: int | None = Field(
        None, ge=1, description="steps after which an evaluation's episode is cut off; the declared horizon, else 5,000"
    )
    checkpoint_interval: int = Field(20, ge=1, description="updates between two checkpoints")
    checkpoints_kept: int = Field(3, ge=1, description="newest checkpoints kept beside the best one")
    loggers: tuple[Literal["tensorboard", "wandb", "mlflow"], ...] = Field(
        ("tensorboard",), description="what shows the metrics beside metrics.jsonl, e.g. tensorboard,wandb; or none"
    )
    max_rollbacks: int = Field(5, ge=1, description="consecutive diverged updates after which training stops")

    @field_validator("workers")
    @classmethod
    def _each_has_environments(cls, value: int, info: ValidationInfo) -> int:
        environments = info.data.get("environments", value)
        if value > environments:
            raise ValueError(f"at most one an environment (run.environments={environments})")
        return value

    @field_validator("stale_updates")
    @classmethod
    def _by_workers(cls, value: int, info: ValidationInfo) -> int:
        if value and not info.data.get("workers", value):
            raise ValueError("0 without workers (run.workers)")
        return value

    @field_validator("loggers", mode="before")
    @classmethod
    def _as_typed(cls, value: Any) -> Any:
        """``tensorboard,wandb`` and ``none``, as they are typed."""
        if not isinstance(value, str):
            return value
        return () if value == "none" else tuple(part.strip() for part in value.split(","))
