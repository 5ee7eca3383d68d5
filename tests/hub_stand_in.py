"""What the library of the Hugging Face Hub asks of the Hub to push and pull a model: a stand-in of it, on this machine.

Regular git files alone: it tells every file to be committed as such, so that neither LFS nor Xet is asked for.
"""

from __future__ import annotations

import base64
import hashlib
import json
import re
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import unquote, urlsplit

TOKEN = "hf_stand_in"
_RESOLVE = re.compile(r"/(?P<repository>[^/]+/[^/]+)/resolve/(?P<revision>[^/]+)/(?P<file>.+)")
_MODEL = re.compile(r"/api/models/(?P<repository>[^/]+/[^/]+)/(?P<what>preupload|commit)/(?P<revision>[^/]+)")


class Hub:
    """The repositories, each a list of commits: (id, content by file).

    Attributes:
        endpoint: for ``HF_ENDPOINT``.
        asked: every file that was downloaded, as ``OWNER/NAME/FILE``.
    """

    def __init__(self) -> None:
        self.repositories: dict[str, list[tuple[str, dict[str, bytes]]]] = {}
        self.private: set[str] = set()
        self.asked: list[str] = []
        self.endpoint = ""

    def commit(self, repository: str, files: dict[str, bytes]) -> str:
        """Change files of a repository; returns the commit's id."""
        commits = self.repositories.setdefault(repository, [])
        content = {**(commits[-1][1] if commits else {}), **files}
        name = hashlib.sha1(repr((repository, len(commits), sorted(content.items()))).encode()).hexdigest()
        commits.append((name, content))
        return name

    def find(self, repository: str, revision: str) -> tuple[str, dict[str, bytes]] | None:
        """A commit, by its id or by ``main``."""
        commits = self.repositories.get(repository, [])
        if revision == "main":
            return commits[-1] if commits else None
        return next((each for each in commits if each[0] == revision), None)


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    hub: Hub

    def log_message(self, format: str, *arguments: Any) -> None:
        """Nothing."""

    def _answer(self, status: int, content: bytes, headers: dict[str, str] | None = None) -> None:
        self.send_response(status)
        for name, value in {"Content-Length": str(len(content)), **(headers or {})}.items():
            self.send_header(name, value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(content)

    def _json(self, document: Any, status: int = 200, **headers: str) -> None:
        self._answer(status, json.dumps(document).encode(), {"Content-Type": "application/json", **headers})

    def do_HEAD(self) -> None:
        self._file()

    def do_GET(self) -> None:
        self._file()

    def _file(self) -> None:
        match = _RESOLVE.fullmatch(unquote(urlsplit(self.path).path))
        if match is None:
            self._json({}, 404)
            return
        if match["repository"] not in self.hub.repositories:
            self._json({"error": "Repository not found"}, 404, **{"X-Error-Code": "RepoNotFound"})
            return
        found = self.hub.find(match["repository"], match["revision"])
        if found is None or match["file"] not in found[1]:
            self._json({"error": "Entry not found"}, 404, **{"X-Error-Code": "EntryNotFound"})
            return
        if self.command == "GET":
            self.hub.asked.append(f"{match['repository']}/{match['file']}")
        content = found[1][match["file"]]
        etag = f'"{hashlib.sha1(content).hexdigest()}"'
        self._answer(200, content, {"ETag": etag, "X-Repo-Commit": found[0]})

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        path = urlsplit(self.path).path
        if self.headers.get("Authorization") != f"Bearer {TOKEN}":
            self._json({"error": "Invalid username or password."}, 401)
        elif path == "/api/validate-yaml":
            self._json({"errors": [], "warnings": []})
        elif path == "/api/repos/create":
            self._create(json.loads(body))
        elif (match := _MODEL.fullmatch(path)) is not None and match["repository"] in self.hub.repositories:
            self._change(match["repository"], match["what"], body)
        else:
            self._json({"error": "Not found"}, 404)

    def _create(self, asked: dict[str, Any]) -> None:
        repository = f"{asked.get('organization') or 'me'}/{asked['name']}"
        address = {"url": f"{self.hub.endpoint}/{repository}", "name": repository, "id": repository}
        if repository in self.hub.repositories:
            self._json({**address, "error": "You already created this model repo"}, 409)
            return
        self.hub.commit(repository, {".gitattributes": b"*.onnx filter=lfs\n"})
        if asked.get("visibility") == "private" or asked.get("private"):
            self.hub.private.add(repository)
        self._json(address)

    def _change(self, repository: str, what: str, body: bytes) -> None:
        if what == "preupload":
            files = [
                {"path": each["path"], "uploadMode": "regular", "shouldIgnore": False}
                for each in json.loads(body)["files"]
            ]
            self._json({"files": files})
            return
        lines = [json.loads(line) for line in body.splitlines()]
        added = {
            line["value"]["path"]: base64.b64decode(line["value"]["content"]) for line in lines if line["key"] == "file"
        }
        name = self.hub.commit(repository, added)
        self._json({"commitUrl": f"{self.hub.endpoint}/{repository}/commit/{name}", "commitOid": name, "success": True})


@contextmanager
def running_hub() -> Iterator[Hub]:
    """The stand-in, while the block runs."""
    hub = Hub()
    server = ThreadingHTTPServer(("127.0.0.1", 0), type("Handler", (_Handler,), {"hub": hub}))
    hub.endpoint = f"http://127.0.0.1:{server.server_port}"
    thread = threading.Thread(target=server.serve_forever, args=(0.05,), daemon=True)
    thread.start()
    try:
        yield hub
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
