"""How purely an ablation acts as a temperature: what the best single temperature leaves of it."""

import torch

FLOOR = 1e-9  # nats of KL below which an ablation changes nothing that can be shared out
STEPS = 60
NEAR = 1e-6  # of β, where the divergence is flat


def tempering(before, after):
    """Compare ablated logits with all temperatures of the original ones.

    Parameters
    ----------
    before : Tensor (1, V) or (m, V) float64
        Original logits ℓ, of one token or of each.
    after : Tensor (m, V) float64
        Ablated logits ℓ'.

    Returns
    -------
    dict of str to Tensor (m,) float64
        ``divergence``, KL(p ‖ p'); ``divergence_tempered``, min_β KL(p_β ‖ p') over β > 0 with
        p_β = softmax(β ℓ), found by descent from β = 1; ``temperature_share``, the share of the
        former that the best temperature removes, NaN where the former is below `FLOOR`.
    """
    y = torch.log_softmax(before, -1).expand_as(after)
    after = torch.log_softmax(after, -1)
    beta = torch.ones_like(after[:, 0])
    step = torch.ones_like(beta)
    kl, aim = divergence(y, after, beta)
    least = kl
    for _ in range(STEPS):
        trial = (beta + step * (aim - beta)).clamp_min(1e-3)
        found, ahead = divergence(y, after, trial)
        better = found < least
        # Beyond the minimum, or worse: half as far from there on.
        passed = ~better | ((aim - beta) * (ahead - trial) < 0)
        beta, aim = torch.where(better, trial, beta), torch.where(better, ahead, aim)
        least = torch.where(better, found, least)
        step = torch.where(passed, step / 2, step)
        if (step * (aim - beta).abs() < NEAR).all():
            break
    kl, least = kl.clamp_min(0), least.clamp_min(0)
    share = torch.where(kl > FLOOR, 1 - least / kl, torch.nan)
    return {"divergence": kl, "divergence_tempered": least, "temperature_share": share}


def divergence(y, after, beta):
    """KL(p_β ‖ p') and Cov_β(y, ℓ')/Var_β(y), towards which β falls: two (m,).

    The derivative of the divergence is β Var_β(y) − Cov_β(y, ℓ'). ``y`` and ``after`` are
    log-probabilities, (m, V).
    """
    log_p = torch.log_softmax(beta[:, None] * y, -1)
    p = log_p.exp()
    mean = (p * y).sum(-1, keepdim=True)
    deviation = p * (y - mean)
    variance = (deviation * (y - mean)).sum(-1)
    aim = (deviation * after).sum(-1) / variance.clamp_min(1e-300)
    return (p * (log_p - after)).sum(-1), torch.where(variance > 0, aim, beta)
