"""What is read off a token's logits, and the names of effects."""

import torch

VARIANTS = ("frequency_direct", "direct", "total")
MEASURES = ("loss", "entropy", "rank", "top1", "kl_frequency")


def split(effect):
    """Split an effect's name: ``"loss_total"`` -> ``("loss", "total")``.

    Raises
    ------
    ValueError
        If it is not a measure and a variant that exist.
    """
    for variant in VARIANTS:
        measure = effect.removesuffix("_" + variant)
        if measure != effect and measure in MEASURES:
            return measure, variant
    raise ValueError(
        "unknown effect '" + effect + "': it is one of " + ", ".join(MEASURES) + ", then one of "
        "_total, _direct, _frequency_direct"
    )


def variants_of(effects):
    """The variants that some effects need, each once, in the order of first use."""
    return tuple(dict.fromkeys(split(effect)[1] for effect in effects))


def outcome(logits, targets, log_frequency=None):
    """Measures of final logits.

    Parameters
    ----------
    logits : Tensor (m, V)
        float32 or float64.
    targets : Tensor (m,) int64
        -1 where there is no next token.
    log_frequency : Tensor (V,), optional

    Returns
    -------
    dict of str to Tensor (m,)
        ``loss`` and ``entropy`` (nats); ``rank`` of the target (0: most likely; -1 without a
        target) and ``top1``, int64; with ``log_frequency`` also ``kl_frequency``,
        D(p_freq ‖ p_model).
    """
    log_p = torch.log_softmax(logits, -1)
    known = targets >= 0
    at_target = log_p.gather(-1, targets.clamp_min(0)[:, None])
    out = {
        "loss": torch.where(known, -at_target[:, 0], torch.nan),
        "entropy": -(log_p.exp() * log_p).sum(-1),
        "rank": torch.where(known, (log_p > at_target).sum(-1), -1),
        "top1": logits.argmax(-1),
    }
    if log_frequency is not None:
        out["kl_frequency"] = kl_frequency(log_p, log_frequency)
    return out


def kl_frequency(log_p, log_frequency):
    """D(p_freq ‖ p_model), (m,): rows of the unembedding that no token owns take no part."""
    real = log_frequency > -torch.inf
    target = log_frequency[real].to(log_p.dtype)
    return (target.exp() * (target - log_p[:, real])).sum(-1)


def change(measure, after, before):
    """The effect: after minus before; for ``top1`` 1.0 where the most likely token changed."""
    if measure == "top1":
        return (after != before).float()
    return after - before
