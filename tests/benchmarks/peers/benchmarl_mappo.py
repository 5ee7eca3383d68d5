"""BenchMARL's MAPPO on VMAS navigation; runs in a virtual environment of its own and prints frames/s as JSON.

Usage: python benchmarl_mappo.py ENVIRONMENTS STEPS EPOCHS MINIBATCHES UPDATES
"""

import json
import sys
import tempfile
import time
from itertools import pairwise

import torch
from benchmarl.algorithms import MappoConfig
from benchmarl.environments import VmasTask
from benchmarl.experiment import Callback, Experiment, ExperimentConfig
from benchmarl.models.mlp import MlpConfig

environments, steps, epochs, minibatches, updates = (int(word) for word in sys.argv[1:])
frames = environments * steps
torch.set_num_threads(2)


class Stamps(Callback):
    """When each iteration ended."""

    def __init__(self):
        super().__init__()
        self.times = []

    def on_train_end(self, training_td, group):
        self.times.append(time.perf_counter())


config = ExperimentConfig.get_from_yaml()
config.on_policy_n_envs_per_worker = environments
config.on_policy_collected_frames_per_batch = frames
config.on_policy_n_minibatch_iters = epochs
config.on_policy_minibatch_size = frames // minibatches
config.max_n_frames = frames * (updates + 1)
config.loggers, config.evaluation, config.render, config.create_json = [], False, False, False
config.checkpoint_interval, config.save_folder = 0, tempfile.mkdtemp()
model = MlpConfig.get_from_yaml()
stamps = Stamps()
experiment = Experiment(
    task=VmasTask.NAVIGATION.get_from_yaml(),
    algorithm_config=MappoConfig.get_from_yaml(),
    model_config=model,
    critic_model_config=model,
    seed=0,
    config=config,
    callbacks=[stamps],
)
experiment.run()
durations = sorted(b - a for a, b in pairwise(stamps.times))
print(json.dumps({"frames_per_s": frames / durations[len(durations) // 2], "layers": list(model.num_cells)}))
