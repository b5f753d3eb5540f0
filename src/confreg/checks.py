"""What was looked at before a run: by the doctor, in a placement, at a server."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Check:
    """One thing that was looked at: whether it is well, and what to know or do.

    Attributes
    ----------
    name : str
        What was looked at: ``"memory"``, a package, a device, a model.
    ok : bool
        Whether a run can go on from here.
    sentence : str
        For people.
    """

    name: str
    ok: bool
    sentence: str
