"""hmarl-zoo: trained teams to start from: list them, fetch one, serve one, share one."""

from __future__ import annotations

import sys
from collections.abc import Sequence

from hmarl.runtime.command_line import AS_JSON, argument, choice, command, run
from hmarl.sdk.commands import zoo_words
from hmarl.sdk.errors import UsageError

WORDS = {
    "list": zoo_words.list_models,
    "fetch": zoo_words.fetch_model,
    "serve": zoo_words.serve_model,
    "push": zoo_words.push_model,
    "pull": zoo_words.pull_model,
}


@command(
    "hmarl-zoo",
    argument("action", ", ".join(WORDS), choice(*WORDS)),
    AS_JSON,
    examples=(
        "hmarl-zoo list",
        "hmarl-zoo fetch halfcheetah-2x3-hamdpo --out cheetah",
        "hmarl-zoo serve simple-spread-hcpo --out endpoints.json",
    ),
    words=WORDS,
)
def zoo(action: str, as_json: bool) -> None:
    """Trained teams to start from: list them, fetch one, serve one, share one over the Hugging Face Hub.

    Each is a signed bundle of at most 2 MB, with a card that says what made it and what it is worth where it is
    deployed. Each of the further commands has its own --help.
    """
    raise UsageError(f"ACTION: got '{action}' after an option, expected it first: hmarl-zoo {action} --json")


def main(arguments: Sequence[str] | None = None) -> int:
    """Entry point; returns the exit code."""
    return run(zoo, arguments)


if __name__ == "__main__":
    sys.exit(main())
