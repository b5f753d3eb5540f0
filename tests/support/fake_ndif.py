"""A server that talks like NDIF and does as it is told: for the faults of other people's hosts."""

from __future__ import annotations

import io
import json
import threading
from collections.abc import Callable
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from importlib.metadata import version
from typing import Any

import torch
import zstandard

Answer = tuple[int, Any]

KEY = "0f0f0f0f-aaaa-bbbb-cccc-000000000000"


def blob(saved: Any) -> bytes:
    """What a server stores of a block that saved ``saved``."""
    buffer = io.BytesIO()
    torch.save(saved, buffer)
    return zstandard.ZstdCompressor().compress(buffer.getvalue())


def status(state: str, description: str = "", **more: Any) -> dict[str, Any]:
    return {"id": "?", "status": state, "description": description, "data": None, **more}


class FakeNdif:
    """Serve on loopback.

    Attributes
    ----------
    submit : callable
        ``submit(number, headers)`` answers the nth POST /request, from 1.
    poll : callable
        ``poll(job, number)`` answers the nth GET /response of any job, from 1.
    submitted : int
    polled : list of str
    """

    def __init__(self) -> None:
        self.submitted = 0
        self.polled: list[str] = []
        self.submit: Callable[[int, Any], Answer] = lambda n, headers: (200, status("RECEIVED"))
        self.poll: Callable[[str, int], Answer] = lambda job, n: (200, self.completed())
        self.result = blob({"x": torch.arange(4)})
        self.email: str | None = None
        self.deployments: dict[str, Any] = {}
        self.env = {
            "python_version": "3.12.1 (main)",
            "packages": {name: version(name) for name in ("nnsight", "torch", "transformers")},
        }
        handler = type("Handler", (_Handler,), {"fake": self})
        self._server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
        self._thread = threading.Thread(target=self._server.serve_forever, daemon=True)

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self._server.server_address[1]}"

    def completed(self) -> dict[str, Any]:
        return status("COMPLETED", data=f"{self.url}/result", meta={"runtime": 0.5})

    def __enter__(self) -> FakeNdif:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._server.shutdown()
        self._server.server_close()

    def answer(self, method: str, path: str, headers: Any) -> Answer:
        if method == "POST" and path == "/request":
            self.submitted += 1
            code, body = self.submit(self.submitted, headers)
            return code, body | {"id": f"job{self.submitted}"} if code == 200 else body
        if path.startswith("/response/"):
            self.polled.append(path.rpartition("/")[2])
            return self.poll(self.polled[-1], len(self.polled))
        if path == "/result":
            return 200, self.result
        simple: dict[str, Any] = {
            "/ping": "pong",
            "/connected": {"status": "connected"},
            "/status": {"deployments": self.deployments},
            "/env": self.env,
            "/whoami": {"email": self.email, "tags": []},
        }
        return (200, simple[path]) if path in simple else (404, {"detail": "Not Found"})


class _Handler(BaseHTTPRequestHandler):
    fake: FakeNdif
    protocol_version = "HTTP/1.1"

    def log_message(self, format: str, *args: object) -> None:
        pass

    def do_GET(self) -> None:
        self._answer("GET")

    def do_POST(self) -> None:
        self.rfile.read(int(self.headers.get("Content-Length", 0)))
        self._answer("POST")

    def _answer(self, method: str) -> None:
        code, body = self.fake.answer(method, self.path, self.headers)
        content = body if isinstance(body, bytes) else json.dumps(body).encode()
        self.send_response(code)
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        self.wfile.write(content)
