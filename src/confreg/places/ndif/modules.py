"""Whether a server's model has the modules that requests name: asked with one trace.

Requests name modules by their paths, and transformers decides what these are. No endpoint tells
them, but a block can look: even a sandbox has the model's structure.
"""

from __future__ import annotations

import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import nnsight
import torch

from confreg.checks import Check
from confreg.errors import ConfregError
from confreg.places.ndif.client import Client
from confreg.places.ndif.faults import DeadlineExceeded, Transient

if TYPE_CHECKING:
    from confreg.models import Model
    from confreg.places.profiles import NdifProfile

PATIENCE = 120.0
"""Seconds that the answer may take."""


def judge(profile: NdifProfile, model: str) -> Check:
    """Ask a server for the modules that requests for a model name.

    Parameters
    ----------
    profile : NdifProfile
    model : str
        As for `confreg.models.load`; it runs there.
    """
    from confreg import models

    name = "modules"
    loaded = models.load(model, dtype=profile.dtype, weights=False)
    here = named(loaded)
    seconds = min(PATIENCE, profile.deadline)
    patient = profile.model_copy(update={"deadline": seconds, "retries": 1})
    try:
        with (
            tempfile.TemporaryDirectory(prefix="confreg-") as folder,
            Client(patient, loaded, Path(folder) / "jobs.jsonl") as client,
        ):
            there = ask(client.unit(name), list(here))
    except (DeadlineExceeded, Transient) as error:
        return Check(name, True, f"not known, since nothing answered in time: {error}")
    except ConfregError as error:
        return Check(name, False, str(error))
    return compare(here, there, f"confreg verify {model} --profile {profile.name}")


def named(model: Model) -> dict[str, str]:
    """Paths of the modules that requests name, with their classes, as they are here."""
    row, config = model.description.row, model.description.config
    layers = [f"{row.layers}.{layer}" for layer in range(model.n_layers)]
    inside = [f"{layer}.{part}" for layer in layers for part in row.of_a_layer(config)]
    known = dict(model.nn._module.named_modules(remove_duplicate=False))
    paths = [*layers, *inside, row.final_norm, row.unembedding]
    return {path: type(known[path]).__name__ for path in paths if path in known}


def ask(model: Any, paths: list[str]) -> dict[str, str]:
    """Those of some paths that the model has where its traces run, with their classes."""
    root = model.nn
    with torch.no_grad(), model.trace(torch.zeros(1, 2, dtype=torch.int64)) as tracer:
        known = dict(root._module.named_modules(remove_duplicate=False))
        found = nnsight.save({path: type(known[path]).__name__ for path in paths if path in known})
        tracer.stop()
    return found


def compare(here: Mapping[str, str], there: Mapping[str, str], command: str) -> Check:
    """What the doctor says of paths and classes on both sides."""
    missing = [path for path in here if path not in there]
    if missing:
        more = f" and {len(missing) - 1} more" if len(missing) > 1 else ""
        sentence = (
            f"{missing[0]}{more} that requests name are not there: its transformers builds the "
            "model otherwise than yours. Install the server's here"
        )
        return Check("modules", False, sentence)
    other = [path for path, kind in here.items() if there[path] != kind]
    if other:
        first = other[0]
        sentence = (
            f"all {len(here)} paths that requests name are there, but {first} is a {there[first]} "
            f"there and a {here[first]} here; `{command}` tries what is measured"
        )
        return Check("modules", True, sentence)
    return Check("modules", True, f"all {len(here)} paths that requests name agree")
