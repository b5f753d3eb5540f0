"""What a unit of work may take, what it gives, and what it has cost."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

Block = dict[str, Any]


@dataclass(frozen=True)
class Budget:
    """What one unit of work may take.

    Attributes
    ----------
    memory : int
        Bytes beside the model.
    tokens : int
        Tokens of a unit where a pass is cheap: some ten seconds of work, which is what a bar
        advances by and what a killed run loses.
    copies : int
        Copies of the text in one pass, at most.
    upload : int or None
        Bytes that a request may carry beside its tokens; None where there are no requests.
    dear : bool
        Whether a pass is dear (weights come from the disk, or it is a request), so that as much
        text as fits shares it.
    """

    memory: int
    tokens: int = 512
    copies: int = 16
    upload: int | None = None
    dear: bool = False


@dataclass(frozen=True)
class Cost:
    """What a job whose result was collected has cost.

    Attributes
    ----------
    id, key : str
        The server's, and the unit's.
    bytes_up, bytes_down : int
        Size of the request and of the result, as sent.
    seconds : float
        Execution time that the server reported; NaN where it did not.
    waited : float
        Seconds from submission to result.
    """

    id: str
    key: str
    bytes_up: int
    bytes_down: int
    seconds: float
    waited: float
