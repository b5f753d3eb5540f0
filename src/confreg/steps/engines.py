"""Which engine measures effects of edits."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from confreg.effects import Effect, fitting
from confreg.errors import ConfregError


def choose(
    wanted: str, edits: Any, effects: Sequence[Effect], last: bool, after_mlp: str = ""
) -> str:
    """Which engine measures effects of edits, by asking both.

    Closed forms are algebra of the last layer: the edits must say what they write to the residual
    stream. The series is for edits that write into one direction, and for measures that follow from
    three expectations (docs/effects.md); it does other measures of the same run pair by pair.

    Parameters
    ----------
    wanted : {"auto", "series", "exact", "forward"}
    edits : object
        Some edits of the kind.
    effects : sequence of Effect
    last : bool
        Whether the edits are made in the last layer.
    after_mlp : str
        What follows that layer's MLP and rules the closed forms out, in a clause, or "".

    Raises
    ------
    ConfregError
        An engine was asked for that cannot do it.
    """
    through = after_mlp if getattr(edits, "into", "residual") == "mlp" else ""
    fits = type(fitting(edits, effects, last and not through)).__name__.lower()
    if wanted in ("auto", "forward"):
        return fits if wanted == "auto" else wanted
    if getattr(edits, "writes", None) is None:
        raise ConfregError(
            f"Engine {wanted!r} is algebra of the last layer, for edits that say what they write "
            f"to the residual stream; {type(edits).__name__} does not: use "
            "--engine forward (or auto)."
        )
    if not last:
        raise ConfregError(
            f"Engine {wanted!r} is algebra of the last layer; for earlier layers use "
            "--engine forward (or auto)."
        )
    if through:
        raise ConfregError(
            f"Engine {wanted!r} is algebra of what follows the last layer's MLP, and in this model "
            f"{through}: use --engine forward (or auto)."
        )
    if fits == "forward":
        only = next(e.name for e in effects if "norm_scale" in e.measure.given)
        raise ConfregError(
            f"Engine {wanted!r} reads effects off logits; {only} is measured by --engine forward "
            "(or auto)."
        )
    if wanted == "series" and not any(effect.measure.tilted for effect in effects):
        raise ConfregError(
            "Engine 'series' is for loss, entropy and other measures that follow from the same "
            "expectations; for these effects alone use --engine exact."
        )
    # The series is for edits that write into one direction.
    return wanted if fits == "series" else "exact"
