"""What one trace is asked to do: some tokens, some edits, and what to measure.

tokens = Tokens(inputs, positions, targets, keep)
unit = Unit(tokens, Replace(index, values), Exact(), [loss.total, entropy.direct])
"""

import torch


class Tokens:
    """Some tokens, and the sequences that must be run to predict what follows them.

    Parameters
    ----------
    inputs : Tensor (B, L) int64
        Token ids fed to the model.
    positions : Tensor (T,) int64
        Where the tokens are: indices into the flattened (B·L) sequences, in order.
    targets : Tensor (T,) int64
        The token that follows each of them, -1 where there is none.
    keep : Tensor (T,) bool
        Tokens over which sums run.
    wanted : Tensor (T,) bool, optional
        Tokens at which effects are wanted; they are NaN at others. By default all.
    single : Tensor (T',) int64, optional
        Where edits are to be made, as ``positions``: at the wanted tokens, of which no two are in
        one row. By default at every token of every row.
    own : int, optional
        How many of the tokens results are about: those that follow are only read by measures that
        run along an answer. By default all.
    accepted : Tensor (T, A) int64, optional
        Predictions that are right, where the next token is not the only one; filled up with -1.

    Attributes
    ----------
    along : dict of str to Along
        What measures of several predictions are added up by, see `Measure`; empty unless set.
    group, groups : Tensor (T,) int64 or None, int
        Which of how many groups a kept token is in, where sums are wanted by group; unless set,
        None and 0.
    shown : Tensor (T,) bool or None
        Tokens at which effects are wanted for themselves, and not only as parts of a sum.
    """

    def __init__(
        self, inputs, positions, targets, keep, wanted=None, single=None, own=None, accepted=None
    ):
        self.inputs = inputs
        self.positions = positions
        self.targets = targets
        self.keep = keep
        self.wanted = wanted
        self.single = single
        self.own = len(positions) if own is None else own
        self.accepted = accepted
        self.along = {}
        self.group, self.groups = None, 0
        self.shown = wanted
        self.rows = len(inputs)

    def __len__(self):
        return len(self.positions)

    def chosen(self):
        """Which of the tokens effects are wanted at, (T',) int64."""
        if self.wanted is None:
            return torch.arange(len(self.positions))
        return self.wanted.nonzero()[:, 0]

    def in_groups(self, group, groups):
        """Want sums by group too, see the attributes of these names."""
        self.group, self.groups = group, groups

    def wanting(self, kept, names):
        """The same, with effects wanted where they are needed.

        Parameters
        ----------
        kept : bool
            Only at kept tokens, unless it is said where they are wanted.
        names : iterable of str
            What measures run along: parts of these sums are needed too.
        """
        shown = self.wanted
        if shown is None and kept and not bool(self.keep.all()):
            shown = self.keep
        if shown is None:
            return self
        wanted = shown
        for name in names:
            owner = self.along[name].owner
            # An owner of -1 reads some token, which does not matter.
            wanted = wanted | ((owner >= 0) & shown[owner.clamp_min(0)])
        found = Tokens(
            self.inputs, self.positions, self.targets, self.keep, wanted, self.single, self.own,
            self.accepted,
        )  # fmt: skip
        found.along, found.shown = self.along, shown
        found.group, found.groups = self.group, self.groups
        return found


class Unit:
    """One unit of an ablation: what one trace does. Travels to the model by value.

    Parameters
    ----------
    tokens : Tokens
    edits : Replace, Together, AttendFirst ...
        n edits, one an entry of the axis that is ablated: see `confreg.effects.edits`.
    engine : Forward, Exact or Series
    effects : sequence of Effect
        ``loss.total`` and the like.
    layer : int
        The layer of the `Site` that the trace works at.
    memory : int
        Bytes that the closed forms may use beyond what they are given.
    seed, sample : int
        How many pairs of an edit and a token are recomputed in float64, and the seed that draws
        them. (The engine ``Forward`` recomputes none.)
    cube : bool
        Return every effect, not only sums over tokens. Without it effects are found at kept
        tokens only.
    watched : Tensor (m,) int64, optional
        Indices along the last dimension of what the trace passes to `Site.measure`: their values
        are returned.
    changes : {None, "sums", "all"}
        Whether to return how much the watched values change in each copy: not, only summed over
        tokens, or at every token. Only with the engine ``Forward``.
    counts : Tensor (bytes, V) uint8, optional
        How often each token occurs, plus one; 0 at rows of the unembedding that no token owns.
        Bytes from the least significant: so they travel as a third of what is made of them.

    Attributes
    ----------
    inputs : Tensor (R, L) int64
        What the trace runs: the tokens' sequences, and after them, if the engine makes copies,
        the same again for every edit.
    copies : int
        n if the engine makes copies, else 0.
    """

    def __init__(
        self,
        tokens,
        edits,
        engine,
        effects,
        layer=0,
        memory=2**30,
        seed=0,
        sample=0,
        cube=True,
        watched=None,
        changes=None,
        counts=None,
    ):
        # Without the cube nothing is left of effects at other tokens.
        named = [effect.measure.along for effect in effects]
        self.tokens = tokens.wanting(not cube, [one for one in named if one in tokens.along])
        self.edits = edits
        self.engine = engine
        self.effects = tuple(effects)
        self.layer = layer
        self.memory = memory
        self.seed = seed
        self.sample = sample
        self.cube = cube
        self.watched = watched
        self.changes = changes
        self.counts = counts
        self.copies = len(edits) if engine.copies else 0
        self.inputs = tokens.inputs.repeat(1 + self.copies, 1)
        if not engine.copies and getattr(edits, "writes", None) is None:
            kind = type(edits).__name__
            raise ValueError(f"{kind} has no closed form: it takes the engine Forward")
        if changes is not None and watched is None:
            raise ValueError("changes are of watched values: say which, watched=")
        if changes is not None and not self.copies:
            raise ValueError("how watched values change is seen by the engine Forward only")


class Entries:
    """What a step's unit carries by default: the entries of each of its axes, by name.

    ``Entries(token=..., neuron=...)`` has the attributes ``token`` and ``neuron``.
    """

    def __init__(self, **entries):
        self.__dict__.update(entries)
