"""A store that is read as long as it is the one that was opened.

A dataset is opened lazily: what it shows is read from files when it is asked for. If another run's
store stands at its path by then, or none, its numbers would be another's, or none, under the labels
of the first. So each read looks whether the store is still of the configuration that it was opened
with.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from zarr.storage import LocalStore

from confreg.errors import ConfregError
from confreg.sweep.store import CONFIGURATION

ROOT = "zarr.json"


class Watched(LocalStore):
    """A local Zarr store that refuses to be read once another one stands in its place."""

    def __init__(self, root: Path | str, *, read_only: bool = True) -> None:
        super().__init__(root, read_only=read_only)
        self._seen = self._stamp()
        self._made_by = self._configuration()

    async def get(self, key: str, *args: Any, **options: Any) -> Any:
        """Read a file of the store.

        Raises
        ------
        ConfregError
            The store was moved, deleted, or replaced by one of another configuration.
        """
        self.check()
        return await super().get(key, *args, **options)

    def check(self) -> None:
        """Refuse another store than the one that was opened; costs one look at a file's date."""
        stamp = self._stamp()
        if stamp == self._seen:
            return
        if stamp is None:
            raise ConfregError(
                f"The store {str(self.root)!r} was moved or deleted since it was opened: open it "
                "where it is now (confreg.open), or ds.load() a dataset before its store is moved."
            )
        if self._configuration() != self._made_by:
            raise ConfregError(
                f"The store {str(self.root)!r} was replaced by another run since it was opened: "
                "its numbers are not this dataset's any more. Open it again (confreg.open), or "
                "ds.load() a dataset before its store is replaced."
            )
        self._seen = stamp

    def _stamp(self) -> tuple[int, ...] | None:
        try:
            found = (self.root / ROOT).stat()
        except OSError:
            return None
        return (found.st_ino, found.st_mtime_ns, found.st_size)

    def _configuration(self) -> str | None:
        try:
            return json.loads((self.root / ROOT).read_text())["attributes"].get(CONFIGURATION)
        except (OSError, ValueError, KeyError):
            return None
