"""Run in an environment with leapp: play an agent by its own loader, and write down what comes out.

python leapp_playing.py DESCRIPTION.yaml INPUTS.npz OUTPUTS.npz EPISODES
"""

from __future__ import annotations

import json
import sys

import numpy as np
import torch
from leapp import InferenceManager

description, given_path, written, episodes = sys.argv[1:]
manager = InferenceManager(description)
(node,) = manager.nodes
given = {name: torch.from_numpy(rows) for name, rows in np.load(given_path).items()}
(steps,) = {len(rows) for rows in given.values()}
outputs: dict[str, list[np.ndarray]] = {}
for _ in range(int(episodes)):
    for step in range(steps):
        # Its reset sets to zero, in place, whatever it was handed.
        found = manager.run_policy({f"{node}/{name}": rows[step : step + 1].clone() for name, rows in given.items()})
        for name, value in found.items():
            outputs.setdefault(name.removeprefix(f"{node}/"), []).append(value.numpy().copy()[0])
    manager.reset()
np.savez(written, **{name: np.stack(rows) for name, rows in outputs.items()})
print(json.dumps({"inputs": manager.inputs, "outputs": manager.outputs, "feedback": manager.feedback_inputs}))
