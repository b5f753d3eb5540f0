"""Telling people what an installation is doing."""

from __future__ import annotations

import re
import time

from rich.console import Console

SILENCE = 15.0
"""Seconds between lines where there is no terminal whose one line can change."""

# pip: "  Downloading torch-2.14.1-cp312-….whl (554.6 MB)"; uv: "Downloading torch (791.8MiB)".
_FETCHING = re.compile(
    r"^\s*Downloading (?P<name>[\w.]+?(?:-[A-Za-z]\w*)*)(?:-\d\S*)? \((?P<size>.+)\)"
)
# uv begins all downloads at once; when one has ended it says " Downloaded torch".
_FETCHED = re.compile(r"^\s*Downloaded (?P<name>\S+)")
_INSTALLING = re.compile(r"^(Installing collected packages: |Prepared (?P<count>\d+) packages)")


class Teller:
    """Says on stderr which package is being fetched.

    On a terminal one line that changes; elsewhere a line now and then.
    """

    def __init__(self) -> None:
        self._console = Console(stderr=True, highlight=False, soft_wrap=True)
        self._status = self._console.status("preparing")
        self._began = self._said = time.monotonic()
        self._count = 0

    def __enter__(self) -> Teller:
        """Show the line."""
        self._status.start()
        return self

    def __exit__(self, *_: object) -> None:
        """Take the line away."""
        self._status.stop()

    def say(self, sentence: str) -> None:
        """Print a line that stays."""
        self._console.print(f"confreg: {sentence}", markup=False)

    def hear(self, line: str) -> None:
        """Take in a line of pip's or uv's."""
        if found := _FETCHING.match(line):
            self._count += 1
            self._tell(f"package {self._count}: {found['name']}, {found['size']}")
        elif found := _FETCHED.match(line):
            self._tell(f"fetched {found['name']}")
        elif found := _INSTALLING.match(line):
            count = found["count"] or line.count(",") + 1
            self._tell(f"installing {count} packages", always=True)

    def _tell(self, doing: str, always: bool = False) -> None:
        now = time.monotonic()
        self._status.update(doing)
        if not self._console.is_terminal and (always or now - self._said > SILENCE):
            self._said = now
            self.say(f"{doing} (after {now - self._began:.0f} s)")
