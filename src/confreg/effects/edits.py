"""Edits: what the entries of an axis do to the model. One class a kind of subject.

Any class will do that has

``len(edits)``
    n, how many edits there are.
``edits.cut(start, stop)``
    Some of them, as edits of the same kind.
``edits.apply(tensor, copies)``
    For the engine ``Forward``. ``tensor`` is what the trace has read, of 1 + n copies of the
    sequences: (R, L, width) with R = (1 + n)·B rows, or (R·L, width) as OPT flattens it. Returns it
    changed: the first B rows as they are, the j-th edit in the j-th copy after them. `copies_of`
    finds the copies, and `add_to_copies` adds multiples of directions to them.
``edits.writes(state, seen)``
    For the closed forms, at the last layer: what the edits add to the residual stream, δ and w,
    float32 (δ may be float64). ``seen`` (T, width) float32 is what the trace passed to
    `Site.measure`, unedited, at the unit's tokens; ``state.weights(index)`` are neurons' output
    weights. δ (n, T) and w (n, d): edit j adds δ_jt w_j at token t. Or δ (n, k, T) and w (n, k, d):
    it adds the sum of k such terms. A class that has no ``writes`` is for the engine ``Forward``.
    Called with a span of the edits at a time, and all tokens. Where an expert's neuron is not there
    its activation is NaN: a δ that is NaN for that reason counts as 0, and for another reason, such
    as a value that is NaN, leaves the edit without an effect.

and, where they differ from these, the attributes

``into = "residual"``
    Where w goes: to the residual stream as it is, or (``"mlp"``) by way of the MLP's output, which
    some models normalise before they add it.
``alike(one, other)``
    Of edits that write into several directions: whether two of them, by number, write into the same
    ones, which are then found once.
``rank = 1``
    How many directions an edit writes into (k), or None where that differs from edit to edit.
``settled(seen)``
    For edits that have to look at the unit's own tokens before they know what they do: edits that
    know it, with ``values`` (n,), which the block returns as ``ablation_value``. A unit of such
    edits cannot be cut between its tokens.
"""

import torch

from .values import ablation_values, moved, pick, replaced


class Replace:
    """Neurons, each replaced by a value at every token.

    Parameters
    ----------
    index : Tensor (n,) int64
        Neurons of the layer.
    values : Tensor (n,) float32, optional
        What replaces them: by default not known yet, see `to`.
    layer : int, optional
        The layer, for traces that have nothing else to tell it by.
    """

    into = "mlp"

    def __init__(self, index, values=None, layer=None):
        self.index = index
        self.values = values
        self.layer = layer

    def __len__(self):
        return len(self.index)

    def cut(self, start, stop):
        """Some of the edits."""
        values = None if self.values is None else self.values[start:stop]
        return Replace(self.index[start:stop], values, self.layer)

    def to(self, values):
        """The same neurons, replaced by ``values`` (n,)."""
        return Replace(self.index, values, self.layer)

    def known(self):
        """The values, float32."""
        if self.values is None:
            raise ValueError("the neurons' ablation values are not known yet: edits.to(values)")
        return self.values.float()

    def apply(self, activation, copies):
        """Replace the j-th neuron in the j-th copy; ``activation`` is the down-projection's
        input."""
        changed, parts = copies_of(activation, copies)
        each = torch.arange(len(parts), device=changed.device)
        values = self.known().to(changed)[:, None, None]
        parts[each, :, :, self.index.to(changed.device)] = values
        return changed

    def writes(self, state, seen):
        """δ (n, T) = value − activation, and the neurons' output weights (n, d)."""
        index = self.index.to(seen.device)
        activation = seen.index_select(-1, index).T
        values = self.known().to(seen.device)[:, None]
        return moved(values, activation), state.weights(index)


class ReplaceByOwn:
    """Neurons, each replaced by a value found among its own activations in this unit.

    Parameters
    ----------
    index : Tensor (n,) int64
    kind : str
        ``"mean"`` or ``"percentile"``, see `confreg.effects.values.ablation_values`.
    value : float
        The percentile.
    positions : Tensor (T,) int64
        The unit's tokens, as of `Tokens`.
    over : Tensor (T,) bool
        The tokens whose activations count.
    """

    into = "mlp"

    def __init__(self, index, kind, value, positions, over):
        self.index = index
        self.kind = kind
        self.value = value
        self.positions = positions
        self.over = over

    def __len__(self):
        return len(self.index)

    def cut(self, start, stop):
        """Some of the edits."""
        index = self.index[start:stop]
        return ReplaceByOwn(index, self.kind, self.value, self.positions, self.over)

    def settled(self, seen):
        """`Replace` with the values found: ``seen`` (T, width)."""
        chosen = seen.index_select(-1, self.index.to(seen.device))
        return Replace(self.index, ablation_values(chosen, self.kind, self.value, self.over))

    def apply(self, activation, copies):
        """As of `Replace`; the values are those of the clean rows."""
        chosen = pick(activation, self.positions, self.index)
        values = ablation_values(chosen, self.kind, self.value, self.over)
        return Replace(self.index, values).apply(activation, copies)

    def writes(self, state, seen):
        """As of `Replace`."""
        return self.settled(seen).writes(state, seen)


class Together:
    """Sets of neurons, each set replaced at once.

    Parameters
    ----------
    members : list of Tensor (k,) int64
        Neurons of the layer; sets may differ in size.
    values : list of Tensor (k,) float32
        What replaces their activations.
    sides : list of Tensor (k,) int8, optional
        Where it does: 0 everywhere, 1 only where the activation is above the value, -1 only where
        it is below. By default everywhere.
    slopes : list of float, optional
        How much of the activation is kept beside the value, a number a set: value + slope · a. By
        default none.
    """

    into = "mlp"
    rank = None

    def __init__(self, members, values, sides=None, slopes=None):
        self.members = members
        self.values = values
        self.sides = sides
        self.slopes = slopes

    def __len__(self):
        return len(self.members)

    def cut(self, start, stop):
        """Some of the edits."""
        sides = None if self.sides is None else self.sides[start:stop]
        slopes = None if self.slopes is None else self.slopes[start:stop]
        return Together(self.members[start:stop], self.values[start:stop], sides, slopes)

    def alike(self, one, other):
        """Whether two of the edits write into the same directions."""
        return torch.equal(self.members[one], self.members[other])

    def replacement(self, number, activation):
        """What stands in the place of one set's activations (..., k)."""
        if self.slopes is not None:
            values = self.values[number].to(activation)
            return (values + self.slopes[number] * activation).expand_as(activation)
        sides = torch.tensor(0) if self.sides is None else self.sides[number]
        return replaced(activation, self.values[number], sides)

    def apply(self, activation, copies):
        """Replace the j-th set in the j-th copy; ``activation`` is the down-projection's input."""
        changed, parts = copies_of(activation, copies)
        for number, copy in enumerate(parts):
            members = self.members[number].to(changed.device)
            copy[..., members] = self.replacement(number, copy[..., members])
        return changed

    def writes(self, state, seen):
        """δ (n, k, T) float64 and output weights (n, k, d): of sets of one size."""
        deltas, weights = [], []
        for number, members in enumerate(self.members):
            members = members.to(seen.device)
            activation = seen.index_select(-1, members).double()
            deltas.append(moved(self.replacement(number, activation), activation).T)
            weights.append(state.weights(members))
        return torch.stack(deltas), torch.stack(weights)


class AttendFirst:
    """Sets of attention heads, each set made to attend to the first token only.

    The input of the attention's output projection holds every query head's output side by side,
    o_h(t) = Σ_j A_h(t, j) v_h(j). A head whose queries all attend to position 0 has
    o_h(t) = v_h(0), and a causal model's position 0 attends to nothing but itself, so v_h(0) is
    o_h(0): the edit copies the head's slice from position 0. No attention implementation takes
    part in it, and with grouped-query attention a slice is still one query head's. (A model with
    learnt attention sinks would be an exception: there A_h(0, 0) < 1.)

    Parameters
    ----------
    members : list of Tensor (k, 2) int64
        (layer, head) of every head of a set.
    n_heads : int
        Query heads of a layer.
    """

    def __init__(self, members, n_heads):
        self.members = members
        self.n_heads = n_heads

    def __len__(self):
        return len(self.members)

    def cut(self, start, stop):
        """Some of the edits."""
        return AttendFirst(self.members[start:stop], self.n_heads)

    def layers(self):
        """Layers that have a head in any of the sets, from the first to the last."""
        return sorted({int(layer) for members in self.members for layer in members[:, 0]})

    def apply(self, outputs, copies, layer, queries=None):
        """Change the heads of one layer.

        Parameters
        ----------
        outputs : Tensor (R, L, heads · head width)
            Input of the layer's attention's output projection.
        copies : int
        layer : int
        queries : Tensor (T',) int64, optional
            Which queries attend to the first token only, as ``Tokens.single``; by default all.
        """
        changed, parts = copies_of(outputs, copies)
        for copy, members in zip(parts.unflatten(-1, (self.n_heads, -1)), self.members):
            own = members[members[:, 0] == layer, 1].to(changed.device)
            if queries is None:
                copy[:, :, own] = copy[:, :1, own]
                continue
            queries = queries.to(changed.device)
            row, place = queries // copy.shape[1], queries % copy.shape[1]
            copy[row[:, None], place[:, None], own] = copy[row[:, None], 0, own]
        return changed


def copies_of(tensor, copies):
    """A copy of ``tensor``, and a view of its rows by edit: (copies, B, L, width).

    Parameters
    ----------
    tensor : Tensor (R, L, width), or (R·L, width)
        R = (1 + copies)·B; in the second case the view is (copies, 1, B·L, width).
    """
    changed = tensor.clone(memory_format=torch.contiguous_format)
    sequences = changed if changed.dim() > 2 else changed.view(1 + copies, -1, changed.shape[-1])
    return changed, sequences.unflatten(0, (1 + copies, -1))[1:]


def add_to_copies(tensor, copies, delta, w):
    """Add δ_j w_j to the j-th copy of the sequences: what ``apply`` of a user's own edits may call.

    Parameters
    ----------
    tensor : Tensor (R, L, d), R = (1 + n)·B
        As of ``apply``.
    copies : int
        n.
    delta : Tensor (n,), (n, L) or (n, B, L)
        How much of it: at every token alike, or token by token.
    w : Tensor (n, d)

    Returns
    -------
    Tensor
        A changed copy, in the tensor's own dtype.
    """
    changed, parts = copies_of(tensor, copies)
    while delta.dim() < 3:
        delta = delta.unsqueeze(1)
    delta, w = delta.to(changed.device), w.to(changed.device)
    parts += (delta.unsqueeze(-1) * w[:, None, None]).to(changed)
    return changed
