"""What weights a model has, by a digest that takes no more than a moment.

Of files their names, sizes, beginnings, ends and many places between are read; of a network in
memory some values of every parameter and buffer. Other weights under the same name have another
fingerprint, and the same ones, copied elsewhere, have the same.
"""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import TYPE_CHECKING, Any

from confreg.models.sources import locate

if TYPE_CHECKING:
    from confreg.models.network import Network

WEIGHTS = ("*.safetensors", "*.bin", "*.gguf", "adapter_config.json")
EDGE = 2**20
"""Bytes that are read at the beginning and at the end of a file."""
PLACES, PIECE = 256, 4096
"""How many places between are read, and bytes of each."""
VALUES = 4096
"""Values of a parameter that are read, evenly over it."""


def fingerprint(network: Network) -> str:
    """A digest of a model's weights; empty where they are not at hand.

    That is a model of the Hub, whose commit says which they are, or one that a recipe makes.
    """
    if network.loaded is not None:
        return of_network(getattr(network.loaded, "nn", network.loaded)._module)
    if not network.is_language_model:
        return ""
    source = locate(network.name)
    return of_files(Path(source.path), source.gguf) if source.local else ""


def of_files(folder: Path, gguf: str | None = None) -> str:
    """A digest of the files of weights in a folder, or of one GGUF file in it."""
    names = [gguf] if gguf else sorted({f.name for kind in WEIGHTS for f in folder.glob(kind)})
    digest = hashlib.sha256()
    for name in names:
        with (folder / name).open("rb") as file:
            size = file.seek(0, 2)
            digest.update(f"{name} {size}\n".encode())
            starts = [size * i // PLACES for i in range(PLACES)]
            spans = [(0, EDGE), *((start, PIECE) for start in starts), (max(size - EDGE, 0), EDGE)]
            for start, length in spans:
                file.seek(start)
                digest.update(file.read(length))
    return digest.hexdigest()


def of_network(network: Any) -> str:
    """A digest of the parameters and buffers of a torch module; those without storage by name."""
    import torch

    digest = hashlib.sha256()
    for name, tensor in [*network.named_parameters(), *network.named_buffers()]:
        digest.update(f"{name} {tuple(tensor.shape)} {tensor.dtype}\n".encode())
        if tensor.device.type == "meta" or not tensor.numel():
            continue
        flat = tensor.detach().reshape(-1)
        some = flat[:: max(flat.numel() // VALUES, 1)].cpu()
        wide = some.double() if some.is_floating_point() else some.to(torch.int64)
        digest.update(wide.numpy().tobytes())
    return digest.hexdigest()
