"""What units of other steps carry: they read activations, weights or attention in a trace."""

from .frequency import frequency_cosines
from .heads import prefix_matching
from .inputs import input_statistics
from .values import pick
from .vocabulary import (
    direction_statistics,
    null_statistics,
    output_weights,
    space_statistics,
    vocabulary_statistics,
)
from .weights import output_norms, weight_statistics


class Activations:
    """Reads activations of some neurons at some tokens.

    Parameters
    ----------
    tokens : Tokens
    layer : int
    index : Tensor (n,) int64
        Neurons of the layer.
    masks : dict of str to Tensor (T,) bool
        Tokens that sums are over, by name.
    """

    def __init__(self, tokens, layer, index, masks):
        self.inputs = tokens.inputs
        self.positions = tokens.positions
        self.layer = layer
        self.index = index
        self.masks = masks

    def values(self, activation):
        """Activations at every token, (n, T) float32, on the CPU."""
        return pick(activation, self.positions, self.index).T.float().cpu()

    def sums(self, activation):
        """Over each mask, the sums of the activations and of their squares, (n,) float64 each, and
        at how many tokens there is one: it is NaN where an expert's neuron is not there."""
        found = {}
        for name, mask in self.masks.items():
            wide = pick(activation, self.positions[mask], self.index).double()
            found[name + "_count"] = (~wide.isnan()).sum(0).cpu()
            found[name + "_sum"] = wide.nansum(0).cpu()
            found[name + "_sum_of_squares"] = wide.square().nansum(0).cpu()
        return found


class Weights:
    """Finds weight-space statistics of some neurons of one layer.

    Parameters
    ----------
    inputs : Tensor (1, L) int64
        What the trace runs, up to the first layer.
    layer : int
    index : Tensor (n,) int64
    owned : Tensor (V,) bool
        Rows of the unembedding that tokens own.
    null_dims, memory, centre_vocabulary
        As of `confreg.effects.weights.weight_statistics`.
    """

    def __init__(self, inputs, layer, index, owned, null_dims, memory, centre_vocabulary):
        self.inputs = inputs
        self.layer = layer
        self.index = index
        self.owned = owned
        self.null_dims = null_dims
        self.memory = memory
        self.centre_vocabulary = centre_vocabulary

    def statistics(self, site, like):
        """What `weight_statistics` returns; ``like`` is any activation of the residual stream."""
        return weight_statistics(
            site, self.index, like, self.null_dims, self.owned, self.memory, self.centre_vocabulary
        )


class Norms:
    """Finds the norms of the output weights of some neurons of one layer.

    Parameters
    ----------
    inputs, layer, index, memory
        As of `Weights`.
    """

    def __init__(self, inputs, layer, index, memory):
        self.inputs = inputs
        self.layer = layer
        self.index = index
        self.memory = memory

    def statistics(self, site, like):
        """What `output_norms` returns; ``like`` is any activation of the residual stream."""
        return output_norms(site, self.index, like, self.memory)


class FrequencyWeights:
    """Finds the token-frequency cosines of every neuron of some layers.

    Parameters
    ----------
    inputs : Tensor (1, L) int64
    layers : list of int
    counts : Tensor (bytes, V) uint8
        As of `confreg.effects.frequency.log_frequencies`.
    memory, centre_vocabulary
        As of `confreg.effects.frequency.frequency_cosines`.
    """

    def __init__(self, inputs, layers, counts, memory, centre_vocabulary):
        self.inputs = inputs
        self.layers = layers
        self.counts = counts
        self.memory = memory
        self.centre_vocabulary = centre_vocabulary

    def statistics(self, sites, like):
        """Cosines (L, n) float32, of a `Site` a layer."""
        return frequency_cosines(sites, like, self.counts, self.memory, self.centre_vocabulary)


class Vocabulary:
    """Finds how some neurons write to the vocabulary.

    Parameters
    ----------
    inputs : Tensor (1, L) int64
    layers : list of int
    chosen : list of Tensor (n,) int64
        Of each layer, its neurons.
    owned, memory, centre_vocabulary, top
        As of `confreg.effects.vocabulary.vocabulary_statistics`.
    """

    def __init__(self, inputs, layers, chosen, owned, memory, centre_vocabulary, top):
        self.inputs = inputs
        self.layers = layers
        self.chosen = chosen
        self.owned = owned
        self.memory = memory
        self.centre_vocabulary = centre_vocabulary
        self.top = top

    def statistics(self, sites, like):
        """What `vocabulary_statistics` returns, of a `Site` a layer."""
        return vocabulary_statistics(
            sites, self.chosen, like, self.owned, self.memory, self.centre_vocabulary, self.top
        )


class Reading:
    """Finds how some neurons read the residual stream.

    Parameters
    ----------
    given : Tensor (1, L) int64
        What the trace runs, up to the first layer.
    layers : list of int
    chosen : list of Tensor (n,) int64
        Of each layer, its neurons.
    memory : int
        As of `confreg.effects.inputs.input_statistics`.
    """

    def __init__(self, given, layers, chosen, memory):
        self.inputs = given
        self.layers = layers
        self.chosen = chosen
        self.memory = memory

    def statistics(self, inputs, sites, like):
        """What `input_statistics` returns, of an `Inputs` and a `Site` a layer."""
        return input_statistics(inputs, sites, self.chosen, like, self.memory)


class NullSpace:
    """Finds norms and ρ of neurons of several layers.

    Parameters
    ----------
    inputs : Tensor (1, L) int64
    layers : list of int
    chosen : list of Tensor (n,) int64
        Of each layer, its neurons.
    owned, null_dims, memory, centre_vocabulary
        As of `confreg.effects.weights.weight_statistics`.
    """

    def __init__(self, inputs, layers, chosen, owned, null_dims, memory, centre_vocabulary):
        self.inputs = inputs
        self.layers = layers
        self.chosen = chosen
        self.owned = owned
        self.null_dims = null_dims
        self.memory = memory
        self.centre_vocabulary = centre_vocabulary

    def statistics(self, sites, like):
        """What `null_statistics` returns, of a `Site` a layer."""
        return null_statistics(
            sites, self.chosen, like, self.null_dims, self.owned, self.memory,
            self.centre_vocabulary,
        )  # fmt: skip


class Written:
    """Reads what some neurons add to the residual stream.

    Parameters
    ----------
    inputs : Tensor (1, L) int64
    layers : list of int
    chosen : list of Tensor (n,) int64
        Of each layer, its neurons.
    memory : int
        As of `confreg.effects.vocabulary.output_weights`.
    """

    def __init__(self, inputs, layers, chosen, memory):
        self.inputs = inputs
        self.layers = layers
        self.chosen = chosen
        self.memory = memory

    def statistics(self, sites, like):
        """What `output_weights` returns, of a `Site` a layer."""
        return output_weights(sites, self.chosen, like, self.memory)


class Space:
    """Finds the spectrum of the folded unembedding.

    Parameters
    ----------
    inputs : Tensor (1, L) int64
    owned, null_dims, memory, centre_vocabulary
        As of `confreg.effects.weights.weight_statistics`.
    """

    layer = 0

    def __init__(self, inputs, owned, null_dims, memory, centre_vocabulary):
        self.inputs = inputs
        self.owned = owned
        self.null_dims = null_dims
        self.memory = memory
        self.centre_vocabulary = centre_vocabulary

    def statistics(self, site, like):
        """What `space_statistics` returns."""
        return space_statistics(
            site, like, self.null_dims, self.owned, self.memory, self.centre_vocabulary
        )


class Directions:
    """Finds how directions of the final residual write to the vocabulary.

    Parameters
    ----------
    inputs : Tensor (1, L) int64
    rows : Tensor (n, d) float32
    bottom : Tensor (k, d) float32
        The unembedding's bottom right singular vectors, a row each.
    owned, memory, centre_vocabulary, top
        As of `confreg.effects.vocabulary.vocabulary_statistics`.
    """

    layer = 0

    def __init__(self, inputs, rows, bottom, owned, memory, centre_vocabulary, top):
        self.inputs = inputs
        self.rows = rows
        self.bottom = bottom
        self.owned = owned
        self.memory = memory
        self.centre_vocabulary = centre_vocabulary
        self.top = top

    def statistics(self, site, like):
        """What `direction_statistics` returns, ``w_out_norm`` and ``null_fraction`` (n,)."""
        readout = site.readout_of(like)
        w = readout.centre(self.rows.to(like.device).double())
        found = direction_statistics(
            readout, [w], like, self.owned, self.memory, self.centre_vocabulary, self.top
        )
        norm = w.norm(dim=-1)
        share = (w @ self.bottom.to(w).T).norm(dim=-1) / norm
        return found | {"w_out_norm": norm.float().cpu(), "null_fraction": share.float().cpu()}


class Prefixes:
    """Scores heads on sequences of tokens that come twice.

    Parameters
    ----------
    inputs : Tensor (B, L) int64
    first : int
        Where the repeat begins; it is to the end.
    period : int
        How far before it the same token stands.
    """

    def __init__(self, inputs, first, period):
        self.inputs = inputs
        self.first = first
        self.period = period

    def matching(self, attention):
        """Every head's score added up over the sequences, (layers, heads) float64.

        None where there are no attention patterns.
        """
        if attention is None or any(each is None for each in attention):
            return None
        return prefix_matching(attention, self.first, self.period).sum(0)
