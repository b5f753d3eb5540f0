"""Talking to an NDIF server: every request has a deadline, and an error is a sentence."""

from __future__ import annotations

import ipaddress
import json
import socket
import sys
import time
from collections.abc import Mapping
from typing import Any
from urllib.parse import urlsplit

import httpx

from confreg.errors import ConfregError
from confreg.places.ndif.faults import DeadlineExceeded, TooLarge, Transient, answer_failure
from confreg.places.profiles import NdifProfile

_CONNECT = 10.0
# The longest that one answer may take: of a small request, and of a body that is streaming.
_ANSWER = 60.0


class Deadline:
    """A moment until which something may take.

    Parameters
    ----------
    seconds : float
        From now.
    """

    def __init__(self, seconds: float):
        self.seconds = seconds
        self.end = time.monotonic() + seconds

    def left(self) -> float:
        """Seconds left, at least 0."""
        return max(0.0, self.end - time.monotonic())

    def timeout(self) -> httpx.Timeout:
        """Limits of one HTTP exchange within this deadline."""
        left = max(0.05, self.left())
        return httpx.Timeout(min(left, _ANSWER), connect=min(left, _CONNECT))


def check_host(profile: NdifProfile) -> None:
    """Refuse a host whose answers must not be loaded.

    Raises
    ------
    ConfregError
        The profile does not trust it, or it is spoken to in the clear.
    """
    parts = urlsplit(profile.host)
    if parts.scheme not in ("http", "https") or not parts.hostname:
        raise ConfregError(
            f"Profile {profile.name!r}: host {profile.host!r} is not a URL like "
            "https://api.ndif.us."
        )
    if not profile.trusted:
        raise ConfregError(
            f"Profile {profile.name!r} does not trust {profile.host}. Results of NDIF are "
            "pickles, and loading one lets the server run code on this machine. If you trust "
            "whoever runs it, set `trusted = true` in the profile (or -P trusted=true)."
        )
    check_url(profile.host, profile)


def check_url(url: str, profile: NdifProfile) -> None:
    """Refuse plain http to another machine.

    Raises
    ------
    ConfregError
    """
    parts = urlsplit(url)
    if parts.scheme == "https" or profile.allow_http or is_loopback(parts.hostname or ""):
        return
    raise ConfregError(
        f"{parts.scheme}://{parts.netloc} is not encrypted: anyone on the way could read the "
        "key and put a pickle of their own in place of a result. Use https, a tunnel to "
        "loopback (`ssh -L`), or set `allow_http = true` in the profile."
    )


def is_loopback(host: str) -> bool:
    """Whether a host name can only be this machine."""
    try:
        return ipaddress.ip_address(host.strip("[]")).is_loopback
    except ValueError:
        return host == "localhost"


class Server:
    """One NDIF server, as HTTP.

    Parameters
    ----------
    profile : NdifProfile
    key : str or None
        Sent with every request; never shown.

    Attributes
    ----------
    host : str
        Without credentials, for messages and datasets.
    """

    def __init__(self, profile: NdifProfile, key: str | None):
        check_host(profile)
        self.profile = profile
        self.base = profile.host.rstrip("/")
        parts = urlsplit(profile.host)
        self.host = f"{parts.scheme}://{parts.hostname}" + (f":{parts.port}" if parts.port else "")
        self._headers = {"ndif-api-key": key} if key else {}
        # Loopback is never behind the proxy that the environment may name.
        self._http = httpx.Client(trust_env=not is_loopback(parts.hostname or ""))

    def close(self) -> None:
        """Close the connections."""
        self._http.close()

    def submit(self, envelope: str, blob: bytes, deadline: Deadline) -> dict[str, Any]:
        """Post a request; return the server's first answer, which has the job's id.

        Raises
        ------
        Transient, TooLarge, ConfregError
        """
        from nnsight.intervention.backends.remote import _NNSIGHT_VERSION

        headers = {
            "ndif-timestamp": repr(time.time()),
            "nnsight-version": _NNSIGHT_VERSION,
            "python-version": sys.version,
        }
        answer = self._exchange(
            "POST",
            f"{self.base}/request",
            deadline,
            headers=headers,
            data={"data": envelope},
            files={"blob": ("request", blob, "application/octet-stream")},
        )
        return self._json(answer)

    def response(self, job: str, deadline: Deadline) -> dict[str, Any] | None:
        """Latest status of a job, or None while (or since) the server knows nothing of it.

        Raises
        ------
        Transient, ConfregError
        """
        url = f"{self.base}/response/{job}"
        answer = self._exchange("GET", url, deadline, missing=True)
        return None if answer.status_code == 404 else self._json(answer)

    def get(self, path: str, seconds: float = 30.0) -> Any:
        """JSON at a path of the server.

        Raises
        ------
        Transient, ConfregError
        """
        return self._json(self._exchange("GET", f"{self.base}{path}", Deadline(seconds)))

    def download(self, url: str, deadline: Deadline) -> bytes:
        """Fetch a result, up to the size that the profile allows.

        Raises
        ------
        TooLarge, Transient, DeadlineExceeded, ConfregError
        """
        check_url(url, self.profile)
        limit = int(self.profile.max_result)
        body = bytearray()
        try:
            with self._http.stream("GET", url, timeout=deadline.timeout()) as answer:
                if answer.status_code >= 400:
                    # A signed address that has expired, or a store that forgot.
                    raise Transient(f"The result could not be fetched ({answer.status_code}).")
                if int(answer.headers.get("Content-Length", 0)) > limit:
                    raise too_large(int(answer.headers["Content-Length"]), limit)
                for chunk in answer.iter_bytes(1 << 20):
                    body += chunk
                    if len(body) > limit:
                        raise too_large(len(body), limit)
                    if not deadline.left():
                        raise DeadlineExceeded("The result did not arrive within the deadline.")
        except httpx.TransportError as error:
            raise Transient(f"The result did not arrive: {_reason(error)}.") from error
        return bytes(body)

    def _exchange(
        self,
        method: str,
        url: str,
        deadline: Deadline,
        *,
        missing: bool = False,
        headers: Mapping[str, str] | None = None,
        **content: Any,
    ) -> httpx.Response:
        try:
            answer = self._http.request(
                method,
                url,
                headers={**self._headers, **(headers or {})},
                timeout=deadline.timeout(),
                **content,
            )
        except (httpx.TransportError, socket.gaierror) as error:
            raise Transient(f"{self.host} cannot be reached: {_reason(error)}.") from error
        if answer.status_code >= 400 and not (missing and answer.status_code == 404):
            raise answer_failure(answer.status_code, _detail(answer), self.host)
        return answer

    def _json(self, answer: httpx.Response) -> Any:
        try:
            return answer.json()
        except ValueError:
            raise ConfregError(
                f"{self.host} answers, but not like an NDIF server. Check the profile's host."
            ) from None


class Subscription:
    """A websocket on which a server reports one job, for servers without an object store.

    Raises
    ------
    Transient
        It cannot be opened.
    """

    def __init__(self, server: Server, key: str | None, deadline: Deadline):
        import websocket

        scheme, _, rest = server.base.partition("://")
        self._server = server
        try:
            self._socket = websocket.create_connection(
                f"{'wss' if scheme == 'https' else 'ws'}://{rest}/subscribe",
                timeout=min(deadline.left(), _CONNECT),
                header={"ndif-api-key": key} if key else None,
                http_no_proxy=["127.0.0.1", "localhost"],
            )
            self.session = json.loads(self._socket.recv())["session_id"]
        except (OSError, ValueError, KeyError, websocket.WebSocketException) as error:
            raise Transient(f"{server.host} cannot be reached: {_reason(error)}.") from error

    def receive(self, seconds: float) -> Any:
        """The next status update: a mapping, or bytes that hold a result; None if none came.

        Parameters
        ----------
        seconds : float
            How long to wait for it.

        Raises
        ------
        Transient
            The connection ended.
        """
        import websocket

        self._socket.settimeout(seconds)
        try:
            message = self._socket.recv()
        except websocket.WebSocketTimeoutException:
            return None
        except (OSError, websocket.WebSocketException) as error:
            raise Transient(
                f"{self._server.host} closed the connection: {_reason(error)}."
            ) from error
        if not message:
            raise Transient(f"{self._server.host} closed the connection.")
        return message if isinstance(message, bytes) else json.loads(message)

    def close(self) -> None:
        """Close the connection."""
        self._socket.close()


def too_large(size: int, limit: int) -> TooLarge:
    """The exception for a result over the profile's limit."""
    return TooLarge(
        f"A result of {size / 1e6:.0f} MB is more than the profile's max_result of "
        f"{limit / 1e6:.0f} MB."
    )


def _reason(error: BaseException) -> str:
    text = str(error) or type(error).__name__
    if isinstance(error, httpx.TimeoutException):
        return "no answer in time"
    return text.removeprefix("[Errno 111] ").rstrip(".")


def _detail(answer: httpx.Response) -> str:
    try:
        body = answer.json()
    except ValueError:
        return answer.text[:300] or answer.reason_phrase
    detail = body.get("detail", body) if isinstance(body, dict) else body
    return str(detail)[:500]
