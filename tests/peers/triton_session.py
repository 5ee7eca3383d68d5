"""A session with NVIDIA's client, run in its own virtual environment: talks to two agents and prints what it got.

Usage: triton_session.py ADDRESS_OF_AGENT_0 ADDRESS_OF_AGENT_1
"""

from __future__ import annotations

import json
import sys
from importlib.metadata import version

import numpy as np
import tritonclient.grpc as triton
from tritonclient.utils import InferenceServerException

STEPS = 20
LEGAL = np.array([[True, True, False, True, True]])


def observation(step: int) -> np.ndarray:
    return np.random.default_rng(step).normal(size=(1, 6)).astype(np.float32)


def inputs(**arrays: np.ndarray) -> list[triton.InferInput]:
    made = []
    for name, array in arrays.items():
        datatype = {"float32": "FP32", "int64": "INT64", "bool": "BOOL"}[array.dtype.name]
        made.append(triton.InferInput(name, array.shape, datatype))
        made[-1].set_data_from_numpy(array)
    return made


def refusal(client: triton.InferenceServerClient, *words: object, **more: object) -> str:
    try:
        client.infer(*words, **more)
    except InferenceServerException as error:
        return f"{error.status()}: {error.message()}"
    raise AssertionError("it was not refused")


def sequence(client: triton.InferenceServerClient, model: str, sequence_id: int | str, seed: int) -> list[int]:
    """The actions of an episode whose state the agent keeps."""
    actions = []
    for step in range(STEPS):
        got = client.infer(
            model,
            inputs(observation=observation(step), action_mask=LEGAL),
            sequence_id=sequence_id,
            sequence_start=step == 0,
            sequence_end=step == STEPS - 1,
            parameters={"seed": seed, "sample": True} if step == 0 else None,
        )
        actions.append(int(got.as_numpy("action")[0]))
    return actions


def by_itself(client: triton.InferenceServerClient, model: str, seed: int) -> list[int]:
    """The same, whose state is kept here."""
    actions, state = [], None
    for step in range(STEPS):
        parameters = {"seed": seed, "sample": True, "step": step}
        arrays = {"observation": observation(step), "action_mask": LEGAL}
        if state is None:
            parameters["reset_state"] = True
        else:
            arrays["state"] = state
        got = client.infer(model, inputs(**arrays), parameters=parameters)
        actions.append(int(got.as_numpy("action")[0]))
        state = got.as_numpy("next_state")
    return actions


def rows(client: triton.InferenceServerClient, model: str, count: int) -> list[int]:
    """Many rows at once, nothing drawn."""
    arrays = {
        "observation": np.concatenate([observation(row) for row in range(count)]),
        "action_mask": np.repeat(LEGAL, count, axis=0),
        "state": np.zeros((count, 8), np.float32),
    }
    wanted = [triton.InferRequestedOutput("action")]
    return [int(action) for action in client.infer(model, inputs(**arrays), outputs=wanted).as_numpy("action")]


def metadata(client: triton.InferenceServerClient, model: str) -> dict[str, object]:
    server, described = client.get_server_metadata(), client.get_model_metadata(model)
    return {
        "server": [server.name, server.version, *server.extensions],
        "model": [described.name, *described.versions, described.platform],
        "inputs": [[each.name, each.datatype, *each.shape] for each in described.inputs],
        "outputs": [[each.name, each.datatype, *each.shape] for each in described.outputs],
    }


def errors(client: triton.InferenceServerClient, model: str) -> dict[str, str]:
    good = {"observation": observation(0), "action_mask": LEGAL}
    return {
        "an unknown model": refusal(client, "resnet50", inputs(**good)),
        "an unknown version": refusal(client, model, inputs(**good), model_version="1"),
        "a wrong shape": refusal(client, model, inputs(**good | {"observation": np.zeros((1, 7), np.float32)})),
        "a wrong type": refusal(client, model, inputs(**good | {"observation": np.zeros((1, 6), np.int64)})),
        "NaN": refusal(
            client,
            model,
            inputs(**good | {"observation": np.full((1, 6), np.nan, np.float32)}),
            parameters={"reset_state": True},
        ),
        "no state": refusal(client, model, inputs(**good)),
        "no seed": refusal(client, model, inputs(**good), parameters={"reset_state": True, "sample": True}),
        "a sequence that was not begun": refusal(client, model, inputs(**good), sequence_id=77),
        "two rows in a sequence": refusal(
            client,
            model,
            inputs(**{name: np.repeat(array, 2, axis=0) for name, array in good.items()}),
            sequence_id=78,
            sequence_start=True,
        ),
        "an unknown parameter": refusal(client, model, inputs(**good), parameters={"temperature": 0.5}),
    }


def main() -> None:
    clients = {f"agent_{number}": triton.InferenceServerClient(address) for number, address in enumerate(sys.argv[1:])}
    client, model = clients["agent_0"], "agent_0"
    report = {
        "tritonclient": version("tritonclient"),
        "protobuf": version("protobuf"),
        "live": client.is_server_live(),
        "ready": client.is_server_ready(),
        "model ready": client.is_model_ready(model),
        "another model ready": client.is_model_ready("resnet50"),
        "metadata": metadata(client, model),
        "sequences": {name: sequence(each, name, 42, seed=7) for name, each in clients.items()},
        "sequence with a string id": sequence(client, model, "episode-1", seed=7),
        "by itself": by_itself(client, model, seed=7),
        "128 rows": rows(client, model, 128),
        "errors": errors(client, model),
    }
    print(json.dumps(report))
    for each in clients.values():
        each.close()


if __name__ == "__main__":
    main()
