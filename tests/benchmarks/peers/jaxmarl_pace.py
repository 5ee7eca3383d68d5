"""Runs one of JaxMARL's training scripts by its own settings; prints what it logs after each update as JSON.

Usage: python jaxmarl_pace.py SCRIPT FRAMES_AN_UPDATE [KEY=VALUE ...]
"""

import itertools
import json
import runpy
import sys
import types

script, frames = sys.argv[1], int(sys.argv[2])
updates = itertools.count(1)


def log(metrics):
    told = {key: float(metrics[key].mean()) for key in metrics if key.startswith("return") or key == "win_rate"}
    print(json.dumps({"frames": next(updates) * frames, **told}), flush=True)


class Logger(types.ModuleType):
    """Stands in for Weights & Biases, to which the scripts log."""

    log = staticmethod(log)

    @staticmethod
    def init(**_):
        pass


sys.modules["wandb"] = Logger("wandb")
sys.argv = [script, *sys.argv[3:]]
runpy.run_path(script, run_name="__main__")
