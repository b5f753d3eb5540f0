"""One block of work: some tokens of some sequences, some neurons, and what to measure."""

import torch


class Batch:
    """What `ablate` and `measure` are asked to do. Travels to the model by value.

    Parameters
    ----------
    inputs : Tensor (R, L) int64
        Token ids fed to the model. R = B sequences, or for ``engine="forward"`` (1 + n)·B: B
        clean rows, then B rows a neuron.
    rows : int
        B.
    positions : Tensor (T,) int64
        This block's tokens: indices into the flattened (B·L) clean rows, in order.
    targets : Tensor (T,) int64
        The token that follows each of them, -1 where there is none.
    keep : Tensor (T,) bool
        Tokens over which reductions run.
    layer : int
    neurons : Tensor (n,) int64
        Indices in the layer.
    width : int
        How many neurons the layer has.
    values : Tensor (n,) float32, or None
        Ablation values; None where they are found in this batch's own tokens.
    effects : tuple of str
        Names ``measure_variant``, see `confreg.effects.measures.split`.
    engine : str
        ``"forward"``, ``"exact"`` or ``"series"``.
    tolerance : float
        Nats; the error estimate beyond which ``"series"`` recomputes a pair exactly.
    memory : int
        Bytes that the closed forms may use beyond what they are given.
    seed, sample : int
        How many pairs are recomputed in float64, and the seed that draws them.
    reduce : bool
        Return sums over kept tokens only, not the cube.
    activations : bool
        Return the neurons' activations.
    ablation : (str, float)
        Kind and value, see `ablation_values`; read where ``values`` is None.
    over : Tensor (T,) bool, optional
        The tokens that ``ablation`` is over.
    counts : Tensor (bytes, V) uint8, optional
        How often each token occurs, plus one; 0 at rows of the unembedding that no token owns.
        Bytes from the least significant: so they travel as a third of what is made of them.
    sets, set_values : list of Tensor (k,), optional
        Neurons of the layer that are ablated together, and what replaces them: n is then the
        number of sets, and ``neurons`` only says what ``activations`` returns.
    set_sides : list of Tensor (k,) int8, optional
        Where each set's values replace activations, see `confreg.effects.values.replaced`.
    wanted : Tensor (T,) bool, optional
        The tokens at which effects of sets are wanted; they are NaN at others.
    heads : list of Tensor (k, 2) int64, optional
        Attention heads (layer, head) that are ablated together: n is then the number of such
        sets, ``values`` are of no use, and ``neurons`` are those whose activations are watched.
    n_heads : int
        Query heads of a layer.
    """

    def __init__(
        self,
        inputs,
        rows,
        positions,
        targets,
        keep,
        layer,
        neurons,
        width,
        values,
        effects,
        engine="exact",
        tolerance=1e-5,
        memory=2**30,
        seed=0,
        sample=0,
        reduce=False,
        activations=False,
        ablation=("constant", 0.0),
        over=None,
        counts=None,
        sets=None,
        set_values=None,
        set_sides=None,
        wanted=None,
        heads=None,
        n_heads=0,
    ):
        self.inputs = inputs
        self.rows = rows
        self.positions = positions
        self.targets = targets
        self.keep = keep
        self.layer = layer
        self.neurons = neurons
        self.width = width
        self.values = values
        self.effects = tuple(effects)
        self.engine = engine
        self.tolerance = tolerance
        self.memory = memory
        self.seed = seed
        self.sample = sample
        self.reduce = reduce
        self.activations = activations
        self.ablation = ablation
        self.over = over
        self.counts = counts
        self.sets = sets
        self.set_values = set_values
        self.set_sides = set_sides
        self.wanted = wanted
        self.heads = heads
        self.n_heads = n_heads

    def side(self, number):
        """Of one set: its `set_sides`, or 0 for all."""
        return torch.tensor(0) if self.set_sides is None else self.set_sides[number]

    def tokens(self):
        """Which of the batch's tokens effects of sets are wanted at, (T',) int64."""
        if self.wanted is None:
            return torch.arange(len(self.positions))
        return self.wanted.nonzero()[:, 0]

    def count(self):
        """How many ablations there are: of neurons, of sets of them, or of sets of heads."""
        return len(self.heads or self.sets or self.neurons)

    def head_layers(self):
        """Layers that have a head in any of the sets, from the first to the last."""
        return sorted({int(layer) for members in self.heads or () for layer in members[:, 0]})
