"""A small zoo of one's own: signed toy bundles in a folder, their index, a web server of that folder."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

from hmarl.runtime.bundle import Bundle
from hmarl.runtime.signing.checked import sign_bundle
from hmarl.runtime.signing.keys import Signer, new_key
from hmarl.sdk.zoo.index import SCHEMA_VERSION, Entry, Index, write_index
from toy_bundle import write_toy_bundle


@dataclass(frozen=True)
class Zoo:
    """Where it is, and who signs it."""

    folder: Path
    private: Path
    public: Path

    @property
    def index(self) -> Path:
        """Its index."""
        return self.folder / "index.json"

    def add(self, name: str, **toy: Any) -> Bundle:
        """A signed toy bundle of this name."""
        bundle = write_toy_bundle(self.folder / name, **toy)
        sign_bundle(bundle.path, Signer(self.private))
        return bundle

    def entry(self, bundle: Bundle) -> Entry:
        """The index's line of a bundle."""
        files = [path for path in bundle.path.rglob("*") if path.is_file()]
        return Entry(
            name=bundle.path.name,
            task=bundle.manifest.environment.name,
            algorithm=bundle.manifest.algorithm,
            agents=len(bundle.manifest.agents),
            return_mean=1.5,
            size_bytes=sum(path.stat().st_size for path in files),
            sha256=bundle.sha256,
            about="a toy",
        )

    def describe(self, *bundles: Bundle) -> None:
        """Write the index."""
        write_index(self.index, Index(SCHEMA_VERSION, [self.entry(bundle) for bundle in bundles]))


def make_zoo(place: Path) -> Zoo:
    """An empty zoo with a key pair."""
    folder = place / "zoo"
    folder.mkdir(parents=True)
    private = place / "zoo.pem"
    return Zoo(folder, private, new_key(private)[0])


class _Quiet(SimpleHTTPRequestHandler):
    def log_message(self, format: str, *arguments: Any) -> None:
        """Nothing."""


@contextmanager
def on_the_web(folder: Path) -> Iterator[str]:
    """The address of a web server that has the folder, while the block runs."""
    server = ThreadingHTTPServer(("127.0.0.1", 0), partial(_Quiet, directory=str(folder)))
    thread = threading.Thread(target=server.serve_forever, args=(0.05,), daemon=True)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_port}"
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
