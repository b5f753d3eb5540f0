"""The command line: ``confreg``."""

from confreg.cli.main import main

__all__ = ["main"]
