"""What weights a model has, by a digest of every byte of them.

Of files all is read, several parts at once; what was found is kept in the user's cache by a file's
size and times, so that a large checkpoint is read for this once and then known in a moment. Of a
network in memory every parameter and buffer is read. Other weights under the same name have
another fingerprint, if they differ in one neuron only, and the same ones, copied elsewhere, have
the same.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING, Any

from confreg.errors import ConfregError
from confreg.models import adapters
from confreg.models.checkpoint import weight_files
from confreg.models.embedded import cache_folder
from confreg.models.sources import locate
from confreg.progress import waiting

if TYPE_CHECKING:
    from confreg.models.network import Network

PART = 2**26
"""Bytes that are read, and hashed, at once."""
KEPT = 2**28
"""Bytes of a file from which on its digest is kept: smaller ones take less than a second."""


def fingerprint(network: Network) -> str:
    """A digest of a model's weights, and of what else is computed with: configuration, adapter.

    Empty where they are not at hand: a model of the Hub, whose commit says which they are, or one
    that a recipe makes.
    """
    parts = []
    if network.loaded is not None:
        module = getattr(network.loaded, "nn", network.loaded)._module
        parts.append(of_network(module))
        if all(p.device.type != "meta" for p in module.parameters()):
            return parts[0]
    elif not network.is_language_model:
        return ""
    parts += _of_name(network.name)
    if network.adapter:
        folder = adapters.locate(network.adapter)
        names = [adapters.CONFIGURATION, *adapters.WEIGHTS]
        parts.append(of_paths([folder / name for name in names if (folder / name).is_file()]))
    return " ".join(parts)


def check(network: Network, found: str) -> None:
    """Refuse weights that changed since they were looked at.

    Raises
    ------
    ConfregError
    """
    if fingerprint(network) != found:
        raise ConfregError(
            f"The weights of {network.name} changed while they were read: another program writes "
            "them. Run again when it has finished."
        )


def _of_name(name: str) -> list[str]:
    """Of layers that stay on the disk the files say what they are."""
    try:
        source = locate(name)
    except ConfregError:  # of a network that was wrapped under a name of its own
        return []
    return [of_files(Path(source.path), source.gguf)] if source.local else []


def of_files(folder: Path, gguf: str | None = None) -> str:
    """A digest of a checkpoint in a folder, with its configuration, or of one GGUF file in it."""
    if gguf:
        return of_paths([folder / gguf])
    try:
        files = weight_files(folder, str(folder))
    except ConfregError:  # loading says what is wrong; a server has weights of its own
        files = []
    return of_paths([folder / "config.json", *files])


def of_paths(files: list[Path]) -> str:
    """A digest of files by name and content; a missing one counts as empty."""
    digest = hashlib.sha256()
    for file in files:
        digest.update(f"{file.name} {_of_file(file)}\n".encode())
    return digest.hexdigest()


def _of_file(file: Path) -> str:
    if not file.is_file():
        return ""
    state = file.stat()
    if state.st_size < KEPT:
        return _of_content(file, state.st_size)
    # The time of the last change of a file's entry cannot be set back, as that of its content can.
    now = [str(file.resolve()), state.st_size, state.st_mtime_ns, state.st_ctime_ns, state.st_ino]
    place = hashlib.sha256(now[0].encode()).hexdigest()[:32]
    kept = cache_folder() / "fingerprints" / f"{place}.json"
    try:
        before = json.loads(kept.read_text())
        if before["state"] == now:
            return before["sha256"]
    except (OSError, ValueError, KeyError, TypeError):
        pass
    with waiting(f"reading {file.name} ({state.st_size / 1e9:.1f} GB) for its fingerprint, once"):
        found = _of_content(file, state.st_size)
    try:
        kept.parent.mkdir(parents=True, exist_ok=True)
        partial = kept.with_suffix(f".{os.getpid()}")
        partial.write_text(json.dumps({"state": now, "sha256": found}))
        partial.replace(kept)
    except OSError:  # it is read again next time
        pass
    return found


def _of_content(file: Path, size: int) -> str:
    def one(start: int) -> bytes:
        with file.open("rb") as stream:
            stream.seek(start)
            return hashlib.sha256(stream.read(PART)).digest()

    return _joined(one, range(0, size, PART))


def _joined(one: Any, parts: Any) -> str:
    """The digest of digests, made side by side: hashing leaves Python's lock."""
    digest = hashlib.sha256()
    with ThreadPoolExecutor(min(8, os.cpu_count() or 1)) as pool:
        for found in pool.map(one, parts):
            digest.update(found)
    return digest.hexdigest()


def of_network(network: Any) -> str:
    """A digest of a torch module's configuration, parameters and buffers.

    Those without storage count by name.
    """
    digest = hashlib.sha256()
    config: Any = getattr(network, "config", None)
    if hasattr(config, "to_dict"):
        said = {k: v for k, v in config.to_dict().items() if k not in _VOLATILE}
        digest.update(json.dumps(said, sort_keys=True, default=str).encode())
    moving = set(_moving(network))
    tensors = [
        (name, tensor)
        for name, tensor in [*network.named_parameters(), *network.named_buffers()]
        if name not in moving
    ]
    for name, tensor in tensors:
        digest.update(f"{name} {tuple(tensor.shape)} {tensor.dtype}\n".encode())
    held = [t for _, t in tensors if t.device.type != "meta" and t.numel()]
    size = sum(t.numel() * t.element_size() for t in held)
    with waiting(f"reading weights ({size / 1e9:.1f} GB) for their fingerprint"):
        digest.update(_joined(_of_part, _parts(held)).encode())
    return digest.hexdigest()


_VOLATILE = ("_name_or_path", "transformers_version")


def _moving(network: Any) -> Iterator[str]:
    """Yield buffers that a forward replaces: rotary frequencies that depend on a text's length."""
    for name, module in network.named_modules():
        kinds = getattr(module, "rope_type", "")
        if any(kind in str(kinds) for kind in ("longrope", "dynamic")):
            for buffer, _ in module.named_buffers(prefix=name):
                yield buffer


def _parts(tensors: list[Any]) -> Iterator[Any]:
    for tensor in tensors:
        flat = tensor.detach().reshape(-1)
        step = PART // flat.element_size()
        for start in range(0, len(flat), step):
            yield flat[start : start + step]


def _of_part(values: Any) -> bytes:
    import torch

    return hashlib.sha256(values.cpu().contiguous().view(torch.uint8).numpy()).digest()
