"""What ``hmarl-zoo`` does: its words, each a program of its own."""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import click

from hmarl.runtime.children import python
from hmarl.runtime.command_line import (
    AS_JSON,
    PATH,
    POSITIVE,
    argument,
    command,
    flag,
    option,
    trust_option,
)
from hmarl.runtime.errors import one_line
from hmarl.sdk.commands._common import print_json
from hmarl.sdk.commands._console import make_console, print_listing
from hmarl.sdk.errors import HmarlError, MissingExtraError, UsageError
from hmarl.sdk.zoo.index import (
    INDEX_LIMIT_BYTES,
    LIMIT_BYTES,
    SHIPPED_INDEX,
    SHIPPED_KEY,
    Entry,
    Index,
    read_index,
    shipped_models,
)
from hmarl.sdk.zoo.places import HUB, FolderPlace, Place, open_place, web_place

if TYPE_CHECKING:
    from hmarl.runtime.signing.keys import Trust

_MB = 1_000_000


# --- which zoo -------------------------------------------------------------------------------------------------------


def _zoo_options() -> list[click.Option]:
    return [
        option(
            "--from",
            f"where the bundles are: a folder, an http or https address, or {HUB}OWNER on the Hugging Face Hub (extra "
            "'hub'); by default beside --index, or in models/ of the checkout",
            shown="PLACE",
            parameter="place",
        ),
        option("--index", "another zoo's index: a file or an address; by default the one that comes with hmarl"),
        trust_option(),
    ]


def _limit_option() -> click.Option:
    return option(
        "--limit-mb", "refuse a bundle of more megabytes", POSITIVE, default=LIMIT_BYTES / _MB, shown="MEGABYTES"
    )


def _index(given: str | None) -> Index:
    if given is None:
        return read_index(SHIPPED_INDEX.read_bytes(), str(SHIPPED_INDEX))
    folder, file = _split(given)
    try:
        content = _index_place(folder).read("", file, INDEX_LIMIT_BYTES)
    except FileNotFoundError:
        raise UsageError(f"--index: got {given}, which is not there; expected a zoo's index") from None
    return read_index(content, given)


def _index_place(folder: str) -> Place:
    """The folder that an index lies in.

    Raises:
        UsageError: an address that is none of the web.
    """
    if "://" in folder:
        return web_place(folder, "--index", "a file, or an http or https address")
    return FolderPlace(Path(folder))


def _split(given: str) -> tuple[str, str]:
    """An index's folder and name."""
    if "://" in given:
        folder, _, file = given.rpartition("/")
        return folder, file
    return str(Path(given).parent), Path(given).name


def _place(given: str | None, index: str | None) -> Place:
    """Where the bundles are.

    Raises:
        UsageError: that is not said, and hmarl is not run from a checkout.
    """
    if given is not None:
        return open_place(given, "--from")
    if index is not None:
        return _index_place(_split(index)[0])
    models = shipped_models()
    if models is None:
        raise UsageError(
            "--from: got nothing, expected where the bundles are: hmarl was installed without them; give the models/ "
            f"folder of a checkout, an address that serves one, or {HUB}OWNER"
        )
    return FolderPlace(models)


def _trust(given: Sequence[Path]) -> Trust:
    """Whose bundles are taken: the zoo's own key, unless others are named."""
    from hmarl.runtime.signing.keys import Trust  # noqa: PLC0415 - needs an extra

    return Trust(list(given) or [SHIPPED_KEY])


def _limit_bytes(limit_mb: float) -> int:
    return int(limit_mb * _MB)


# --- list ------------------------------------------------------------------------------------------------------------


@command(
    "hmarl-zoo list", *_zoo_options(), AS_JSON, examples=("hmarl-zoo list", "hmarl-zoo list --from ../hmarl/models")
)
def list_models(place: str | None, index: str | None, trust: tuple[Path, ...], as_json: bool) -> None:
    """List the teams of the zoo: task, algorithm, size, return, and whether the bundle is here and verified."""
    found = _index(index)
    where, trusted = _looked_at(place, index), _trusted(trust)
    states = [_state(entry, where, trusted) for entry in found.models]
    if as_json:
        models = [
            {**{field: getattr(entry, field) for field in entry.__struct_fields__}, "verified": good, "state": state}
            for entry, (good, state) in zip(found.models, states, strict=True)
        ]
        print_json({"models": models})
        return
    rows = [
        (
            entry.name,
            entry.task,
            entry.algorithm,
            str(entry.agents),
            f"{entry.size_bytes / 1000:.0f} kB",
            "" if entry.return_mean is None else f"{entry.return_mean:.2f}",
            f"{entry.about}; {state}",
        )
        for entry, (_, state) in zip(found.models, states, strict=True)
    ]
    heads = ("name", "task", "algorithm", "agents", "size", "return", "what it shows, and whether it is verified")
    print_listing(make_console(), heads, rows)


def _looked_at(given: str | None, index: str | None) -> FolderPlace | None:
    """The folder of this machine in which bundles are looked for; None where they are elsewhere.

    Raises:
        UsageError: what is given is no place.
    """
    try:
        where = _place(given, index)
    except UsageError:
        if given is not None:
            raise
        return None
    return where if isinstance(where, FolderPlace) else None


def _trusted(given: Sequence[Path]) -> Trust | str:
    """Whose bundles are taken; or why none can be verified, where that is not the fault of what is given.

    Raises:
        UsageError: what is given is no key.
    """
    try:
        return _trust(given)
    except MissingExtraError as error:
        return f"not verified: {error}"


def _state(entry: Entry, where: FolderPlace | None, trusted: Trust | str) -> tuple[bool, str]:
    """Whether a bundle that is on this machine is the right one, and what is said of it; nothing is fetched."""
    from hmarl.sdk.zoo.fetching import cache_of, fetch_files, verified  # noqa: PLC0415

    if isinstance(trusted, str):
        return False, trusted
    if verified(cache_of(entry), entry, trusted) is not None:
        return True, "verified"
    if where is None:
        return False, "not fetched"
    try:
        fetch_files(where, entry.name, trusted, entry=entry)
    except HmarlError as error:
        return False, f"not verified: {one_line(error)}"
    return True, "verified"


# --- fetch, serve ----------------------------------------------------------------------------------------------------


@command(
    "hmarl-zoo fetch",
    argument("name", "of the team, as hmarl-zoo list has it"),
    option("--out", "the bundle to write: a directory, or a file ending in .zip; by default ./NAME", PATH),
    *_zoo_options(),
    _limit_option(),
    AS_JSON,
    examples=("hmarl-zoo fetch halfcheetah-2x3-hamdpo --out cheetah", "hmarl-zoo fetch coordsum-hcpo --from hf:OWNER"),
)
def fetch_model(
    name: str,
    out: Path | None,
    place: str | None,
    index: str | None,
    trust: tuple[Path, ...],
    limit_mb: float,
    as_json: bool,
) -> None:
    """Fetch a team of the zoo.

    Nothing is written before the whole bundle is verified: its size, its signature by the zoo's key (or those of
    --trust), and that it is the one that the index has. Needs the extra 'secure'.
    """
    entry = _index(index).entry(name)
    where = _place(place, index)
    trusted = _trust(trust)
    from hmarl.sdk.zoo.fetching import fetch  # noqa: PLC0415 - what can be refused at once is

    target = Path(name) if out is None else out
    bundle = fetch(where, name, target, trusted, _limit_bytes(limit_mb), entry)
    _say_written(target, bundle.sha256, bundle.signed_by, as_json)


@command(
    "hmarl-zoo serve",
    argument("name", "of the team, as hmarl-zoo list has it"),
    argument("options", "after --: further options of hmarl-fleet", required=False, many=True),
    option("--out", "write the endpoints there once all agents are serving, as hmarl-fleet does", PATH, shown="FILE"),
    *_zoo_options(),
    _limit_option(),
    examples=(
        "hmarl-zoo serve simple-spread-hcpo --out endpoints.json",
        "hmarl-zoo serve simple-spread-hcpo -- --socket-dir /run/team",
    ),
)
def serve_model(
    name: str,
    options: tuple[str, ...],
    out: Path | None,
    place: str | None,
    index: str | None,
    trust: tuple[Path, ...],
    limit_mb: float,
) -> None:
    """Fetch a team of the zoo where it is not here yet, verify it, and serve it with hmarl-fleet; Ctrl-C stops it.

    Bundles are kept in ~/.cache/hmarl/zoo (XDG_CACHE_HOME), and verified anew each time.
    """
    entry = _index(index).entry(name)
    trusted = _trust(trust)
    from hmarl.sdk.zoo.fetching import cache_of, fetch, verified  # noqa: PLC0415 - what can be refused at once is

    path = cache_of(entry)
    if verified(path, entry, trusted) is None:
        fetch(_place(place, index), name, path, trusted, _limit_bytes(limit_mb), entry)
    words = python("-m", "hmarl.runtime.commands.fleet", str(path))
    words += [f"--trust={key.absolute()}" for key in trust or (SHIPPED_KEY,)]
    words += [*([] if out is None else [f"--out={out}"]), *options]
    sys.stdout.flush()
    os.execv(words[0], words)


# --- the Hugging Face Hub --------------------------------------------------------------------------------------------


@command(
    "hmarl-zoo push",
    argument("bundle", "bundle directory or zip, signed", PATH),
    argument("repository", "OWNER/NAME on the Hugging Face Hub; made where there is none"),
    flag("--private", "a repository that is made is shown to its owners alone"),
    trust_option(),
    _limit_option(),
    AS_JSON,
    examples=("hmarl-zoo push runs/mine/bundle me/my-team --trust team.pub.pem",),
)
def push_model(
    bundle: Path, repository: str, private: bool, trust: tuple[Path, ...], limit_mb: float, as_json: bool
) -> None:
    """Put a signed bundle into a repository of the Hugging Face Hub, its card as the repository's.

    It is verified first, as by whoever pulls it: by --trust, or by the zoo's key. The token is the Hub's own (HF_TOKEN,
    or hf auth login). Needs the extras 'hub' and 'secure'.
    """
    from hmarl.runtime.bundle import load_bundle  # noqa: PLC0415 - with what belongs to it
    from hmarl.sdk.zoo.fetching import files_of  # noqa: PLC0415
    from hmarl.sdk.zoo.hub import HubPlace, push  # noqa: PLC0415

    owner, name = _repository(repository)
    HubPlace(owner, "REPOSITORY")  # a wrong name, or a missing extra, is told before anything is read
    files = files_of(load_bundle(bundle, _trust(trust)), _limit_bytes(limit_mb))
    address = push(owner, name, files, private=private)
    if as_json:
        print_json({"repository": repository, "commit": address, "files": len(files)})
    else:
        print(f"{repository}: {len(files)} files: {address}")
        print(f"next: hmarl-zoo pull {repository} --trust KEY.pub.pem, wherever it is to be used")


@command(
    "hmarl-zoo pull",
    argument("repository", "OWNER/NAME on the Hugging Face Hub"),
    option("--out", "the bundle to write: a directory, or a file ending in .zip; by default ./NAME", PATH),
    option("--revision", "a commit, tag or branch; by default main"),
    trust_option(),
    _limit_option(),
    AS_JSON,
    examples=("hmarl-zoo pull me/my-team --trust team.pub.pem --out team",),
)
def pull_model(
    repository: str, out: Path | None, revision: str | None, trust: tuple[Path, ...], limit_mb: float, as_json: bool
) -> None:
    """Take a signed bundle from a repository of the Hugging Face Hub.

    Nothing is written before the whole bundle is verified: its size, and its signature by --trust, or by the zoo's key.
    Only files that were signed are asked for. Needs the extras 'hub' and 'secure'.
    """
    from hmarl.sdk.zoo.fetching import fetch  # noqa: PLC0415 - with what belongs to it
    from hmarl.sdk.zoo.hub import HubPlace  # noqa: PLC0415

    owner, name = _repository(repository)
    target = Path(name) if out is None else out
    place = HubPlace(owner, "REPOSITORY", revision)
    bundle = fetch(place, name, target, _trust(trust), _limit_bytes(limit_mb))
    _say_written(target, bundle.sha256, bundle.signed_by, as_json)


def _repository(text: str) -> tuple[str, str]:
    owner, slash, name = text.partition("/")
    if not slash or not name or "/" in name or name in (".", ".."):
        raise UsageError(f"REPOSITORY: got '{text}', expected OWNER/NAME, as the Hub calls it")
    return owner, name


def _say_written(path: Path, sha256: str, signed_by: str | None, as_json: bool) -> None:
    if as_json:
        print_json({"bundle": str(path), "bundle_sha256": sha256, "signed_by": signed_by})
    else:
        print(f"wrote {path}: signed by {signed_by}")
        print(f"next: hmarl-fleet {path} --out endpoints.json")
