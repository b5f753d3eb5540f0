"""Runs that are killed, from the command line, and what their stores hold."""

from __future__ import annotations

import hashlib
from pathlib import Path


def digest(path: Path) -> dict[str, str]:
    """Every file of a store, by its bytes."""
    files = sorted(f for f in path.rglob("*") if f.is_file())
    return {str(f.relative_to(path)): hashlib.sha256(f.read_bytes()).hexdigest() for f in files}
