"""How a neuron reaches the residual stream."""

from .geometry import post_norm_change
from .readout import neuron_directions, norm_parameters


class Write:
    """From a neuron's activation to the final residual of the last layer.

    Parameters
    ----------
    down_projection : callable, (n, width) -> (n, d)
    width : int
        Neurons in the layer.
    multiplier : float
        What the model multiplies the MLP's output by (Granite), else 1.
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
        self.width = width
        self.multiplier = multiplier
        self.post_norm = post_norm
        self.post_centred = post_centred
        self.post_eps = post_eps
        self.post_input = post_input
        self.post_gain = None

    def weights(self, neurons, like):
        """Output weights w, (n, d) float32; ``like`` lends dtype and device."""
        return neuron_directions(self.down_projection, neurons, self.width, like, self.multiplier)

    def gain(self, dtype):
        """γ_p, learnt once by calling the post-norm."""
        if self.post_gain is None:
            self.post_gain, _ = norm_parameters(
                self.post_norm, self.post_centred, self.post_eps, self.post_input
            )
        return self.post_gain.to(dtype)

    def directions(self, weights):
        """What each neuron adds to the residual per unit of α: w, or γ_p∘P_p w. (n, d)."""
        if self.post_norm is None:
            return weights
        return self.gain(weights.dtype) * self.centre(weights)

    def centre(self, x):
        """P_p x of the post-norm, shape kept."""
        return x - x.mean(-1, keepdim=True) if self.post_centred else x

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
        gain = self.gain(delta.dtype)
        alpha, kappa, _, carried = post_norm_change(
            gain, self.post_centred, self.post_eps, weights, output, delta
        )
        return alpha, kappa, carried


def take(tensor, positions):
    """Rows of a (rows, length, width) tensor at flat positions, (T, width)."""
    return tensor.reshape(-1, tensor.shape[-1]).index_select(0, positions.to(tensor.device))
