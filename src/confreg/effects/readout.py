"""How a residual becomes logits: final norm, unembedding, bias, scale, softcap.

Weights are learnt by *calling* the modules. That is the one way which works in memory,
offloaded, quantised and in a server's process that holds no weights.
"""

import torch


class MetaWeightError(RuntimeError):
    """A tensor without storage reached arithmetic, which would return garbage silently."""


def real(tensor):
    """Return ``tensor``, or raise `MetaWeightError` when it lives on the ``meta`` device."""
    if tensor.device.type == "meta":
        raise MetaWeightError(
            "A weight on the 'meta' device (offloaded, or not in this process) was about to be "
            "used in arithmetic. Reach weights by calling modules."
        )
    return tensor


class Readout:
    """The final norm and the unembedding of one model.

    ``logits = softcap(scale · (W_U (γ ∘ P x / s(x) + β) + b))`` with ``s(x)² = mean((P x)²) + ε``
    and P centring for LayerNorm, the identity for RMSNorm. *Raw* logits are those before
    ``scale`` and ``softcap``. Of a model without a final norm s is 1, whatever x.

    Attributes
    ----------
    unembed : callable, (..., d) -> (..., V) float32
        The linear part W_U y, without bias.
    gain : Tensor (d,) float32
        γ (for Gemma: 1 + γ).
    offset : Tensor (V,) float32
        c₀ = W_U β + b.
    shifted : bool
        Whether ``offset`` is anything but zero.
    centred : bool
    eps, scale : float
    softcap : float or None
    normed : bool
        Whether there is a final norm.
    """

    def __init__(self, unembed, gain, offset, centred, eps, scale=1.0, softcap=None, normed=True):
        self.unembed = unembed
        self.gain = real(gain)
        self.offset = real(offset)
        self.shifted = bool((self.offset != 0).any())
        self.centred = centred
        self.eps = eps
        self.scale = scale
        self.softcap = softcap
        self.normed = normed

    def centre(self, x):
        """P x, shape kept."""
        return x - x.mean(-1, keepdim=True) if self.centred else x

    def norm_scale(self, x):
        """s(x), the divisor of the norm: (..., d) -> (...)."""
        if not self.normed:
            return torch.ones_like(x[..., 0])
        return (self.centre(x).square().mean(-1) + self.eps).sqrt()

    def raw(self, x):
        """Raw logits of a residual, (..., d) -> (..., V)."""
        x = x.float()
        y = self.gain * self.centre(x) / self.norm_scale(x)[..., None]
        return self.unembed(y) + self.offset

    def directions(self, w):
        """u = W_U (γ ∘ P w): (..., d) -> (..., V), what a residual direction adds to raw logits
        per unit of 1/s."""
        return self.unembed(self.gain * self.centre(w))

    def finish(self, raw):
        """Raw logits to the model's logits: scale, then softcap."""
        logits = raw if self.scale == 1.0 else raw * self.scale
        return logits if self.softcap is None else torch.tanh(logits / self.softcap) * self.softcap


def norm_parameters(norm, centred, eps, like):
    """Gain γ and bias β, (d,) float32 each, from a norm's own outputs.

    ``like`` is any activation with the model's width, dtype and device, (..., d).
    """
    sign = torch.ones_like(like.reshape(-1, like.shape[-1])[:1])
    sign[:, 1::2] = -1
    up, down = norm(sign).float(), norm(-sign).float()
    probe = sign.float() - sign.float().mean(-1, keepdim=True) if centred else sign.float()
    probe = probe / (probe.square().mean(-1, keepdim=True) + eps).sqrt()
    return real((up - down) / (2 * probe))[0], real((up + down) / 2)[0]


def read_readout(norm, unembedding, like, centred, eps, scale=1.0, softcap=None, normed=True):
    """Learn a model's `Readout` by calling its final ``norm`` and its ``unembedding``.

    ``like`` is any activation of the residual stream: it lends width, dtype and device.
    """
    # The probe of an identity comes back as it is: γ = 1 and β = 0 with ε = 0.
    gain, shift = norm_parameters(norm, centred, eps, like)
    bias = unembedding(torch.zeros_like(gain[None], dtype=like.dtype))
    dtype, bias = bias.dtype, bias.float()  # what it computes in, under autocast, too
    biased = bool((real(bias) != 0).any())

    def unembed(y):
        out = real(unembedding(y.to(dtype))).float()
        return out - bias if biased else out

    offset = unembedding(shift[None].to(dtype)).float()[0]
    return Readout(unembed, gain, offset, centred, eps, scale, softcap, normed)


def take(tensor, positions):
    """Rows of a (rows, length, width) tensor at flat positions, (T, width)."""
    return tensor.reshape(-1, tensor.shape[-1]).index_select(0, positions.to(tensor.device))


def neuron_directions(down_projection, neurons, width, like, multiplier=1.0):
    """Output weights of some neurons, (n, d) float32, by calling the down-projection.

    Parameters
    ----------
    down_projection : callable, (n, width) -> (n, d)
    neurons : Tensor (n,) int64
    width : int
        How many neurons the layer has.
    like : Tensor
        Lends dtype and device.
    multiplier : float
        What the model multiplies the MLP's output by (Granite), else 1.
    """
    if hasattr(down_projection, "columns"):  # of experts, whose weights no call shows
        return down_projection.columns(neurons, like).float().to(like.device) * multiplier
    rows = torch.zeros(len(neurons) + 1, width, dtype=like.dtype, device=like.device)
    rows[torch.arange(len(neurons)), neurons] = 1  # the last row stays zero: the bias
    out = real(down_projection(rows)).float()
    return (out[:-1] - out[-1:]) * multiplier
