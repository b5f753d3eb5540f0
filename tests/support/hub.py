"""A Hugging Face Hub on loopback: local folders, served as repositories.

With ``HF_ENDPOINT`` naming it, the real loading code of transformers, huggingface_hub, nnsight
and NDIF runs, model keys included, without the network.
"""

from __future__ import annotations

import hashlib
import json
import re
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

_CHUNK = 1 << 20


class Hub:
    """Serve every ``root/owner/name`` as the repository ``owner/name``, in one commit.

    Parameters
    ----------
    root : Path
    """

    def __init__(self, root: Path):
        self.root = root
        handler = type("Handler", (_Handler,), {"hub": self})
        self._server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
        self._thread = threading.Thread(target=self._server.serve_forever, daemon=True)

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self._server.server_address[1]}"

    def __enter__(self) -> Hub:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._server.shutdown()
        self._server.server_close()

    @contextmanager
    def adopted(self, cache: Path) -> Iterator[None]:
        """Let this process take it for the Hub, with a cache of its own.

        What HF_ENDPOINT and HF_HUB_CACHE do, read when huggingface_hub is imported.
        """
        from huggingface_hub import constants, hf_api
        from transformers.utils import hub as transformers_hub

        template = self.url + "/{repo_id}/resolve/{revision}/{filename}"
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(constants, "ENDPOINT", self.url)
            patch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", template)
            patch.setattr(constants, "HF_HUB_CACHE", str(cache))
            patch.setattr(hf_api.api, "endpoint", self.url)
            # transformers keeps a client of its own, made for the Hub that was there first.
            patch.setattr(transformers_hub, "_hf_api", None)
            yield

    def files(self, repository: str) -> dict[str, Path] | None:
        """Path in the repository to path on disk, or None where there is no such repository."""
        folder = self.root / repository
        if repository.count("/") != 1 or not folder.is_dir():
            return None
        return {
            str(path.relative_to(folder)): path
            for path in sorted(folder.rglob("*"))
            if path.is_file()
        }

    def commit(self, repository: str) -> str:
        return hashlib.sha1(repository.encode()).hexdigest()


class _Handler(BaseHTTPRequestHandler):
    hub: Hub
    protocol_version = "HTTP/1.1"

    def log_message(self, format: str, *args: object) -> None:
        pass

    def do_GET(self) -> None:
        path = self.path.partition("?")[0].strip("/")
        if found := re.fullmatch(r"api/models/([^/]+/[^/]+)(?:/(.*))?", path):
            self._describe(found[1], found[2] or "")
        elif found := re.fullmatch(r"([^/]+/[^/]+)/resolve/([^/]+)/(.+)", path):
            self._file(found[1], found[3])
        else:
            self._answer(404)

    do_HEAD = do_GET

    def _describe(self, repository: str, what: str) -> None:
        files = self.hub.files(repository)
        if files is None:
            self._answer(404, {"X-Error-Code": "RepoNotFound"}, {"error": "Repository not found"})
        elif what.startswith("tree/"):
            self._answer(200, {}, [_entry(name, path) for name, path in files.items()])
        else:
            self._answer(200, {}, self._info(repository, files))

    def _info(self, repository: str, files: dict[str, Path]) -> dict[str, object]:
        # transformers takes a repository for safetensors by its siblings, and NDIF sizes a
        # model by the parameters that the Hub counted.
        parameters = sum(p.stat().st_size // 4 for n, p in files.items() if "safetensors" in n)
        return {
            "_id": repository,
            "id": repository,
            "modelId": repository,
            "sha": self.hub.commit(repository),
            "private": False,
            "gated": False,
            "disabled": False,
            "downloads": 0,
            "likes": 0,
            "tags": ["transformers", "safetensors"],
            "pipeline_tag": "text-generation",
            "library_name": "transformers",
            "siblings": [{"rfilename": name} for name in files],
            "safetensors": {"parameters": {"F32": parameters}, "total": parameters},
        }

    def _file(self, repository: str, name: str) -> None:
        files = self.hub.files(repository)
        if files is None:
            self._answer(404, {"X-Error-Code": "RepoNotFound"})
            return
        headers = {"X-Repo-Commit": self.hub.commit(repository)}
        if name not in files:
            self._answer(404, headers | {"X-Error-Code": "EntryNotFound"})
            return
        size = files[name].stat().st_size
        tag = hashlib.sha1(f"{repository}/{name}:{size}".encode()).hexdigest()
        headers |= {"ETag": f'"{tag}"', "Accept-Ranges": "bytes"}
        start, end = self._range(size)
        if (start, end) != (0, size):
            headers["Content-Range"] = f"bytes {start}-{end - 1}/{size}"
        self._head(206 if "Content-Range" in headers else 200, headers, end - start)
        if self.command != "HEAD":
            with files[name].open("rb") as file:
                file.seek(start)
                left = end - start
                while left > 0 and (chunk := file.read(min(_CHUNK, left))):
                    self.wfile.write(chunk)
                    left -= len(chunk)

    def _range(self, size: int) -> tuple[int, int]:
        wanted = re.fullmatch(r"bytes=(\d+)-(\d*)", self.headers.get("Range", ""))
        if wanted is None:
            return 0, size
        return int(wanted[1]), min(int(wanted[2]) + 1 if wanted[2] else size, size)

    def _answer(
        self, status: int, headers: dict[str, str] | None = None, body: object = None
    ) -> None:
        content = b"" if body is None else json.dumps(body).encode()
        self._head(status, {"Content-Type": "application/json"} | (headers or {}), len(content))
        if self.command != "HEAD":
            self.wfile.write(content)

    def _head(self, status: int, headers: dict[str, str], length: int) -> None:
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name, value)
        self.send_header("Content-Length", str(length))
        self.end_headers()


def _entry(name: str, path: Path) -> dict[str, object]:
    return {"type": "file", "path": name, "size": path.stat().st_size, "oid": "0" * 40}
