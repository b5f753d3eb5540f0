"""How neurons read the residual stream: the rows of the matrices that make them.

With x̂ = P x / s(x) what a norm makes of the residual x before its weight γ and bias β, and P as of
the readout, a neuron is f(⟨w_in, x̂⟩ + b), or f(⟨w_gate, x̂⟩ + b_gate) (⟨w_in, x̂⟩ + b) where there
is a gate: w_in = P (γ ∘ row of the matrix), b = the matrix's bias + ⟨row, β⟩, as TransformerLens
folds them. Without a norm γ is 1, and x̂ the residual. Matrices are learnt by calling them.
"""

import torch

from .readout import norm_parameters, real


class Inputs:
    """The matrices that one layer's neurons are made by, and the norm before them.

    Parameters
    ----------
    up : callable, (n, d) -> (n, width), or (n, 2 width) where it is ``fused``
    gate : callable or None
    norm : callable or None
    width : int
        Neurons of the layer.
    fused : bool
        Whether ``up`` has the gate's rows above its own.
    gate_factor : float
        What the gate's output is multiplied by.
    centred, eps
        Of the norm.
    """

    def __init__(self, up, gate, norm, width, fused, gate_factor, centred, eps):
        self.up = up
        self.gate = gate
        self.norm = norm
        self.width = width
        self.fused = fused
        self.gate_factor = gate_factor
        self.centred = centred
        self.eps = eps

    def before(self):
        """What the activation function is applied to in a trace, (..., width)."""
        read = self.up if self.gate is None else self.gate
        return read.output[..., : self.width] * self.gate_factor

    def rows(self, like, memory):
        """Folded rows and biases by name, ``in`` and ``gate``: (width, d) and (width,), float32.

        ``like`` is any activation of the residual stream, (..., d); ``memory`` bounds a call.
        """
        d = like.shape[-1]
        gain, shift = torch.ones(d, device=like.device), torch.zeros(d, device=like.device)
        if self.norm is not None:
            gain, shift = norm_parameters(self.norm, self.centred, self.eps, like)
        found = {"in": self.folded(self.up, gain, shift, like, memory)}
        if self.gate is not None:
            found["gate"] = self.folded(self.gate, gain, shift, like, memory)
        if self.fused:
            rows, bias = found["in"]
            found["gate"] = rows[: self.width], bias[: self.width]
            found["in"] = rows[self.width :], bias[self.width :]
        if "gate" in found:
            rows, bias = found["gate"]
            found["gate"] = rows * self.gate_factor, bias * self.gate_factor
        return found

    def folded(self, matrix, gain, shift, like, memory):
        """P (γ ∘ row) of every row of a matrix, and its bias with that of the norm."""
        d = like.shape[-1]
        bias = real(matrix(torch.zeros_like(shift[None], dtype=like.dtype))).float()[0]
        size = max(1, min(d, int(0.2 * memory) // (8 * (d + len(bias)))))
        columns = []
        for some in torch.arange(d, device=like.device).split(size):
            eye = torch.zeros(len(some), d, dtype=like.dtype, device=like.device)
            eye[torch.arange(len(some), device=like.device), some] = 1
            columns.append(matrix(eye).float() - bias)
        rows = torch.cat(columns).T
        bias = bias + (rows.double() @ shift.double()).float()
        rows = rows * gain
        if self.norm is not None and self.centred:
            rows = rows - rows.mean(-1, keepdim=True)
        return rows, bias


def input_statistics(inputs, sites, chosen, like, memory=2**29):
    """What some neurons of some layers read, and how that lies to what they write.

    Parameters
    ----------
    inputs : list of Inputs
        One a layer.
    sites : list of Site
        One a layer.
    chosen : list of Tensor (n,) int64
        Of each layer, its neurons.
    like : Tensor (..., d)
        Any activation of the residual stream.
    memory : int
        Bytes for one call of a matrix.

    Returns
    -------
    dict of str to Tensor (N,) float32, on the CPU, layer after layer
        ``w_in_norm``, ``input_bias``; ``w_gate_norm``, ``gate_bias``, NaN where there is no gate;
        ``in_out_cosine``, ``gate_out_cosine``, ``gate_in_cosine``; and ``in_out_p`` and so on: how
        large a share of the layer's pairs of *different* neurons has a cosine of the same size or
        larger, (1 + those) / (1 + pairs). Pairs are all rows with at most `PARTNERS` columns,
        evenly spaced. The output weight is what reaches the residual stream, under a norm after
        the MLP its γ_p∘P_p w; centred where the norm before the MLP centres.
    """
    with torch.no_grad():
        layers = [
            of_layer(one, site, some, like, memory)
            for one, site, some in zip(inputs, sites, chosen)
        ]
        return {name: torch.cat([part[name] for part in layers]).cpu() for name in layers[0]}


PARTNERS = 1024


def of_layer(inputs, site, chosen, like, memory):
    """`input_statistics` of one layer."""
    chosen = chosen.to(like.device)
    rows = inputs.rows(like, memory)
    write = site.write_of(like)
    size = max(1, int(0.2 * memory) // (8 * (inputs.width + like.shape[-1])))
    every = torch.arange(inputs.width, device=like.device)
    out = torch.cat([write.directions(write.weights(some, like)) for some in every.split(size)])
    if inputs.norm is not None and inputs.centred:
        out = out - out.mean(-1, keepdim=True)
    vectors = {name: row for name, (row, _) in rows.items()} | {"out": out}
    nothing = torch.full((len(chosen),), float("nan"), device=like.device)
    found = {
        "w_in_norm": vectors["in"][chosen].norm(dim=-1),
        "input_bias": rows["in"][1][chosen],
        "w_gate_norm": nothing,
        "gate_bias": nothing,
    }
    if "gate" in rows:
        found["w_gate_norm"] = vectors["gate"][chosen].norm(dim=-1)
        found["gate_bias"] = rows["gate"][1][chosen]
    units = {name: row / row.norm(dim=-1, keepdim=True) for name, row in vectors.items()}
    for one, other in (("in", "out"), ("gate", "out"), ("gate", "in")):
        cosine, p = nothing, nothing
        if one in units:
            cosine = (units[one] * units[other]).sum(-1)
            p = mismatched(units[one], units[other], cosine)[chosen]
            cosine = cosine[chosen]
        found[f"{one}_{other}_cosine"] = cosine
        found[f"{one}_{other}_p"] = p
    return {name: value.float() for name, value in found.items()}


def mismatched(one, other, cosine):
    """How many pairs of different neurons have cosines as large as each neuron's own, (n,)."""
    count = len(one)
    step = max(1, -(-count // PARTNERS))
    partner = torch.arange(0, count, step, device=one.device)
    pairs = (one @ other[partner].T).abs()
    pairs[partner, torch.arange(len(partner), device=one.device)] = float("nan")
    pairs = pairs[~pairs.isnan()]
    # Pairs are sorted into the gaps between the neurons' own, which are few.
    own, order = cosine.abs().sort()
    at_least = torch.bucketize(pairs, own, right=True).bincount(minlength=count + 1)
    found = torch.empty(count, dtype=torch.float64, device=one.device)
    found[order] = at_least.flip(0).cumsum(0).flip(0)[1:].double()
    return (1 + found) / (1 + len(pairs))
