"""Presets: settings with which an algorithm solves a task on two cores in minutes, and a paper's own by name."""

from __future__ import annotations

import fnmatch
from dataclasses import dataclass, field
from typing import Any

from hmarl.sdk.errors import UsageError, unknown_name


@dataclass(frozen=True)
class Preset:
    """Settings that differ from the defaults.

    Attributes:
        algorithm, environment: names; the environment may hold shell wildcards.
        steps: environment steps that solve the task, or that the paper trained for.
        about: what to expect, measured; for a paper's settings, what they hold and leave out.
        name: of a preset that is used only when asked for; None for one that its pair runs with by itself.
        search_seeds: of the runs by which it was searched for, which no report may use.
    """

    algorithm: str
    environment: str
    steps: int
    about: str
    algorithm_settings: dict[str, Any] = field(default_factory=dict)
    run_settings: dict[str, Any] = field(default_factory=dict)
    environment_arguments: dict[str, Any] = field(default_factory=dict)
    name: str | None = None
    search_seeds: tuple[int, ...] = ()


_TRUST_REGION: dict[str, Any] = {"kl_limit": 0.01, "curvature_fraction": 0.3, "entropy_coefficient": 0.03}
# Of HCPO's two weightings of the agents' samples this one did better, at equal true KL too; the steps are so small
# because its true KL comes to about twice the constrained one.
_SMALL_STEPS: dict[str, Any] = {**_TRUST_REGION, "instruction_weight": "paper", "kl_limit": 0.001}
_CLIPPED: dict[str, Any] = {"learning_rate": 7e-4, "epochs": 10, "minibatches": 2, "entropy_coefficient": 0.01}
# Many small rollouts learn faster than few large ones on these tasks. So does a short horizon: what an agent does now
# shows in the reward within a few steps, and what comes later is mostly the others' noise.
_MPE_RUN: dict[str, Any] = {"environments": 128, "rollout_length": 25, "threads": 1}
_SHORT_HORIZON: dict[str, Any] = {"gamma": 0.9}
# Gaussian policies keep exploring without an entropy bonus.
_NO_BONUS: dict[str, Any] = {"entropy_coefficient": 0.0}
_TABLE_GAME_RUN: dict[str, Any] = {"environments": 64, "rollout_length": 50, "threads": 1}
# One step, two agents: what matters is what a team of samplers does, so that argmax would hide everything.
_GUIDED: dict[str, Any] = {
    "embedding_size": 32,
    "learning_rate": 1e-3,
    "max_gradient_norm": 10.0,
    "epochs": 4,
    "minibatches": 2,
    "deterministic_evaluation": False,
}
_ONE_STEP_RUN: dict[str, Any] = {
    "environments": 64,
    "rollout_length": 4,
    "threads": 1,
    "evaluation_interval": 10_000,
    "evaluation_episodes": 1000,
}
# With less entropy a guider may settle before it has found the largest sums. A guider that remembers (sable) and looks
# further ahead learns to vary its numbers, which no table can.
_GUIDED_GAME: dict[str, Any] = {
    "gamma": 0.95,
    "entropy_coefficient": 0.02,
    "embedding_size": 32,
    "learning_rate": 1e-3,
    "learning_rate_decay": "linear",
    "epochs": 4,
    "minibatches": 8,
    "max_gradient_norm": 10.0,
}
_REMEMBERING: dict[str, Any] = {**_GUIDED_GAME, "chunk_length": 16}
_GUIDED_RUN: dict[str, Any] = {"environments": 64, "rollout_length": 128, "threads": 1}
_UNGUIDED: dict[str, Any] = {"max_gradient_norm": 0.5, "clip": 0.05}
# More numbers to choose from: reward is rare at first, so that a bonus for entropy outweighs it and what comes later is
# noise for longer.
_LARGER_GAME: dict[str, Any] = {**_SHORT_HORIZON, "entropy_coefficient": 0.01, "epochs": 6}
# Local policies that share a network learn from all agents' samples, and a guider is held near them. None is done so
# soon that steps should shrink.
_LARGER_GUIDED_GAME: dict[str, Any] = {**_LARGER_GAME, "share_parameters": True, "learning_rate_decay": "none"}
_LARGER_RUN: dict[str, Any] = {**_GUIDED_RUN, "rollout_length": 64}
# What a step earns follows from its own numbers: the next steps' rewards are noise. A conductor whose copies choose
# alike need not be sure of its choice, and policies are apart from the start where instructions are loud.
_COMMON_KNOWLEDGE: dict[str, Any] = {
    **_TRUST_REGION,
    "gamma": 0.3,
    "entropy_coefficient": 0.003,
    "conductor_sees": "common",
    "conductor_entropy_coefficient": 0.1,
}
# What an action earns later says nothing here, and in larger games it drowns what it earns at once.
_LARGER_COMMON_KNOWLEDGE: dict[str, Any] = {
    **_COMMON_KNOWLEDGE,
    "gamma": 0.0,
    "kl_limit": 0.01,
    "instructions": 5,
    "hidden_sizes": [128, 128],
}
_SEES_THE_STATE: dict[str, Any] = {
    **_TRUST_REGION,
    **_SHORT_HORIZON,
    "entropy_coefficient": 0.01,
    "conductor_entropy_coefficient": 0.02,
}
_VMAS_RUN: dict[str, Any] = {"environments": 32, "rollout_length": 100, "threads": 1}
_ROBOT_RUN: dict[str, Any] = {**_VMAS_RUN, "evaluation_episodes": 32}
_ROBOT_STEPS: dict[str, Any] = {"learning_rate": 5e-4, "epochs": 10, "minibatches": 4, **_NO_BONUS}
_ROBOT_HAMDPO: dict[str, Any] = {**_ROBOT_STEPS, "max_gradient_norm": 0.5}
# Adam's steps become too large for policies that have come to be sure of themselves, or have F of many agents.
_SMALLER_STEPS: dict[str, Any] = {"learning_rate_follows": True}
# F of six agents is a product of up to five ratios: few samples would outweigh all others.
_CLIPPED_F: dict[str, Any] = {"sequential_factor_clip": 0.5}

# Pistons are one policy each looks through a window of its own, which tells all that it need know. Its pictures are
# large and coarse: every eighth pixel shows ball and pistons. Without a render mode the game draws nothing.
_PIXEL_STEPS: dict[str, Any] = {
    "share_parameters": True,
    "agent_identity": False,
    "image_downsample": 8,
    "image_encoder": "small",
    "hidden_sizes": (128,),
    "gamma": 0.97,
    "learning_rate": 7e-4,
    "epochs": 5,
    "minibatches": 4,
}
_PIXEL_RUN: dict[str, Any] = {"environments": 4, "rollout_length": 64, "threads": 1, "evaluation_episodes": 16}
_PISTONS: dict[str, Any] = {
    "n_pistons": 5,
    "continuous": False,
    "render_mode": "rgb_array",
    "team_reward": "shared",
}

# Units that share their networks learn several times faster.
_UNITS: dict[str, Any] = {"hidden_sizes": (128, 128), "share_parameters": True}
_SMAX_RUN: dict[str, Any] = {"environments": 32, "rollout_length": 64, "threads": 1, "evaluation_episodes": 32}
_SMAX_STEPS: dict[str, Any] = {**_UNITS, "learning_rate": 1e-3, "epochs": 5, "minibatches": 4}

# Rewards of a few steps ahead say sooner what a policy is worth.
_SOFT_ROBOT: dict[str, Any] = {"learning_rate": 1e-3, "n_step": 5, "gradient_steps": 10}
_SOFT_RUN: dict[str, Any] = {
    "environments": 16,
    "rollout_length": 10,
    "threads": 1,
    "evaluation_interval": 20_000,
    "evaluation_episodes": 16,
}

# A guider, and local policies that follow faster than it moves.
_GUIDER_STEPS: dict[str, Any] = {"epochs": 5, "minibatches": 4, "max_gradient_norm": 10.0}
_FOLLOWERS: dict[str, Any] = {"recurrent": False, "hidden_sizes": (128, 128), "learner_learning_rate": 2e-3}
_MPE_GUIDER: dict[str, Any] = {**_GUIDER_STEPS, **_SHORT_HORIZON, "learning_rate": 7e-4}
_SMAX_GUIDER: dict[str, Any] = {**_GUIDER_STEPS, "learning_rate": 1e-3}
_LBF_GUIDER: dict[str, Any] = {**_GUIDER_STEPS, "learning_rate": 7e-4}
_MAT: dict[str, Any] = {"clip": 0.05}  # its authors' everywhere
_LBF_RUN: dict[str, Any] = {"environments": 32, "rollout_length": 50, "threads": 1}
_GUIDED_SMAX_RUN: dict[str, Any] = {**_SMAX_RUN, "environments": 64}

# Of their superiors' later advantages workers have nothing to expect: in theirs they are noise.
_HIERARCHY: dict[str, Any] = {"gae_lambda": 0.5, "minibatches": 4}
_SAMPLING_RUN: dict[str, Any] = {"environments": 64, "rollout_length": 50, "threads": 1}
_SAMPLING_STEPS: dict[str, Any] = {
    "gamma": 0.95,
    "learning_rate": 5e-4,
    "epochs": 10,
    "minibatches": 4,
    **_NO_BONUS,
}

# HCPO (Liu et al. 2025), Tables 1, 3 and 4, read as the code that the paper builds on (TRPO-PPO-in-MARL) means them:
# "hidden layer 1" is its layer_N=1, two layers, with layer normalisation of the input and after each; damping and
# SMAC's backtracking, which no table gives, are its own. What all three share (critic epoch and backtrack coef stand in
# Table 4 alone). Algorithm 3 is taken as printed, and the KL's Hessian from all samples. Adam's ε (1e-5) and the last
# layers' gain (0.01) are this project's constants. Without counterpart here: training threads (speed alone),
# stacked-frames (1 is none), hypernet embed (MAVEN's), actor lr and clip param (of baselines that take gradient steps).
# Where a table says nothing our defaults hold.
_PAPER: dict[str, Any] = {
    "conductor_kl_limit": 0.01,
    "instructions": 10,
    "accept_ratio": 0.5,
    "backtrack_coefficient": 0.8,
    "damping": 0.1,
    "normalise_layers": True,
    "critic_epochs": 5,
    "critic_minibatches": 1,
    "max_gradient_norm": 10.0,
    "activation": "relu",
    "instruction_weight": "paper",
    "curvature_fraction": 1.0,
}
_TABLE_1: dict[str, Any] = {
    **_PAPER,
    "gamma": 0.95,
    "kl_limit": 0.06,
    "critic_learning_rate": 5e-4,
    "critic_loss": "huber",
    "backtrack_coefficient": 0.5,
    "hidden_sizes": (64, 64),
    "critic_hidden_sizes": (64, 64),
    "conductor_hidden_sizes": (64, 64),
}
_TABLE_3: dict[str, Any] = {
    **_PAPER,
    "gamma": 0.99,
    "kl_limit": 0.005,
    "critic_learning_rate": 5e-3,
    "hidden_sizes": (128, 128),
    "critic_hidden_sizes": (128, 128),
    "conductor_hidden_sizes": (128, 128),
    "initial_std": 0.366,  # std y coef · sigmoid(std x coef / std x coef) = 0.5 · sigmoid(1)
}
_TABLE_4: dict[str, Any] = {
    **_PAPER,
    "gamma": 0.99,
    "kl_limit": 0.005,
    "critic_learning_rate": 5e-4,
    "entropy_coefficient": 0.01,
    "learning_rate_decay": "none",
    "hidden_sizes": (128, 128),  # from here on HARL's tuned files for MPE, where Table 4 is silent
    "critic_hidden_sizes": (128, 128),
    "conductor_hidden_sizes": (128, 128),
}
# Batch sizes 3200 and 4000 as rollout threads × episode length; in MPE as HARL's 20 threads of 200 steps.
_SMAC_RUN: dict[str, Any] = {"environments": 16, "rollout_length": 200, "evaluation_episodes": 32}
_MAMUJOCO_RUN: dict[str, Any] = {"environments": 20, "rollout_length": 200, "evaluation_episodes": 40}
_PAPER_MPE_RUN: dict[str, Any] = {"environments": 20, "rollout_length": 200, "evaluation_episodes": 40}

# QMIX and VDN as PyMARL (oxwhirl) has them for StarCraft: episodes are replayed whole, policies remember, values are
# not scaled. Targets copied every 200 episodes move about as far as by this rate.
_PYMARL: dict[str, Any] = {
    "gamma": 0.99,
    "recurrent": True,
    "hidden_sizes": (64,),
    "memory_size": 64,
    "learning_rate": 5e-4,
    "td_lambda": 0.0,
    "batch_fragments": 32,
    "replay_capacity": 5000,
    "target_rate": 0.005,
    "exploration_steps": 50_000,
    "max_gradient_norm": 10.0,
    "normalise_observations": False,
    "normalise_values": False,
}
# HASAC as HARL's tuned file for HalfCheetah-v2 2x3: one step on 1000 transitions for every step of 20 environments.
_HARL_SOFT: dict[str, Any] = {
    "gamma": 0.99,
    "hidden_sizes": (256, 256),
    "critic_hidden_sizes": (256, 256),
    "learning_rate": 1e-3,
    "critic_learning_rate": 1e-3,
    "n_step": 10,
    "gradient_steps": 50,
    "batch_transitions": 1000,
    "target_rate": 0.005,
    "initial_temperature": 1.0,
    "temperature_learning_rate": 3e-4,
    "normalise_values": False,
    "normalise_observations": False,
}
_HARL_RUN: dict[str, Any] = {"environments": 20, "rollout_length": 50, "evaluation_episodes": 40}

# MAGPO (Li et al. 2025): the public code's tuned settings, one row a task. One guider (Sable) for the team, one network
# for all local policies, which remember; every agent learns from its own reward. Not here: the factors by which its
# decays are scaled (ours are RetNet's), and its own MPE, whose actions are continuous and whose episodes have 26 steps.
_REFERENCE: dict[str, Any] = {"record": "reference"}
_MAGPO_PAPER: dict[str, Any] = {
    "guider": "sable",
    "credit": "own",
    "team_value": False,
    "initial_gains": "small",
    "share_parameters": True,
    "recurrent": True,
    "hidden_sizes": (128,),
    "memory_size": 128,
    "gamma": 0.99,
    "gae_lambda": 0.95,
    "chunk_length": 128,
}
_MAGPO_PAPER_RUN: dict[str, Any] = {"environments": 64, "rollout_length": 128}
_MAGPO_COLUMNS = (
    "minibatches", "max_gradient_norm", "embedding_size", "epochs", "clip", "attention_heads", "entropy_coefficient",
    "blocks", "learning_rate", "reinforcement_weight", "delta",
)  # fmt: skip
_MAGPO_ROWS: tuple[tuple[str, str, dict[str, Any], tuple[float, ...]], ...] = (
    ("spread-3", "mpe/simple_spread", {"N": 3}, (8, 0.5, 128, 5, 0.1, 1, 0.001, 3, 5e-4, 1.0, 1.5)),
    ("spread-5", "mpe/simple_spread", {"N": 5}, (8, 0.5, 128, 5, 0.1, 1, 0.001, 3, 5e-4, 4.0, 1.3)),
    ("spread-10", "mpe/simple_spread", {"N": 10}, (4, 10.0, 128, 5, 0.2, 2, 0.01, 1, 1e-3, 2.0, 3.0)),
    ("coordsum-3x10", "coordsum/3x10-30", _REFERENCE, (8, 0.5, 32, 10, 0.05, 1, 0.01, 2, 2.5e-4, 2.0, 1.3)),
    ("coordsum-3x30", "coordsum/3x30-50", _REFERENCE, (4, 0.5, 64, 15, 0.1, 1, 0.01, 1, 5e-4, 8.0, 1.2)),
    ("coordsum-5x20", "coordsum/5x20-80", _REFERENCE, (8, 0.5, 64, 15, 0.2, 2, 0.01, 2, 5e-4, 4.0, 1.1)),
    ("coordsum-8x15", "coordsum/8x15-100", _REFERENCE, (8, 0.5, 64, 15, 0.2, 1, 0.01, 2, 1e-3, 8.0, 1.3)),
    ("lbf-8x8", "lbf/8x8-2p-2f-coop", {}, (4, 10.0, 32, 15, 0.2, 4, 0.001, 2, 2.5e-4, 2.0, 1.5)),
    ("lbf-2s-8x8", "lbf/2s-8x8-2p-2f-coop", {}, (4, 0.5, 32, 5, 0.2, 4, 0.001, 2, 5e-4, 2.0, 1.5)),
    ("rware-2", "rware/tiny-2ag", {}, (1, 5.0, 128, 5, 0.05, 1, 0.01, 1, 1e-3, 2.0, 1.5)),
    ("rware-4", "rware/tiny-4ag", {}, (2, 0.5, 128, 5, 0.2, 2, 0.01, 3, 5e-4, 8.0, 1.3)),
    ("smax-2s3z", "smax/2s3z", {}, (4, 10.0, 128, 5, 0.2, 2, 0.01, 1, 5e-4, 4.0, 1.3)),
)

PRESETS: tuple[Preset, ...] = (
    *(
        # What the state shows here is what an agent has to be told by another: no local conductor can know it.
        Preset(
            "hcpo", f"mpe/{task}", steps, about,
            {**_TRUST_REGION, **_SHORT_HORIZON, "conductor_sees": "nothing"}, _MPE_RUN,
        )
        for task, steps, about in (
            ("simple_speaker_listener", 600_000, "return about -14.6 in a minute"),
            ("simple_reference", 3_000_000, "return about -16 in 2 minutes"),
        )
    ),
    Preset(
        "hcpo", "mpe/*", 2_500_000, "simple_spread: return about -33 in 3 minutes", {**_SMALL_STEPS, "gamma": 0.95},
        _MPE_RUN,
    ),
    Preset(
        "hatrpo", "mpe/*", 2_000_000, "simple_spread: return about -34 in 2 minutes",
        {**_TRUST_REGION, **_SHORT_HORIZON}, _MPE_RUN,
    ),
    Preset(
        "happo", "mpe/*", 2_000_000, "simple_spread: return about -32 in 2 minutes", {**_CLIPPED, **_SHORT_HORIZON},
        _MPE_RUN,
    ),
    *(
        Preset(name, "mpe/*", 2_000_000, "a baseline, settings of happo", {**_CLIPPED, **_SHORT_HORIZON}, _MPE_RUN)
        for name in ("a2po", "hamdpo", "mappo", "ippo")
    ),
    Preset(
        "haa2c", "mpe/*", 2_000_000, "a baseline, step size and discount of happo",
        {"learning_rate": 7e-4, **_SHORT_HORIZON}, _MPE_RUN,
    ),
    *(
        # Every agent observes its own goal: instructions that follow the state add nothing, and make learning slower.
        Preset(
            name, "vmas/navigation", 500_000, "return about 3.8 in 2 minutes",
            {**_TRUST_REGION, **_NO_BONUS, **_SHORT_HORIZON, **blind}, _VMAS_RUN,
        )
        for name, blind in (("hcpo", {"conductor_sees": "nothing"}), ("hatrpo", {}))
    ),
    Preset(
        "happo", "vmas/navigation", 500_000, "return about 4.0 in 2 minutes",
        {**_CLIPPED, **_NO_BONUS, **_SHORT_HORIZON}, _VMAS_RUN,
    ),
    Preset(
        "mat", "coordsum/sum-to-10*", 40_000, "always right, in several ways, in 20 seconds",
        {**_GUIDED, "entropy_coefficient": 0.1}, _ONE_STEP_RUN,
    ),
    Preset(
        "ctds", "coordsum/sum-to-10-full", 150_000,
        "a teacher who plays all eleven solutions; its students are right once in eleven times, after a minute",
        {**_GUIDED, "entropy_coefficient": 0.5, "minibatches": 4, "recurrent": False},
        {**_ONE_STEP_RUN, "environments": 256},
    ),
    Preset(
        "ctds", "coordsum/sum-to-10", 40_000,
        "a teacher who plays both solutions; its students are right one time in two",
        {**_GUIDED, "entropy_coefficient": 0.1, "recurrent": False}, _ONE_STEP_RUN,
    ),
    Preset(
        "magpo", "coordsum/sum-to-10*", 40_000, "local policies that are always right, in half a minute",
        {
            **_GUIDED, "entropy_coefficient": 0.0, "reinforcement_weight": 8.0, "recurrent": False,
            "learner_learning_rate": 4e-3,  # who follows faster lets the guider settle sooner
        },
        _ONE_STEP_RUN,
    ),
    *(
        Preset(
            "magpo", f"coordsum/{task}", 2_000_000, about,
            {
                **_REMEMBERING, **game, "guider": "sable", "learner_learning_rate": 3e-3, "delta": delta,
                "reinforcement_weight": weight,
            },
            run,
        )
        for task, delta, weight, about, game, run in (
            ("3x10-30", 1.3, 2.0, "return about 158 with env.record=reference, in 10 minutes", {}, _GUIDED_RUN),
            ("3x30-50", 1.2, 8.0, "env.record=reference: about 160 half-way", _LARGER_GUIDED_GAME, _LARGER_RUN),
            ("5x20-80", 1.1, 4.0, "env.record=reference: about 120 half-way", _LARGER_GUIDED_GAME, _LARGER_RUN),
            ("8x15-100", 1.3, 8.0, "env.record=reference: about 70 half-way", _LARGER_GUIDED_GAME, _LARGER_RUN),
        )
    ),
    Preset(
        "guided-hcpo", "coordsum/*", 2_000_000, "an extension, to compare",
        {
            **_GUIDED_GAME, "learner_learning_rate": 3e-3, "delta": 1.3, "reinforcement_weight": 2.0,
            "conductor_entropy_coefficient": 0.02,
        },
        _GUIDED_RUN,
    ),
    # A guider that nothing holds back needs smaller steps: with ε = 0.2 it collapsed, with smaller gradients as well.
    *(
        Preset(name, f"coordsum/{task}", 2_000_000, about, {**settings, **game}, run)
        for task, game, run in (("3x10-30", {}, _GUIDED_RUN), ("*", _LARGER_GAME, _LARGER_RUN))
        for name, about, settings in (
            ("mat", "centralised, to compare", {**_GUIDED_GAME, **_UNGUIDED}),
            ("sable", "centralised, to compare", {**_REMEMBERING, **_UNGUIDED}),
            ("ctds", "plain distillation, to compare", {**_REMEMBERING, "guider": "sable"}),
        )
    ),
    Preset(
        "hcpo", "coordsum/3x10-30", 1_000_000, "return about 160 in 2 minutes",
        {**_COMMON_KNOWLEDGE, "instruction_scale": 4.0}, _TABLE_GAME_RUN,
    ),
    *(
        # One network that knows roles, and instructions that pass them on: what is learnt of one instruction holds for
        # all. Rollouts that are learnt from again halve the frames, and the frames a second.
        Preset(
            "hcpo", f"coordsum/{task}", steps, about,
            {**_LARGER_COMMON_KNOWLEDGE, "share_parameters": True, "instruction_roles": True, "instruction_scale": 4.0,
             "instructions": agents, "entropy_coefficient": 0.03, **more},
            _TABLE_GAME_RUN,
        )
        for task, agents, steps, about, more in (
            ("3x30-50", 3, 1_000_000, "return about 170 in 11 minutes", {"replay_rollouts": 2}),
            ("5x20-80", 5, 2_000_000, "return about 175 in 15 minutes", {}),
        )
    ),
    Preset(
        "hcpo", "coordsum/*", 1_000_000, "not measured on other tasks than these", _LARGER_COMMON_KNOWLEDGE,
        _TABLE_GAME_RUN,
    ),
    Preset(
        "hcpo", "coordsum/*", 1_000_000,
        "a conductor that sees the state; 3x10-30: return about 124, 168 with the central conductor", _SEES_THE_STATE,
        _TABLE_GAME_RUN, name="state-conductor",
    ),
    Preset(
        "hatrpo", "coordsum/*", 1_000_000, "3x10-30: return about 110, then falling: no fixed table is safe",
        {**_TRUST_REGION, **_SHORT_HORIZON, "entropy_coefficient": 0.01}, _TABLE_GAME_RUN,
    ),
    *(
        Preset(name, "coordsum/*", 1_000_000, "a baseline", {**_CLIPPED, **_SHORT_HORIZON}, _TABLE_GAME_RUN)
        for name in ("happo", "mappo", "ippo")
    ),
    Preset(
        "himpo", "coordsum/*", 1_000_000, "3x10-30: return about 133, as a whole team",
        # All agents observe the same: only their numbers tell them apart.
        {**_HIERARCHY, **_SHORT_HORIZON, "learning_rate": 7e-4, "epochs": 10, "agent_identity": True, "graph": "all",
         "clustering": "number"},
        _TABLE_GAME_RUN,
    ),
    Preset(
        "maven", "mpe/*", 800_000, "simple_spread: return about -48 (one seed) in 4 minutes",
        {"gamma": 0.95, "gradient_steps": 32}, _MPE_RUN,
    ),
    *(
        Preset(name, "mpe/*", 800_000, "a baseline, settings of maven", {"gamma": 0.95, "gradient_steps": 32}, _MPE_RUN)
        for name in ("qmix", "vdn")
    ),
    *(
        Preset(
            name, "coordsum/sum-to-10", 20_000, "always right after 10,000 steps", {"exploration_steps": 20_000},
            _ONE_STEP_RUN,
        )
        for name in ("qmix", "vdn")
    ),
    Preset("hasac", "mamujoco/*", 100_000, "a baseline, not measured", _SOFT_ROBOT, _SOFT_RUN),
    Preset(
        "hasac", "vmas/navigation", 40_000, "return about 3.5 after 20,000 steps",
        {**_SOFT_ROBOT, **_SHORT_HORIZON}, _SOFT_RUN,
    ),
    *(
        Preset(
            name, "mamujoco/*", 500_000, "HalfCheetah-2x3: return thousands in 2 minutes",
            {**_TRUST_REGION, **_NO_BONUS}, _ROBOT_RUN,
        )
        for name in ("hcpo", "hatrpo")
    ),
    Preset(
        "hamdpo", "mamujoco/Walker2d-6x1", 3_000_000, "return about 4,000 in 12 minutes, four seeds of five",
        _ROBOT_HAMDPO | _SMALLER_STEPS | _CLIPPED_F, _ROBOT_RUN,
    ),
    *(
        Preset(name, "mamujoco/*", 500_000, "HalfCheetah-2x3: return thousands in 2 minutes", settings, _ROBOT_RUN)
        for name, settings in {
            "happo": _ROBOT_STEPS, "hamdpo": _ROBOT_HAMDPO, "a2po": _ROBOT_STEPS, "mappo": _ROBOT_STEPS,
        }.items()
    ),
    Preset(
        "haa2c", "mamujoco/*", 500_000, "HalfCheetah-2x3: return about 1,000",
        {"learning_rate": 1e-3, "epochs": 5, **_NO_BONUS}, _ROBOT_RUN,
    ),
    *(
        Preset(
            name, "smax/*", 400_000, "2s3z: half of the battles won after 300,000 steps",
            {**_TRUST_REGION, **_UNITS, "entropy_coefficient": 0.01, "kl_limit": 0.003}, _SMAX_RUN,
        )
        for name in ("hcpo", "hatrpo")
    ),
    *(
        Preset(name, "smax/*", 400_000, about, settings, {**_SMAX_RUN, "environments": 64})
        for name, about, settings in (
            ("happo", "2s3z: two battles of five won after 300,000 steps, two seeds of three", _SMAX_STEPS),
            ("hamdpo", "2s3z: half of the battles won after 300,000 steps", _SMAX_STEPS | _SMALLER_STEPS),
            ("mappo", "2s3z: most battles won after 270,000 steps, in 2 minutes, two seeds of three", _SMAX_STEPS),
        )
    ),
    Preset(
        "mappo", "pettingzoo/*pistonball*", 4_096,
        "five pistons: return about 99 of 100 after 2,000 steps", _PIXEL_STEPS, _PIXEL_RUN, _PISTONS,
    ),
    Preset(
        "maven", "smax/*", 400_000, "2s3z: nine battles of ten won after 300,000 steps (one seed)",
        {**_UNITS, "gradient_steps": 16}, _SMAX_RUN,
    ),
    Preset(
        "magpo", "mpe/*", 1_000_000, "simple_spread: return about -47 after 400,000 steps",
        {**_MPE_GUIDER, **_FOLLOWERS, "share_parameters": True, "reinforcement_weight": 4.0}, _MPE_RUN,
    ),
    Preset("mat", "mpe/*", 1_000_000, "centralised, to compare", {**_MPE_GUIDER, **_MAT}, _MPE_RUN),
    Preset(
        "magpo", "smax/*", 300_000, "2s3z: every battle won after 270,000 steps",
        {**_SMAX_GUIDER, **_FOLLOWERS, "share_parameters": True}, _GUIDED_SMAX_RUN,
    ),
    Preset("mat", "smax/*", 300_000, "centralised, to compare", {**_SMAX_GUIDER, **_MAT}, _GUIDED_SMAX_RUN),
    Preset(
        "magpo", "lbf/*", 400_000, "6x6-2p-1f-coop: nearly all of the food after 240,000 steps",
        {**_LBF_GUIDER, **_FOLLOWERS, "hidden_sizes": (64, 64), "reinforcement_weight": 4.0}, _LBF_RUN,
    ),
    Preset("mat", "lbf/*", 400_000, "centralised, to compare", {**_LBF_GUIDER, **_MAT}, _LBF_RUN),
    *(
        Preset(name, "lbf/*", 400_000, "a baseline", {"learning_rate": 7e-4, "epochs": 10, "minibatches": 2}, _LBF_RUN)
        for name in ("mappo", "happo", "ippo")
    ),
    Preset(
        "himpo", "vmas/sampling", 300_000, "3 agents: return about 77 after 150,000 steps, as a whole team",
        # Every step is rewarded here: in an advantage over five steps what one of them brought would drown.
        {**_SAMPLING_STEPS, **_HIERARCHY, "epochs": 5, "goal_interval": 1, "edge_values": False}, _SAMPLING_RUN,
    ),
    Preset(
        "mappo", "vmas/sampling", 300_000, "3 agents: return about 70 after 150,000 steps", _SAMPLING_STEPS,
        _SAMPLING_RUN,
    ),
    Preset(
        "himpo", "lbfws/*", 500_000, "hard: return about 4.9, as a whole team",
        {**_HIERARCHY, "learning_rate": 7e-4, "epochs": 5}, _SAMPLING_RUN,
    ),
    Preset(
        "mappo", "lbfws/*", 1_000_000, "hard: return about 4.8",
        {"learning_rate": 7e-4, "epochs": 5, "minibatches": 4}, _SAMPLING_RUN,
    ),
    Preset(
        "himpo", "smax/*", 300_000, "goals and messages", {**_HIERARCHY, "learning_rate": 1e-3, "epochs": 5},
        _GUIDED_SMAX_RUN,
    ),
    Preset(
        "hcpo", "smac/*", 10_000_000, "HCPO Table 1, as printed; evaluated less often", _TABLE_1, _SMAC_RUN,
        name="paper-smac",
    ),
    Preset(
        "hcpo", "smac/corridor", 10_000_000, "HCPO Table 1 with its discount for corridor", {**_TABLE_1, "gamma": 0.99},
        _SMAC_RUN, name="paper-smac-corridor",
    ),
    Preset(
        "hcpo", "mamujoco/*", 10_000_000, "HCPO Table 3, as printed; its number of steps is not given", _TABLE_3,
        _MAMUJOCO_RUN, name="paper-mamujoco",
    ),
    Preset(
        "hcpo", "mpe/*", 10_000_000, "HCPO Table 4 without the baselines' actor lr and clip; the rest as HARL's files",
        _TABLE_4, _PAPER_MPE_RUN, name="paper-mpe",
    ),
    *(
        Preset(
            name, "smac/*", 10_000_000, "PyMARL's settings as far as they apply; Adam for its RMSprop", settings,
            _SMAC_RUN, name=f"pymarl-{name}",
        )
        for name, settings in (
            ("qmix", {**_PYMARL, "mixing_embedding": 32, "mixing_hidden_sizes": (64,)}), ("vdn", _PYMARL),
        )
    ),
    Preset(
        "hasac", "mamujoco/HalfCheetah-2x3", 10_000_000, "HARL's tuned settings, but for its buffer of a million",
        _HARL_SOFT, _HARL_RUN, name="harl-hasac",
    ),
    *(
        Preset(
            "magpo", environment, 20_000_000, "MAGPO's public settings but for Sable's decay factors",
            {**_MAGPO_PAPER, **dict(zip(_MAGPO_COLUMNS, row, strict=True))}, _MAGPO_PAPER_RUN, arguments,
            name=f"paper-magpo-{task}",
        )
        for task, environment, arguments, row in _MAGPO_ROWS
    ),
)  # fmt: skip


def find_preset(algorithm: str, environment: str) -> Preset | None:
    """The first preset that a pair runs with by itself, or None."""
    for preset in PRESETS:
        if (
            preset.name is None
            and preset.algorithm == algorithm
            and fnmatch.fnmatchcase(environment, preset.environment)
        ):
            return preset
    return None


def named_preset(name: str, algorithm: str) -> Preset:
    """A preset by name.

    Raises:
        UsageError: unknown name, with a suggestion, or another algorithm's.
    """
    named = {preset.name: preset for preset in PRESETS if preset.name is not None}
    if name not in named:
        raise UsageError(unknown_name("preset", name, named))
    preset = named[name]
    if preset.algorithm != algorithm:
        raise UsageError(f"--preset {name}: is for {preset.algorithm}, got {algorithm}")
    return preset
