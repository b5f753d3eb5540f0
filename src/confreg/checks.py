"""What was looked at before a run: by the doctor, in a placement, at a server."""

from __future__ import annotations

from dataclasses import dataclass

TESTED = {
    "nnsight": ("0.8.0", "0.8.1"),
    "transformers": ("5.22.2", "5.23.0", "5.24.0"),
    "torch": ("2.13.0", "2.14.0"),
}
"""The versions that the tests run with, by package."""


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
