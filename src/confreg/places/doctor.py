"""Checks before anything runs: one sentence each."""

from __future__ import annotations

import shutil
from collections.abc import Mapping
from typing import Any

from confreg.checks import TESTED, Check
from confreg.errors import ConfregError
from confreg.places import profiles
from confreg.places.profiles import LocalProfile, NdifProfile


def check(profile: str | None, overrides: Mapping[str, Any], model: str) -> list[Check]:
    """Look at this machine, and at what a profile needs for a model."""
    found = [*_versions(), _memory(), _disk(), *_own()]
    if profile is None:
        known = ", ".join(profiles.names())
        return [*found, Check("profiles", True, f"{known}; look at one with --profile")]
    try:
        loaded = profiles.load(profile, overrides)
    except ConfregError as error:
        return [*found, Check("profile", False, str(error))]
    found.append(Check("profile", True, f"{loaded.name}: {loaded.description}"))
    try:
        return found + _profile(loaded, model)
    except ConfregError as error:
        return [*found, Check(model, False, str(error))]


def _own() -> list[Check]:
    """What is the user's own: where profiles and architectures lie, and what packages bring."""
    from confreg.models import own
    from confreg.recipe import installed

    found = [Check("own profiles", True, str(profiles.folders()[0]))]
    try:
        rows = own.rows()
    except ConfregError as error:
        found.append(Check("own architectures", False, str(error)))
    else:
        said = f": {', '.join(rows)}" if rows else ""
        found.append(Check("own architectures", True, f"{own.folder()}{said}"))
    if brought := sorted(installed()):
        found.append(Check("recipes of packages", True, ", ".join(brought)))
    return found


def _profile(profile: LocalProfile | NdifProfile, model: str) -> list[Check]:
    if isinstance(profile, NdifProfile):
        from confreg.places.ndif import check

        return check.check(profile, model, asking=True)
    from confreg import models

    described = models.describe(model, dtype=profile.dtype)
    return profile.placement().report(described)


def _versions() -> list[Check]:
    from confreg.sweep.provenance import versions

    found = []
    for name, version in versions().items():
        tested = TESTED.get(name, ())
        plain = version.split("+")[0]
        note = (
            f"{version}"
            if not tested or plain in tested
            else (f"{version}; the tests run with {' and '.join(tested)}")
        )
        found.append(Check(name, version != "absent", note))
    return found


def _memory() -> Check:
    import psutil
    import torch

    free = psutil.virtual_memory().available / 1e9
    gpus = torch.cuda.device_count() if torch.cuda.is_available() else 0
    names = ", ".join(torch.cuda.get_device_name(i) for i in range(gpus)) or "no GPU"
    return Check("memory", True, f"{free:.1f} GB free; {names}")


def _disk() -> Check:
    free = shutil.disk_usage(".").free / 1e9
    return Check("disk", free > 1, f"{free:.0f} GB free where you are")
