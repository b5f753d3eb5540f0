"""What an edit does to the final norm's scale, exactly.

For token t let x be the final residual, a the neuron's activation, v its ablation value,
δ = v − a and w its output weight. Ablation replaces x by x' = x + α w + κ m̂, where α = δ
and κ = 0, except in models that normalise the MLP's output m before adding it: there
α = δ/s_m', κ = s_m/s_m' − 1 and m̂ = N_p(m) (without its bias). The raw logits are then

    ℓ' = c₀ + temper (ℓ − c₀) + gain u + carry μ,      u = W_U(γ∘P w),  μ = W_U(γ∘P m̂)

with ``temper`` = s/s', ``gain`` = α/s', ``carry`` = κ/s' for the total effect and
1, α/s, κ/s for the direct effect (the final norm's scale frozen). A model without a final norm has
s = s' = 1: both effects are the same.
"""

import torch


class Coefficients:
    """How one pathway of an ablation moves raw logits: three numbers an edit and token.

    Attributes
    ----------
    temper, gain : Tensor (n, T)
    carry : Tensor (n, T), or None where the model has no post-norm
    back : Tensor (n, T), or None
        What is added along the token-frequency direction, where that component is put back: to
        the logits themselves, not to the raw ones.
    """

    def __init__(self, temper, gain, carry=None, back=None):
        self.temper = temper
        self.gain = gain
        self.carry = carry
        self.back = back

    def by_variable(self):
        """Coefficients of what the edit adds besides u, as far as there are: dict by the names of
        `confreg.effects.engines.algebra.Unablated.variables`."""
        found = {"logits": self.temper - 1, "post_norm": self.carry, "frequency": self.back}
        return {name: c for name, c in found.items() if c is not None}

    def to(self, dtype):
        """The same in another dtype."""
        return self.each(lambda table: table.to(dtype))

    def at(self, *index):
        """The same for some of the pairs: every table indexed by ``index``."""
        return self.each(lambda table: table[index])

    def each(self, change):
        """The same with every table changed."""
        tables = (self.temper, self.gain, self.carry, self.back)
        return Coefficients(*(None if table is None else change(table) for table in tables))


def final_norm_change(readout, residual, directions, alpha, kappa=None, carried=None):
    """Coefficients of the total and of the direct effect.

    Parameters
    ----------
    readout : Readout
    residual : Tensor (T, d)
        Final residual, unablated.
    directions : Tensor (n, d)
        What each edit writes: w, or γ_p∘P_p w under a post-norm.
    alpha : Tensor (n, T)
    kappa, carried : Tensor (n, T) and (T, d), or None
        κ and m̂ of a post-norm.

    Returns
    -------
    dict of str to Coefficients
        Keys ``"total"`` and ``"direct"``.
    """
    if not readout.normed:
        one = torch.ones_like(alpha)
        same = Coefficients(one, alpha, kappa)
        return {"total": same, "direct": same}
    d = residual.shape[-1]
    px, pw = readout.centre(residual), readout.centre(directions)
    s2 = px.square().mean(-1) + readout.eps
    grown = 2 * alpha * (pw @ px.T) + alpha.square() * pw.square().sum(-1, keepdim=True)
    if kappa is not None:
        pm = readout.centre(carried)
        grown = grown + 2 * kappa * (px * pm).sum(-1) + kappa.square() * pm.square().sum(-1)
        grown = grown + 2 * alpha * kappa * (pw @ pm.T)
    # The ablated scale is at least √ε; rounding must not take it below.
    after = (s2 + grown / d).clamp_min(readout.eps).sqrt()
    before = s2.sqrt()
    carry = (None, None) if kappa is None else (kappa / after, kappa / before)
    return {
        "total": Coefficients(before / after, alpha / after, carry[0]),
        "direct": Coefficients(torch.ones_like(after), alpha / before, carry[1]),
    }
