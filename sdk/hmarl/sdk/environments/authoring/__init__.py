"""What an author of an environment needs: random streams, checked arguments, checked actions, checked state.

``docs/environments.md`` has a small environment made of these; the families in ``hmarl.sdk.environments`` are others.
"""

from hmarl.sdk.environments.authoring.actions import checked_actions
from hmarl.sdk.environments.authoring.arguments import (
    COUNT,
    FLAG,
    NUMBER,
    POSITIVE,
    PROPORTION,
    Rule,
    at_least,
    is_integer,
    is_number,
    resolve_arguments,
)
from hmarl.sdk.environments.authoring.random_streams import (
    EpisodeStreams,
    RandomStreams,
    checked_seeds,
    checked_state,
    not_begun,
)

__all__ = [
    "COUNT",
    "FLAG",
    "NUMBER",
    "POSITIVE",
    "PROPORTION",
    "EpisodeStreams",
    "RandomStreams",
    "Rule",
    "at_least",
    "checked_actions",
    "checked_seeds",
    "checked_state",
    "is_integer",
    "is_number",
    "not_begun",
    "resolve_arguments",
]
