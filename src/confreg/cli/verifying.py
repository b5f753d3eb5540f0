"""``confreg verify``: what is known of a model's architecture, tried on its weights."""

from __future__ import annotations

import tempfile
from contextlib import closing
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from confreg.axes import Spans
from confreg.errors import ConfregError
from confreg.models import adapters
from confreg.models.agreement import Compared, uncompared
from confreg.places.profiles import LocalProfile, NdifProfile, Profile

if TYPE_CHECKING:
    from confreg.models.model import Description

NOT_THERE = (
    uncompared("logits", "not at a server: it takes the plain model; exact, series follow from it"),
    uncompared("heads", "not at a server: it takes hooks on modules, where the weights are"),
)
"""What is not compared at a server, and why."""
EXPERTS = uncompared("experts", "not at a server: it takes the fused weights at hand")


def verify(name: str, profile: Profile, dtype: str | None, adapter: str | None) -> None:
    """Hold a model's parts against each other, print what was compared, and keep it.

    Parameters
    ----------
    name : str
        As for `confreg.models.load`.
    profile : Profile
        Where; at a server what traces can compare.
    dtype : str, optional
        By default float32, at a server what the profile says.
    adapter : str, optional
        As for `confreg.models.load`.

    Raises
    ------
    ConfregError
        A part differs, the model cannot be loaded, or the adapter is not one of this model.
    """
    from confreg.cli import listing
    from confreg.models import verified
    from confreg.models.agreement import failure
    from confreg.places import host
    from confreg.sweep.provenance import versions

    found_with = versions()
    if isinstance(profile, NdifProfile):
        if adapter is not None:
            raise ConfregError(adapters.HERE_ONLY)
        model, found = _there(name, profile, dtype)
        found_with |= _versions_there(profile, found_with)
    else:
        model, found = _here(name, profile, dtype, adapter)
    where = {"adapter": adapter or "", "host": host(profile)}
    listing.print_verified(model, found, verified.keep(model, found, found_with, where))
    if reason := failure(model, found):
        raise ConfregError(reason)


def _here(
    name: str, profile: LocalProfile, dtype: str | None, adapter: str | None
) -> tuple[Description, list[Compared]]:
    from confreg import models
    from confreg.models import verify

    model = models.load(name, profile.placement(), dtype or "float32", adapter=adapter)
    return model.description, verify.verify(model)


def _there(
    name: str, profile: NdifProfile, dtype: str | None
) -> tuple[Description, list[Compared]]:
    """The step that a run of an architecture of no table begins with, alone."""
    from confreg import models, places
    from confreg.models.agreement import of_engines
    from confreg.models.network import Network
    from confreg.options import Options
    from confreg.progress import Progress
    from confreg.steps.verification import comparison, differences
    from confreg.sweep.layout import lay_out

    about = models.describe(name, dtype=dtype or profile.dtype)
    network, progress = Network(name, about=about), Progress()
    place = places.make(profile, Options(dtype=dtype), network)
    # What differs is printed before it is refused.
    step = replace(comparison(network, "verified"), check=None)
    assert step.unit is not None
    ids = step.unit(Spans({}), {})
    place.admit(step)
    layout = lay_out(step, "verification", {}, place.budget)
    with (
        tempfile.TemporaryDirectory(prefix="confreg-") as folder,
        progress.heard(),
        place.entered(Path(folder) / "verification", {}, progress),
    ):
        ((_, block),) = place.run(layout, layout.units(), lambda spans: ids)
    others = [*NOT_THERE, *[EXPERTS] * bool(about.banks)]
    return about, [*of_engines(about, differences(block, "verified")), *others]


def _versions_there(profile: NdifProfile, here: dict[str, str]) -> dict[str, str]:
    """Of the packages that are named here, those that the server says."""
    from confreg.places.ndif.http import Server
    from confreg.places.ndif.identity import api_key

    with closing(Server(profile, api_key())) as server:
        there = server.get("/env", seconds=70).get("packages", {})
    return {package: version for package, version in there.items() if package in here}
