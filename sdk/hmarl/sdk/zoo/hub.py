"""The Hugging Face Hub, by its own library (extra ``hub``): one repository for each bundle.

Which Hub is said by the library's own variables (``HF_ENDPOINT``), and who asks by its token (``HF_TOKEN``, ``hf auth
login``). Nothing that comes from there is trusted: bundles are verified as those from any other place are.
"""

from __future__ import annotations

import re
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from hmarl.runtime.errors import one_line
from hmarl.sdk.errors import HmarlError, MissingExtraError, UsageError
from hmarl.sdk.zoo.places import HUB, too_large

_OWNER = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,95}")


def _library() -> Any:
    """The Hub's own library.

    Raises:
        MissingExtraError: it is not installed.
    """
    try:
        import huggingface_hub.errors  # noqa: PLC0415 - only where the Hub is asked for
        import huggingface_hub.utils  # noqa: PLC0415
    except ImportError as error:
        raise MissingExtraError("huggingface_hub", "hub", "the Hugging Face Hub") from error
    huggingface_hub.utils.disable_progress_bars()
    return huggingface_hub


@contextmanager
def _one_line(shown: str) -> Iterator[None]:
    """What the library raises is one line of ours; a file that is not there is a FileNotFoundError."""
    library = _library()
    try:
        yield
    except library.errors.RemoteEntryNotFoundError:
        raise FileNotFoundError(shown) from None
    except library.errors.RepositoryNotFoundError as error:
        raise HmarlError(
            f"{shown}: the Hub has no such repository, or does not show it to you; expected one that exists, and a "
            "token that may read it (HF_TOKEN) where it is private"
        ) from error
    except HmarlError:
        raise
    except (OSError, ValueError, library.errors.HfHubHTTPError) as error:
        raise HmarlError(f"{shown}: the Hub cannot be asked: {one_line(error, 300)}") from error
    except Exception as error:  # its HTTP library raises types of its own, which it has changed before
        raise HmarlError(f"{shown}: the Hub cannot be asked: {type(error).__name__}: {one_line(error, 300)}") from error


class HubPlace:
    """The bundles of an account: each a repository of its name, with the bundle's files at its root.

    Args:
        owner: the account.
        named: the option or argument that it was given to.
        revision: a commit, tag or branch; by default ``main``.

    Raises:
        UsageError: this is no account's name.
        MissingExtraError: the library is not installed.
    """

    def __init__(self, owner: str, named: str, revision: str | None = None) -> None:
        if _OWNER.fullmatch(owner) is None:
            raise UsageError(f"{named}: got '{HUB}{owner}', expected {HUB}OWNER, the name of an account of the Hub")
        _library()
        self._owner = owner
        self._revision = revision
        self._commits: dict[str, str | None] = {}

    @property
    def shown(self) -> str:
        """See ``Place``."""
        return f"{HUB}{self._owner}"

    def read(self, bundle: str, file: str, limit: int) -> bytes:
        """See ``Place``. All files of a bundle are of the commit that the first one was of."""
        library, repository = _library(), f"{self._owner}/{bundle}"
        shown = f"{HUB}{repository}/{file}"
        with _one_line(shown), tempfile.TemporaryDirectory(prefix="hmarl-hub-") as folder:
            revision = self._commits.get(bundle) or self._revision
            url = library.hf_hub_url(repository, file, revision=revision)
            found = library.get_hf_file_metadata(url)
            if found.size is None or found.size > limit:
                raise too_large(shown, limit)
            self._commits[bundle] = found.commit_hash
            got = library.hf_hub_download(repository, file, revision=found.commit_hash or revision, cache_dir=folder)
            with Path(got).open("rb") as stream:
                content = stream.read(limit + 1)
        if len(content) > limit:
            raise too_large(shown, limit)
        return content


def push(owner: str, name: str, files: Mapping[str, bytes], *, private: bool = False) -> str:
    """Put a bundle's files into a repository of the Hub, made where there is none; in one commit.

    What else the repository holds stays: whoever pulls a bundle asks for the files that its signature lists.

    Args:
        owner: the account.
        name: of the repository.
        files: content by name.
        private: whether a repository that is made is shown to its owners alone.

    Returns:
        The commit's address.

    Raises:
        HmarlError: the Hub refuses, or cannot be reached.
        MissingExtraError: the library is not installed.
    """
    library, repository = _library(), f"{owner}/{name}"
    added = [library.CommitOperationAdd(path_in_repo=file, path_or_fileobj=files[file]) for file in sorted(files)]
    with _one_line(f"{HUB}{repository}"):
        hub = library.HfApi()
        hub.create_repo(repository, private=private, exist_ok=True)
        commit = hub.create_commit(repository, added, commit_message=f"hmarl bundle {name}")
    return str(commit.commit_url)
