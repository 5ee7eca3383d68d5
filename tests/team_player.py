"""Plays a team over gRPC, actions drawn, and prints what it did and earned. A program, so that it can run anywhere.

Usage: team_player.py ENVIRONMENT ENDPOINTS_AS_JSON EPISODES SEED
"""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping

from hmarl.sdk.environments import make
from hmarl.sdk.evaluation.closed_loop import evaluate
from hmarl.sdk.evaluation.deployed_teams import FleetTeam


def played(environment_name: str, endpoints: Mapping[str, str], episodes: int, seed: int) -> dict[str, object]:
    """Returns, lengths and all actions of a fleet's episodes."""
    environment = make(environment_name, 1)
    team = FleetTeam(endpoints, environment.spec, sample=True)
    try:
        evaluation = evaluate(environment, team, episodes, seed=seed, record=True)
    finally:
        team.close()
    assert evaluation.actions is not None
    return {
        "returns": evaluation.returns.tolist(),
        "lengths": evaluation.lengths.tolist(),
        "actions": [actions.tolist() for actions in evaluation.actions],
    }


if __name__ == "__main__":
    print(json.dumps(played(sys.argv[1], json.loads(sys.argv[2]), int(sys.argv[3]), int(sys.argv[4]))))
