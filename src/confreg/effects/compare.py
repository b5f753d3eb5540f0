"""From logits to effects: the one way there, for every engine and for models of any kind."""

import torch

from .prediction import Comparison, Prediction


def compare(before, after, targets, effects, given=None):
    """What an edit did to predictions, from the logits without it and with it.

    Parameters
    ----------
    before, after : Tensor (m, V)
        Original and edited logits. Of a classifier V are its classes.
    targets : Tensor (m,) int64
        The right one, -1 where there is none.
    effects : sequence of Effect
        ``loss.total`` and the like; the pathway is what ``after`` is.
    given : dict of str to Tensor, optional
        Further arguments of the measures, see `Measure`.

    Returns
    -------
    Tensor (m, E)
        Float32, or float64 if the logits are.

    Raises
    ------
    ValueError
        A measure returned anything but one number a prediction.

    Examples
    --------
    >>> compare(model(x), edited(x), labels, [loss.total, top1.total])
    """
    with torch.no_grad():
        dtype = torch.promote_types(torch.float32, after.dtype)
        original = Prediction(before.to(dtype), targets, given)
        edited = Prediction(after.to(dtype), targets, given)
        known = measured(original, [effect.measure for effect in effects])
        found = changes(original, edited, effects, known)
        return torch.stack([column.to(dtype) for column in found], -1)


def measured(prediction, measures):
    """What single measures read off a `Prediction`: dict of name to (m,).

    Measures that compare are left out.
    """
    single = {one.name: one for one in measures if not one.comparing}
    return {name: one.read(prediction) for name, one in single.items()}


def changes(before, after, effects, known, pair=None):
    """Effects of one pathway: list of (m,), one an effect.

    Parameters
    ----------
    before, after : Prediction
        Without the edit and with it.
    effects : sequence of Effect
    known : dict of str to Tensor (m,) or (1,)
        `measured` without the edit.
    pair : callable, optional
        Makes the float64 logits (before, after) that comparing measures take; by default those of
        the predictions, cast.
    """
    measures = [effect.measure for effect in effects]
    found, comparison = measured(after, measures), None
    for one in measures:
        if not one.comparing:
            continue
        if comparison is None:
            both = pair() if pair else (before.logits.double(), after.logits.double())
            comparison = Comparison(*both)
        found[one.name] = one.compared(comparison)
    return [
        found[one.name] if one.comparing else one.change(found[one.name], known[one.name])
        for one in measures
    ]


def by_pathway(effects):
    """Columns of the effects of each pathway: dict of pathway to list of int, in order of use."""
    columns = {}
    for column, effect in enumerate(effects):
        columns.setdefault(effect.pathway, []).append(column)
    return columns
