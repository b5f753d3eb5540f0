"""What is read off a token's logits, and the names of effects."""

import torch

from . import temperature

VARIANTS = ("frequency_direct", "direct", "total")
TILTED = ("loss", "entropy", "kl_frequency")
"""Measures that follow from E_p[e^f], E_p[y e^f] and E_p[f e^f]: see `confreg.effects.series`."""
MEASURES = (
    "loss", "entropy", "rank", "reciprocal_rank", "top1", "norm_scale", "kl_frequency",
    *temperature.MEASURES,
)  # fmt: skip


def split(effect):
    """Split an effect's name: ``"loss_total"`` -> ``("loss", "total")``.

    ``"temperature_share"`` is of the total effect. ``norm_scale``, the final norm's scale, is no
    measure of logits: `outcome` leaves it out, and only the engine ``forward`` has it.

    Raises
    ------
    ValueError
        If it is not a measure and a variant that exist.
    """
    if effect == "temperature_share":
        return effect, "total"
    for variant in VARIANTS:
        measure = effect.removesuffix("_" + variant)
        frozen = measure == "norm_scale" and variant != "total"
        if measure != effect and measure in MEASURES and not frozen:
            return measure, variant
    raise ValueError(
        "unknown effect '" + effect + "': it is one of " + ", ".join(MEASURES) + ", then one of "
        "_total, _direct, _frequency_direct"
    )


def variants_of(effects):
    """The variants that some effects need, each once, in the order of first use."""
    return tuple(dict.fromkeys(split(effect)[1] for effect in effects))


def measures_of(effects, variant=None):
    """The measures that some effects need (of one variant), each once."""
    pairs = [split(effect) for effect in effects]
    return tuple(dict.fromkeys(m for m, v in pairs if variant is None or v == variant))


def paired(wanted):
    """Those measures that compare ablated with original logits, and the others: two tuples."""
    both = tuple(m for m in wanted if m in temperature.MEASURES)
    return both, tuple(m for m in wanted if m not in both)


def outcome(logits, targets, wanted, log_frequency=None):
    """Measures of final logits, each in one pass over a block that should fit the cache.

    Parameters
    ----------
    logits : Tensor (m, V)
        float32 or float64.
    targets : Tensor (m,) int64
        -1 where there is no next token.
    wanted : tuple of str
        Of ``loss`` and ``entropy`` (nats), ``rank`` of the target (0: most likely; -1 without a
        target), ``reciprocal_rank`` (1/(rank + 1), NaN without a target), ``top1`` (token id)
        and ``kl_frequency``, D(p_freq ‖ p_model).
    log_frequency : Tensor (V,), optional

    Returns
    -------
    dict of str to Tensor (m,)
    """
    known = targets >= 0
    shifted = logits - logits.amax(-1, keepdim=True)
    at_target = shifted.gather(-1, targets.clamp_min(0)[:, None])
    weights = shifted.exp()
    total = weights.sum(-1)
    log_total = total.log()
    out = {}
    if "loss" in wanted:
        out["loss"] = torch.where(known, log_total - at_target[:, 0], torch.nan)
    if "entropy" in wanted:
        out["entropy"] = log_total - (weights.mul_(shifted)).sum(-1) / total
    if "rank" in wanted or "reciprocal_rank" in wanted:
        rank = (shifted > at_target).sum(-1)
        reciprocal = 1 / (1 + rank).to(logits.dtype)
        found = {
            "rank": torch.where(known, rank, -1),
            "reciprocal_rank": torch.where(known, reciprocal, torch.nan),
        }
        out.update({name: values for name, values in found.items() if name in wanted})
    if "top1" in wanted:
        out["top1"] = shifted.argmax(-1)
    if "kl_frequency" in wanted and log_frequency is not None:
        # Rows of the unembedding that no token owns take no part.
        real = log_frequency > -torch.inf
        p = torch.where(real, log_frequency, -torch.inf).to(logits.dtype).exp()
        negentropy = (p * torch.where(real, log_frequency, 0.0)).sum()
        out["kl_frequency"] = negentropy + log_total - shifted @ p
    return out


def change(measure, after, before):
    """The effect: after minus before; for ``top1`` 1.0 where the most likely token changed."""
    if measure == "top1":
        return (after != before).float()
    return after - before
