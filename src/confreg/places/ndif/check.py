"""Before a job is paid for: is the server there, is the key good, can it run this model?"""

from __future__ import annotations

import platform
from collections.abc import Iterator, Mapping
from importlib.metadata import PackageNotFoundError, version
from typing import Any

from confreg.checks import TESTED, Check
from confreg.errors import ConfregError
from confreg.places.ndif.http import Server
from confreg.places.ndif.identity import api_key
from confreg.places.profiles import NdifProfile

# What a difference between client and server means, by package.
_MEANING = {
    "nnsight": "the request may not be read there",
    "transformers": "the model may have other modules there, and the request name one it lacks",
    "torch": "numbers may differ in the last digits",
}


_PATCH = ", which understand each other"


def check(profile: NdifProfile, model: str, asking: bool = False) -> list[Check]:
    """Look at a server, one sentence a thing; stop where the rest could not be looked at.

    Parameters
    ----------
    profile : NdifProfile
    model : str
        As for `confreg.models.load`.
    asking : bool
        Whether a request may be sent, where releases of transformers differ and the model runs.
    """
    found: list[Check] = []
    try:
        # Not `extend`: what was found before an error counts.
        for one in _look(profile, model, asking):
            found.append(one)
    except ConfregError as error:
        found.append(Check("server", False, str(error)))
    return found


def _look(profile: NdifProfile, model: str, asking: bool) -> Iterator[Check]:
    key = api_key()
    server = Server(profile, key)
    try:
        server.get("/ping", seconds=min(30.0, profile.deadline))
        yield Check("server", True, f"{server.host} answers, and the profile trusts its results")
        yield _key(server, key, profile)
        server.get("/connected")
        deployments = server.get("/status", seconds=70)["deployments"]
        running = _running(deployments, model)
        yield _model(deployments, running, model, profile)
        there = server.get("/env", seconds=70)
        versions = list(_versions(there))
        yield from versions
        readable = running and all(one.ok for one in versions)
        if asking and readable and _differs("transformers", there):
            from confreg.places.ndif.modules import judge  # it takes torch and nnsight

            yield judge(profile, model)
    finally:
        server.close()


def _key(server: Server, key: str | None, profile: NdifProfile) -> Check:
    owner = server.get("/whoami")
    if owner.get("email"):
        return Check("key", True, f"accepted, as {owner['email']}")
    # A server without authentication knows nobody, and needs no key.
    optional = not profile.is_public
    if key is None:
        hint = "" if optional else "; set NDIF_API_KEY or run `nnsight login`"
        return Check("key", optional, f"none{hint}")
    return Check("key", optional, f"there is one, which {server.host} does not know")


Deployments = Mapping[str, Mapping[str, Any]]


def _deployed(deployments: Deployments, model: str) -> list[Mapping[str, Any]]:
    """What the server says of a model."""
    from confreg.models.sources import locate

    source = locate(model)
    revision = None if source.local else source.revision
    return [
        d
        for d in deployments.values()
        if d.get("repo_id") == source.path and (d.get("revision") or None) == revision
    ]


def _running(deployments: Deployments, model: str) -> list[Mapping[str, Any]]:
    found = _deployed(deployments, model)
    return [d for d in found if d.get("application_state") == "RUNNING"]


def _model(
    deployments: Deployments,
    running: list[Mapping[str, Any]],
    model: str,
    profile: NdifProfile,
) -> Check:
    if not running:
        found = _deployed(deployments, model)
        state = found[0].get("application_state", "known") if found else "not deployed"
        sentence = f"{state}; the server deploys it when it is first asked for, if it can"
        return Check(model, True, sentence)
    dtype = running[0].get("dtype") or "a dtype that the server does not tell"
    sentence = f"runs there in {dtype}, on {len(running)} replica{'s' * (len(running) > 1)}"
    if profile.dtype and running[0].get("dtype") not in (None, profile.dtype):
        sentence += f", and the profile says {profile.dtype}: change its dtype"
        return Check(model, False, sentence)
    return Check(model, True, sentence)


def _versions(there: Mapping[str, Any]) -> Iterator[Check]:
    packages = there.get("packages", {})
    for name, meaning in _MEANING.items():
        here, remote = _installed(name), packages.get(name, "unknown")
        same = _release(here) == _release(remote)
        if name == "transformers" and not same and _release(here)[:1] == _release(remote)[:1]:
            yield Check(name, True, f"{here} here, {remote} there: {_modules(here, remote)}")
            continue
        # Two patch releases of nnsight 0.8 understand each other; so do versions of torch.
        ok = same or name == "torch" or _release(here)[:2] == _release(remote)[:2]
        note = "" if same else f": {meaning}" if name == "torch" or not ok else _PATCH
        yield Check(name, ok, f"{here} here, {remote} there{note}")
    python = str(there.get("python_version", "unknown")).split()[0]
    here = platform.python_version()
    note = "" if python == here else "; blocks travel as source, so that is well"
    yield Check("python", True, f"{here} here, {python} there{note}")


def _modules(here: str, there: str) -> str:
    """Whether two releases of transformers are known to name the same modules."""
    tested = {tuple(_release(one)[:2]) for one in TESTED["transformers"]}
    if {tuple(_release(here)[:2]), tuple(_release(there)[:2])} <= tested:
        return "the modules that requests name are the same in both, as tests of each show"
    return (
        "untested; a request that names a module which is missing there fails, and measures nothing"
    )


def _differs(package: str, there: Mapping[str, Any]) -> bool:
    return _release(_installed(package)) != _release(there.get("packages", {}).get(package, ""))


def _installed(name: str) -> str:
    try:
        return version(name)
    except PackageNotFoundError:
        return "absent"


def _release(text: str) -> list[str]:
    return text.partition("+")[0].split(".")
