"""Places where traces run, this process or an NDIF server, and the profiles that say which."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING
from urllib.parse import urlsplit

from confreg.places import profiles
from confreg.places.here import Here
from confreg.places.profiles import NdifProfile, Profile

if TYPE_CHECKING:
    from confreg.models.network import Network
    from confreg.options import Options
    from confreg.sweep.place import Place

__all__ = ["Here", "forget_jobs", "host", "make", "profiles"]


def make(profile: Profile, options: Options, model: Network) -> Place:
    """The place of a profile, with the budget that the options leave; nothing is loaded.

    Raises
    ------
    ConfregError
        A size that is none, or a model that the place cannot run.
    """
    if isinstance(profile, NdifProfile):
        from confreg.places.ndif.place import Ndif

        return Ndif(profile, options, model)
    return Here(profile, options, model)


def host(profile: Profile) -> str:
    """Where a profile runs, without credentials: a server's name and port, or "local"."""
    address = getattr(profile, "host", "")
    return urlsplit(address).netloc.rpartition("@")[2] if address else "local"


def forget_jobs(store: Path) -> None:
    """Delete what is written down of a store's jobs."""
    from confreg.places.ndif.journal import journal_path

    journal_path(store).unlink(missing_ok=True)
