"""What travels: a block's code goes to the server as source, and what it saved comes back."""

from __future__ import annotations

import io
import sys
from pathlib import Path
from typing import Any

from confreg.places.ndif.faults import Transient

SHIPPED = ("confreg.effects", "confreg.recipes", "confreg.steps")
"""Packages of confreg whose code, and that of modules below them, a block may call."""


def register_shipped() -> None:
    """Let confreg's own packages that blocks call travel with them."""
    import nnsight

    for package in SHIPPED:
        nnsight.register(package)


def register_beside(filename: str) -> None:
    """Let modules that lie in a recipe's folder travel with its blocks, as source."""
    import nnsight

    folder = Path(filename).resolve().parent
    for name, module in list(sys.modules.items()):
        path = getattr(module, "__file__", None)
        # A package's modules are registered with the package.
        if path and "." not in name and name != "__main__" and _lies_in(Path(path), folder):
            nnsight.register(name)


def _lies_in(path: Path, folder: Path) -> bool:
    own = path.parent if path.name == "__init__.py" else path
    return own.parent.resolve() == folder


def load_result(body: bytes) -> dict[str, Any]:
    """What a block saved, from the bytes that a server returned.

    Tensors, numbers, strings and containers of them are read without running code. Anything
    else is a pickle, which a profile's ``trusted`` has allowed.

    Raises
    ------
    Transient
        The bytes are not a result: they were cut short.
    """
    import pickle

    import torch
    import zstandard

    try:
        data = zstandard.ZstdDecompressor().decompress(body)
        try:
            return torch.load(io.BytesIO(data), map_location="cpu", weights_only=True)
        except pickle.UnpicklingError:
            return torch.load(io.BytesIO(data), map_location="cpu", weights_only=False)
    except (zstandard.ZstdError, EOFError, RuntimeError, pickle.UnpicklingError) as error:
        raise Transient(f"A result of {len(body)} bytes cannot be read: {error}") from error
