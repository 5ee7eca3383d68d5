"""Comparisons of guided algorithms."""

from __future__ import annotations

from comparison import FEW_EPISODES, Comparison, Variant, algorithms, settings_of

GUIDERS = ("mat", "sable", "factorised")
_FAST_GUIDER = (
    "algorithm.embedding_size=32", "algorithm.guider_epochs=3", "algorithm.reshuffle=false",
    "algorithm.learning_rate=0.004",
)  # fmt: skip


def v_of_each_token(seeds: int) -> tuple[Variant, ...]:
    """MAGPO whose tokens say their agents' values alone, as in its paper."""
    settings = ("algorithm.credit=own", "algorithm.team_value=false")
    return (Variant("magpo, own credit, V of each token", "magpo", settings, seeds),)


COMPARISONS = (
    *(
        Comparison(
            f"coordsum-{name}", "coordsum/3x10-30", 2_000_000, 100_000,
            variants, settings=FEW_EPISODES, environment_settings=(f"record={name}",), references=references,
            remark=remark,
        )
        for name, variants, references, remark in (
            (
                "reference",
                algorithms("magpo", "mappo", "happo", "ippo", "mat", "ctds"),
                (("MAGPO's paper, 20M frames", 153.1), ("best with memory", 183.0)),
                "MAGPO, with a guider that remembers (Sable), earns more than its paper reports after ten times as "
                "many frames, and more than any fixed table: its deployed policies vary what they name according to "
                "what they remember. MAPPO and IPPO find a good table within 400,000 frames and stay there. With "
                "greedy actions CTDS's students are ahead of their teachers in two seeds of three and 1 behind in the "
                "other; with sampled actions they are 5 to 7 behind: they follow well. What keeps CTDS behind MAGPO "
                "is the teacher, which earns 121, 145 and 159 with greedy actions, while MAGPO's guider earns 158 to "
                "160. MAT by itself needs small steps (ε = 0.05): with MAGPO's (--set algorithm.clip=0.2) it climbed "
                "to 142 and then fell to 18.",
            ),
            (
                "own", algorithms("magpo", "mappo", seeds=1),
                (("best fixed table", 119.0), ("best with memory", 181.0)),
                "One seed. No fixed table earns more than 119, which is where MAPPO settles; MAGPO's policies "
                "remember.",
            ),
        )
    ),
    *(
        Comparison(
            f"coordsum-{task}", f"coordsum/{task}", 1_000_000, 100_000,
            (
                *algorithms("magpo", "mappo", seeds=3),
                *algorithms("mat", "ctds", "happo", "ippo", seeds=1),
                Variant(
                    "magpo, networks apart, steps shrink", "magpo",
                    ("algorithm.share_parameters=false", "algorithm.learning_rate_decay=linear"), 1,
                ),
            ),
            settings=FEW_EPISODES, environment_settings=("record=reference",), remark=remark,
        )
        for task, remark in (
            (
                "3x30-50",
                "MAGPO ends ahead of MAPPO (three seeds each) and of IPPO (one). Its local policies share a network, "
                "as MAPPO's and IPPO's do; where each has its own and steps shrink to nothing within the budget (last "
                "row), MAGPO is level with MAPPO. HAPPO, whose agents do not share networks, MAT with steps at which "
                "it does not collapse, and CTDS are slow (one seed each).",
            ),
            (
                "5x20-80",
                "No algorithm has finished learning within this budget (the paper trains for twenty times as long). "
                "MAGPO ends ahead of MAPPO (three seeds each), beside IPPO (one). With separate networks for all "
                "local policies and steps that shrink to nothing (last row) it learns half as fast: a guider that is "
                "held close to its local policies learns no faster than they do. HAPPO and MAT are slower still, and "
                "CTDS learns next to nothing (one seed each; MAT's and CTDS's steps shrink, too).",
            ),
            (
                "8x15-100",
                "As for 5x20-80: MAGPO ends ahead of MAPPO, and level with IPPO (one seed).",
            ),
        )
    ),
    Comparison(
        "magpo-ablation", "coordsum/3x10-30", 600_000, 50_000,
        settings_of("magpo", "delta", (1.1, 1.3, 1.5, 2, 4, "auto"), "δ")
        + settings_of("magpo", "reinforcement_weight", (0, 1, 4), "λ")
        + settings_of("magpo", "double_clip", ("false",), "double clip")
        + settings_of("magpo", "backtracking", ("false",), "backtracking"),
        settings=FEW_EPISODES, environment_settings=("record=reference",),
        remark=(
            "One seed and a short budget: this shows which variant learns faster, not which ends higher. A tight δ "
            "and imitation alone (λ = 0) are slower; the rest is level. (The preset's δ is 1.3, and its λ 2.)"
        ),
    ),
    *(
        Comparison(
            f"simple_spread-{agents}", "mpe/simple_spread", steps, steps // 10,
            (
                *(Variant(f"{name}, own credit", name, ("algorithm.credit=own",), 5)
                  for name in ("magpo", "mappo", "happo")),
                *algorithms("ippo", seeds=5),
                *algorithms("magpo", "mappo"),
                Variant("magpo, networks apart", "magpo", ("algorithm.share_parameters=false",)),
                *of_tokens,
            ),
            settings=FEW_EPISODES,
            environment_settings=(f"N={agents}",), remark=remark,
        )
        for agents, steps, of_tokens, remark in (
            (
                3, 1_000_000, v_of_each_token(5),
                "With the team's reward as credit MAGPO is level with MAPPO when both act greedily (-40.4 and -40.3), "
                "and ahead in all seeds when both sample (-38.7 to -39.6; MAPPO -42.5 to -45.2): imitation leaves "
                "policies that are better as mixtures. With each agent's own reward it ends 1.7 lower with greedy "
                "actions, within MAPPO's interval, and is ahead of MAPPO and IPPO in all five seeds when all sample "
                "(-40.0 to -41.1; MAPPO -42.0 to -44.5, IPPO -41.4 to -45.5). On the way there it is ahead with "
                "greedy actions too: after half of the frames it has -44.7 on average against MAPPO's -51.2 and "
                "IPPO's -50.0. With own credit its V matters: where each token predicts its own agent's V alone, as "
                "in the paper (last row), guider and local policies end lower in all five seeds (by 3.1 and 2.3 in "
                "the IQM), because most of what an agent earns here is earned by all, and each token has to learn "
                "that by itself. The cause is not that V distorts the encoder: with an encoder of its own (600,000 "
                "frames, seed 300) V predicts better, but the team learns less (-44.9 against -41.5). HAPPO, whose "
                "agents have networks of their own and improve one after the other, is ahead of all with own credit. "
                "All that matters is observed here, so a guider has little to add. With larger steps MAPPO and IPPO "
                "are ahead of MAGPO in both modes: simple_spread-3-steps.",
            ),
            (
                5, 500_000, v_of_each_token(3),
                "With greedy actions MAGPO with either credit, its guider, MAPPO and IPPO are level. With sampled "
                "actions MAGPO with own credit is ahead of MAPPO in four seeds of five (-129.5 to -132.8; MAPPO "
                "-132.4 to -135.8) and level with IPPO. What V consists of matters less than with 3 agents. HAPPO, "
                "whose networks are separate, is behind, as is MAGPO with separate networks.",
            ),
            (
                10, 300_000, (),
                "With each agent's own reward as credit MAGPO is ahead of MAPPO with greedy actions in four seeds of "
                "five (-412 to -438; MAPPO -435 to -449), level with IPPO (-420 to -430) and far ahead of HAPPO (-467 "
                "to -488), whose ten networks each learn from a tenth of the samples. With sampled actions all are "
                "worse, and IPPO is ahead. With the team's reward MAPPO, which loses 7 with own credit, is ahead of "
                "MAGPO, whose seeds lie far apart. So credit is what the guider lacked with many agents: one team "
                "reward says little about what ten agents did.",
            ),
        )
    ),
    Comparison(
        "simple_spread-3-steps", "mpe/simple_spread", 1_000_000, 100_000,
        (
            *(Variant(f"{name}, own credit", name, ("algorithm.credit=own",), 5) for name in ("magpo", "mappo")),
            *algorithms("ippo", seeds=5),
            Variant("magpo, own credit, larger steps", "magpo", ("algorithm.credit=own", *_FAST_GUIDER), 5),
            Variant(
                "mappo, own credit, larger steps", "mappo",
                ("algorithm.credit=own", "algorithm.learning_rate=0.002"), 5,
            ),
            Variant("ippo, larger steps", "ippo", ("algorithm.learning_rate=0.002",), 5),
        ),
        settings=FEW_EPISODES, environment_settings=("N=3",),
        remark=(
            "simple_spread-3 once more, with larger steps: 0.002 for MAPPO and IPPO, 0.004 for MAGPO with "
            "embedding_size=32, guider_epochs=3 and reshuffle=false; the presets' are 0.0007. They were chosen with "
            "the team's credit (hmarl-train NAME --env mpe/simple_spread --steps 500000 --seed 300 --set "
            "algorithm.learning_rate=…): MAPPO -42.4 and, with seed 301, -45.4 (0.004: -45.8 and -46.2; the preset's "
            "-49.0 and -50.0), MAGPO -43.4 and -45.3; IPPO was given MAPPO's. With greedy actions all gain: MAGPO "
            "2.2, MAPPO 4.1 and IPPO, which ends level with HAPPO, 6.3; with sampled actions they end in the same "
            "order. So the size of the steps matters more here than a guider or separate networks do. With its preset "
            "MAGPO is the fastest for the first third, and then slows down. For ten agents MAGPO's large steps do "
            "harm (the same with --steps 300000 --set env.N=10 --set algorithm.credit=own: -478; the preset's seeds "
            "-412 to -438); MAPPO and IPPO were not tried there."
        ),
    ),
    Comparison(
        "magpo-speed", "mpe/simple_spread", 500_000, 50_000,
        (
            *algorithms("magpo", "mappo"),
            Variant("E=32", "magpo", ("algorithm.embedding_size=32",)),
            Variant("E=32, 3 guider epochs", "magpo", ("algorithm.embedding_size=32", "algorithm.guider_epochs=3")),
            Variant(
                "E=32, 2 guider epochs, shuffled once", "magpo",
                ("algorithm.embedding_size=32", "algorithm.guider_epochs=2", "algorithm.reshuffle=false"),
            ),
            *(
                Variant(
                    f"E=32, 3 guider epochs, shuffled once, steps of 0.004{policies}", "magpo", (*_FAST_GUIDER, *more)
                )
                for policies, more in (("", ()), (", policies of 64-64", ("algorithm.hidden_sizes=[64,64]",)))
            ),
            Variant("mappo, steps of 0.002", "mappo", ("algorithm.learning_rate=0.002",)),
        ),
        settings=FEW_EPISODES,
        remark=(
            "What it costs to make MAGPO faster, after half a million frames. Measured in turn on a quiet machine "
            "(make benchmark PYTEST_ARGS='-k what_less_of_a_guider_saves') the preset has 0.21 x MAPPO's frames/s, E "
            "= 32 has 0.32, or 0.40 with three of five guider epochs, or 0.52 with two and the order kept. At half "
            "the width its return is still above MAPPO's. Fewer guider epochs cost return unless each step is larger: "
            "with three, the order kept and steps of 0.004 it has 0.44 of MAPPO's speed, and with local policies of "
            "MAPPO's own size (64-64; the preset's are 128-128) 0.52, at a return above MAPPO's in all three seeds, "
            "with greedy and with sampled actions. The step was chosen with policies of 128-128 on seed 300 (--steps "
            "500000; 0.0012 -51.0, 0.002 -47.0, 0.004 -43.4, 0.008 -53.4). MAPPO gains from larger steps, too: with "
            "0.002 (simple_spread-3-steps says how it was chosen) it ends ahead of them all. The frames/s of the last "
            "three rows were measured beside other runs."
        ),
    ),
    *(
        Comparison(
            f"guiders-{name}", task, steps, steps // 10,
            tuple(
                Variant(guider, "magpo", () if guider == presets else (f"algorithm.guider={guider}",))
                for guider in GUIDERS
            ),
            settings=FEW_EPISODES, environment_settings=environment, remark=remark,
        )
        for name, task, steps, presets, environment, remark in (
            (
                "spread", "mpe/simple_spread", 500_000, "mat", (),
                "Guiders that decide one agent after the other (mat, sable) learn faster than one that is built like "
                "the local policies and is set to match them after every update; that one costs least, and is level "
                "with MAPPO (magpo-speed).",
            ),
            (
                "coordsum", "coordsum/3x10-30", 500_000, "sable", ("record=own",),
                "The choice of guider matters here: teams must vary what they name. The one that remembers (sable) "
                "ends first, the one that decides one agent after the other within a step (mat) is behind it, and the "
                "one that is built like the local policies learns half of that. All are still climbing.",
            ),
            (
                "lbf", "lbf/6x6-2p-1f-coop", 300_000, "mat", (),
                "With sampled actions every team takes all of the food, or nearly all; what differs is when both "
                "agents first load together. Under guiders that decide one agent after the other all six seeds take "
                "0.84 or more of it after 243,200 frames, with greedy actions as well; one of the factorised guider's "
                "seeds ends with a third.",
            ),
        )
    ),
    Comparison(
        "magpo-spread", "mpe/simple_spread", 500_000, 50_000,
        (
            *algorithms("magpo"), *settings_of("magpo", "delta", (1.1, 3, "auto"), "δ"),
            *settings_of("magpo", "reinforcement_weight", (0, 1), "λ"),
            Variant("guider sees the state", "magpo", ("algorithm.guider_sees_state=true",)),
        ),
        settings=FEW_EPISODES,
        remark=(
            "δ and λ hardly matter here: a tight δ (1.1) is not slow, a loose one (3) can be followed, and local "
            "policies that only imitate (λ = 0) learn as fast. With greedy actions the preset (δ = 1.5, λ = 4) ends "
            "lowest, because of one of its three seeds (-51.2; the others -42.6 and -43.9); with sampled actions it "
            "is level with the rest. A guider that also sees the state, which here says what all observations "
            "together say, learns more slowly."
        ),
    ),
    Comparison(
        "lbf", "lbf/6x6-2p-1f-coop", 300_000, 30_000,
        (
            *algorithms("magpo", seeds=5), *algorithms("mappo", "happo"),
            Variant("without backtracking", "magpo", ("algorithm.backtracking=false",), 5),
        ),
        settings=FEW_EPISODES,
        remark=(
            "Level. Both agents must load at the same time, and nothing is earned until they first do so by chance, "
            "after 50,000 to 240,000 frames, depending on the seed more than on the algorithm. With backtracking none "
            "of the five seeds loses what it has learnt. Without it all five do: within 60,000 frames their guiders "
            "run away from the local policies (in four runs a warning says that they drift apart), and teams that "
            "took three quarters of the food or more take a fifth of it or none. With other episodes (--set "
            "run.evaluation_interval=25000: in this family each checkpoint begins new ones) one of five did."
        ),
    ),
    Comparison(
        "smax-2s3z-guided", "smax/2s3z", 300_000, 20_000,
        algorithms("magpo", "mappo", "happo"), settings=FEW_EPISODES, measure="success_rate",
        remark=(
            "MAGPO wins every battle in all three seeds, and half of them after 80,000 to 120,000 frames. MAPPO wins "
            "half after 160,000 in two seeds, and does not get there in the third."
        ),
    ),
)  # fmt: skip
