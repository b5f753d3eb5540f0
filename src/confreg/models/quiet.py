"""Keep transformers' and accelerate's bars and notices off the terminal while confreg loads."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def quiet() -> Iterator[None]:
    """Silence both libraries below errors, and progress bars; restore all of it afterwards."""
    from transformers.utils import logging as theirs

    accelerate = logging.getLogger("accelerate")
    level, bars, other = theirs.get_verbosity(), theirs.is_progress_bar_enabled(), accelerate.level
    theirs.set_verbosity_error()
    theirs.disable_progress_bar()
    accelerate.setLevel(logging.ERROR)
    try:
        yield
    finally:
        theirs.set_verbosity(level)
        accelerate.setLevel(other)
        if bars:
            theirs.enable_progress_bar()
