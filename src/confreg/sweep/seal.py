"""What a finished store consists of, file by file: so that damage is found, and mended.

The array ``work/seal`` of a finished store holds one text: of every metadata file its content,
which no computing again would bring back, and of every other file its SHA-256; before it the text's
own, since a damaged seal would damage what it guards. Before a run goes on
with a store, metadata are put back as they were, and other files that are not what they were are
taken away: then they are missing, and what is missing is computed again.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator
from pathlib import Path

import zarr

METADATA = "zarr.json"
SEAL = "work/seal"


def make(root: zarr.Group) -> None:
    """Make room for the seal, before the metadata of all arrays are gathered."""
    root.create_array(
        SEAL, shape=(1,), chunks=(1,), dtype=str, fill_value="", dimension_names=["seal"],
        overwrite=True,
    )  # fmt: skip


def close(path: Path) -> None:
    """Write down every file of a finished store, in an order that does not depend on the disk."""
    found = {name: _state(path / name) for name in sorted(_files(path))}
    array = zarr.open_array(path / SEAL, mode="r+")
    text = json.dumps(found, sort_keys=True)
    array[0] = f"{_sha256(text.encode())} {text}"


def _files(path: Path) -> Iterator[str]:
    for file in path.rglob("*"):
        name = file.relative_to(path).as_posix()
        if file.is_file() and not name.startswith(f"{SEAL}/") and not name.endswith(".partial"):
            yield name


def _state(file: Path) -> str:
    content = file.read_bytes()
    return content.decode() if file.name == METADATA else _sha256(content)


def _sha256(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


def read(path: Path) -> dict[str, str] | None:
    """What the seal says, or None where there is none that can be read."""
    try:
        digest, _, text = str(zarr.open_array(path / SEAL, mode="r")[0]).partition(" ")
    except Exception:
        return None
    return json.loads(text) if digest == _sha256(text.encode()) else None


def size(path: Path) -> int:
    """Bytes of a store's files."""
    return sum(file.stat().st_size for file in path.rglob("*") if file.is_file())


def damaged(path: Path, deep: bool = False) -> list[str]:
    """Files of a sealed store that are not what they were.

    Looks at metadata, and whether the other files are there; ``deep``: whether they are the same.
    """
    found = []
    for name, state in (read(path) or {}).items():
        file = path / name
        try:
            look = deep or file.name == METADATA
            same = _state(file) == state if look else file.is_file()
        except (OSError, UnicodeDecodeError):
            same = False
        if not same:
            found.append(name)
    return found


def restore(path: Path) -> list[str]:
    """Put damaged metadata back, and take other damaged files away.

    Returns
    -------
    list of str
        Which files.
    """
    states, found = read(path) or {}, damaged(path, deep=True)
    for name in found:
        file = path / name
        if file.name == METADATA:
            file.parent.mkdir(parents=True, exist_ok=True)
            partial = file.with_name(f"{file.name}.partial")
            partial.write_bytes(states[name].encode())
            partial.replace(file)
        else:
            file.unlink(missing_ok=True)
    return found
