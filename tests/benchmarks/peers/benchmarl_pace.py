"""BenchMARL's MAPPO or IPPO on VMAS navigation by its own settings; prints what each iteration reaches as JSON.

Usage: python benchmarl_pace.py mappo|ippo SEED THREADS

The settings are those of its experiment/base_experiment.yaml. Each iteration is followed by a deterministic evaluation,
whose time is told beside.
"""

import json
import sys
import tempfile
import time

import torch
from benchmarl.algorithms import IppoConfig, MappoConfig
from benchmarl.environments import VmasTask
from benchmarl.experiment import Callback, Experiment, ExperimentConfig
from benchmarl.models.mlp import MlpConfig

algorithm, seed, threads = sys.argv[1], int(sys.argv[2]), int(sys.argv[3])
torch.set_num_threads(threads)


def clocks():
    return time.perf_counter(), time.process_time()


class Told(Callback):
    """What an evaluation comes to: returns up to the end of an episode, mean over agents and episodes."""

    def __init__(self):
        super().__init__()
        self.aside_s = self.aside_processor_s = 0.0

    def on_train_end(self, training_td, group):
        self.trained = clocks()

    def on_evaluation_end(self, rollouts):
        returns = []
        for rollout in rollouts:
            ends = rollout["next", "done"].flatten().nonzero()
            steps = int(ends[0]) + 1 if len(ends) else len(rollout)
            returns.append(float(rollout["next", "agents", "reward"][:steps].sum(0).mean()))
        now = clocks()
        self.aside_s += now[0] - self.trained[0]
        self.aside_processor_s += now[1] - self.trained[1]
        told = {
            "frames": self.experiment.total_frames,
            "return": sum(returns) / len(returns),
            "episodes": len(returns),
            "aside_s": self.aside_s,
            "aside_processor_s": self.aside_processor_s,
        }
        print(json.dumps(told), flush=True)


config = ExperimentConfig.get_from_yaml()
config.evaluation_episodes = 100
config.evaluation, config.evaluation_interval = True, config.on_policy_collected_frames_per_batch
config.render, config.loggers, config.create_json = False, [], True
config.checkpoint_interval, config.save_folder = 0, tempfile.mkdtemp()
model = MlpConfig.get_from_yaml()
Experiment(
    task=VmasTask.NAVIGATION.get_from_yaml(),
    algorithm_config=(MappoConfig if algorithm == "mappo" else IppoConfig).get_from_yaml(),
    model_config=model,
    critic_model_config=model,
    seed=seed,
    config=config,
    callbacks=[Told()],
).run()
