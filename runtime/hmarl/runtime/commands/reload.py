"""hmarl-fleet reload: have a running fleet serve another bundle."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from hmarl.runtime.command_line import AS_JSON, PATH, argument, command
from hmarl.runtime.commands._output import OUTPUT
from hmarl.runtime.endpoints_file import read_endpoints
from hmarl.runtime.errors import HmarlError, UsageError
from hmarl.runtime.reload_door import ask_for_reload


@command(
    "hmarl-fleet reload",
    argument("endpoints", "the endpoints file of the running fleet", PATH),
    argument("bundle", "bundle directory or zip, of the same agents and spaces", PATH),
    AS_JSON,
    examples=("hmarl-fleet reload endpoints.json bundles/v2",),
)
def reload(endpoints: Path, bundle: Path, as_json: bool) -> None:
    """Let a running fleet serve another bundle; running episodes end on the old.

    All agents load, check and warm up the bundle first. They switch once all
    are ready; when one is not, all go on as before: exit code 3 when it is the
    bundle's fault, otherwise 4.
    """
    document = read_endpoints(endpoints)
    control = document.get("control")
    if not isinstance(control, str):
        raise UsageError(
            f"endpoints: the fleet of '{endpoints}' has no socket to be told by: send SIGHUP to process "
            f"{document['pid']} instead, once the bundle lies where it was started with"
        )
    try:
        done = ask_for_reload(Path(control), bundle, lambda text: None if as_json else OUTPUT.put(text))
    except HmarlError as error:
        if as_json:
            OUTPUT.put(json.dumps({"done": False, "problem": str(error), "exit_code": error.exit_code}))
        raise
    if as_json:
        OUTPUT.put(json.dumps({"done": True, **done}))
    else:
        OUTPUT.put(_summary(done))


def _summary(done: dict[str, Any]) -> str:
    return f"all agents serve {done['bundle']} ({done['bundle_sha256']}); episodes end on the bundle that they began on"
