"""How an edit reaches the final residual: as it is, or by way of the MLP's output.

A model that normalises the MLP's output m before adding it has x' = x + α ŵ + κ m̂, with
ŵ = γ_p∘P_p w, m̂ the post-norm's output without its bias, α = δ/s_m' and κ = s_m/s_m' − 1.
"""

from .readout import neuron_directions, norm_parameters, take


class Straight:
    """What is added to the residual stream itself arrives there unchanged."""

    post_norm = None

    def directions(self, weights):
        """What each edit adds to the residual per unit of α: w."""
        return weights

    def change(self, weights, delta, positions):
        """α, κ and m̂ as of `Write.change`: δ, and nothing else."""
        return delta, None, None

    def change_together(self, weights, delta, positions):
        """As of `Write.change_together`: nothing is divided, nothing carried along."""
        return None, None, None


class Write:
    """From a neuron's activation to the final residual of the last layer.

    Parameters
    ----------
    down_projection : callable, (n, width) -> (n, d)
    width : int
        Neurons in the layer.
    multiplier : float
        What the model multiplies the MLP's output by, after any ``post_norm`` (Granite), else 1.
    post_norm : callable, optional
        Norm through which the MLP's output goes before it is added (Gemma 2 and 3, OLMo 2).
    post_centred, post_eps
        Of ``post_norm``.
    post_input : Tensor (R, L, d), optional
        What ``post_norm`` was given: the MLP's output.
    """

    def __init__(
        self,
        down_projection,
        width,
        multiplier=1.0,
        post_norm=None,
        post_centred=False,
        post_eps=0.0,
        post_input=None,
    ):
        self.down_projection = down_projection
        self.is_routed = getattr(down_projection, "is_routed", False)
        self.width = width
        self.multiplier = multiplier
        self.post_norm = post_norm
        self.post_centred = post_centred
        self.post_eps = post_eps
        self.post_input = post_input
        self.post_gain = None

    def weights(self, neurons, like):
        """Output weights w, (n, d) float32; ``like`` lends dtype and device."""
        multiplier = self.multiplier if self.post_norm is None else 1.0
        return neuron_directions(self.down_projection, neurons, self.width, like, multiplier)

    def gain(self, dtype):
        """γ_p times the multiplier, learnt once by calling the post-norm."""
        if self.post_gain is None:
            gain, _ = norm_parameters(
                self.post_norm, self.post_centred, self.post_eps, self.post_input
            )
            self.post_gain = gain * self.multiplier
        return self.post_gain.to(dtype)

    def directions(self, weights):
        """What each neuron adds to the residual per unit of α: w, or γ_p∘P_p w. (n, d)."""
        if self.post_norm is None:
            return weights
        return self.gain(weights.dtype) * self.centre(weights)

    def centre(self, x):
        """P_p x of the post-norm, shape kept."""
        return x - x.mean(-1, keepdim=True) if self.post_centred else x

    def power(self, centred):
        """s_m², the square of the post-norm's divisor, of P_p m: (..., d) -> (...)."""
        return centred.square().mean(-1) + self.post_eps

    def change(self, weights, delta, positions):
        """How far each neuron's ablation moves the residual of each token.

        Parameters
        ----------
        weights : Tensor (n, d)
        delta : Tensor (n, T)
            Ablation value minus activation.
        positions : Tensor (T,) int64
            The tokens, as indices into the flattened (rows · length).

        Returns
        -------
        alpha : Tensor (n, T)
        kappa : Tensor (n, T) or None
        carried : Tensor (T, d) or None
            x' = x + α·direction + κ·carried.
        """
        if self.post_norm is None:
            return delta, None, None
        output = take(self.post_input, positions).to(delta.dtype)
        pm, pw = self.centre(output), self.centre(weights)
        grown = 2 * delta * (pw @ pm.T) + delta.square() * pw.square().sum(-1, keepdim=True)
        power = self.power(pm)
        before = power.sqrt()
        after = (power + grown / output.shape[-1]).clamp_min(self.post_eps).sqrt()
        return delta / after, before / after - 1, self.carried(pm, before)

    def change_together(self, weights, delta, positions):
        """The same for k neurons of one edit, whose changes add up.

        Parameters
        ----------
        weights : Tensor (k, d)
        delta : Tensor (T, k)
        positions : Tensor (T,) int64

        Returns
        -------
        after : Tensor (T, 1) or None
            s_m', by which δ is divided: α = δ/s_m'.
        kappa : Tensor (T, 1) or None
        carried : Tensor (T, d) or None
        """
        if self.post_norm is None:
            return None, None, None
        pm = self.centre(take(self.post_input, positions).to(delta.dtype))
        moved = pm + self.centre(delta @ weights)
        before, after = self.power(pm).sqrt(), self.power(moved).sqrt()[:, None]
        return after, before[:, None] / after - 1, self.carried(pm, before)

    def carried(self, pm, before):
        """m̂ = γ_p∘P_p m/s_m, the post-norm's output without its bias: (T, d) from P_p m and s_m."""
        return self.gain(pm.dtype) * pm / before[:, None]


def layer_scale(stream, update, output):
    """c of a layer whose output is c (stream + update), by least squares in float64.

    Parameters
    ----------
    stream, update, output : Tensor (R, L, d)
    """
    total = stream.double() + update.double()
    return (total * output.double()).sum() / total.square().sum()
