"""Modules that lie beside a recipe's file: each recipe has its own, as they are on the disk."""

from __future__ import annotations

import hashlib
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

_GIVEN: set[str] = set()
"""Names under which modules of recipes' folders have been imported."""


@contextmanager
def importing(folder: Path) -> Iterator[None]:
    """Import what lies in a folder anew, and not what another recipe's folder has by that name."""
    names = {file.stem for file in folder.glob("*.py")}
    names |= {file.parent.name for file in folder.glob("*/__init__.py")}
    for name in [*sys.modules]:
        if name.partition(".")[0] in names & _GIVEN:
            del sys.modules[name]
    before, writes = set(sys.modules), sys.dont_write_bytecode
    # As with a script: helper modules beside the recipe can be imported by it, later too.
    sys.path[:] = [str(folder), *(path for path in sys.path if path != str(folder))]
    # A file that is edited twice within a second would be read from its bytecode.
    sys.dont_write_bytecode = True
    try:
        yield
    finally:
        sys.dont_write_bytecode = writes
        new = (name.partition(".")[0] for name in set(sys.modules) - before)
        _GIVEN.update(name for name in new if name in names)


def digests(folder: Path) -> dict[str, str]:
    """SHA-256 of every file of a folder that was imported as a module, by the file's path."""
    found = {}
    for name, module in list(sys.modules.items()):
        file = getattr(module, "__file__", None)
        if name.partition(".")[0] in _GIVEN and file and folder in Path(file).parents:
            found[file] = digest(Path(file))
    return dict(sorted(found.items()))


def digest(file: Path) -> str:
    """SHA-256 of a file; empty where it is gone."""
    return hashlib.sha256(file.read_bytes()).hexdigest() if file.is_file() else ""


def unchanged(known: Mapping[str, str]) -> bool:
    """Whether files are as they were."""
    return all(digest(Path(file)) == was for file, was in known.items())
