"""What a layer multiplies its output by, where that is a number of the layer's own (Gemma 4).

The number is a buffer, which a server's process without weights does not hold: it is learnt from
activations.
"""

from __future__ import annotations

from typing import Any

import nnsight
import torch

from confreg.effects.write import layer_scale


def learn(model: Any, before: Any, layer: int) -> float:
    """The last layer's factor c, from one pass over two tokens.

    Parameters
    ----------
    model : Model
    before : envoy
        The norm before the MLP, whose input is the residual stream r that the MLP's output y is
        added to: the final norm is given c (r + y).
    layer : int
    """
    added = model.post_norm(layer)
    added = model.down_proj(layer) if added is None else added
    final_norm = model.final_norm
    with torch.no_grad(), model.trace(torch.zeros(1, 2, dtype=torch.int64)):
        stream = before.input
        update = added.output
        found = nnsight.save(layer_scale(stream, update, final_norm.input))
    return float(found)
