"""The neurons of routed experts, as if they were the inputs of one down-projection.

Expert e adds p_e(t) Σ_i a_ei(t) w_ei to the residual stream at the tokens t that are routed to it,
with the routing weight p_e, its activations a = act(gate)·up, and the columns w of its own
down-projection. So p_e a_ei is the activation of neuron e·I + i of a layer of E·I neurons, and all
algebra is that of an ordinary one. At other tokens the neuron is not there: its activation is NaN,
and nothing that is done to it does anything. Routing is left as it is.

transformers keeps the experts of a layer in fused parameters of three dimensions, in one module
that no call takes apart: these weights are read, where they are.

An expert that all tokens share is an ordinary MLP beside them. Its neurons follow the routed ones,
and are there at every token; where each token multiplies what it adds by a gate of its own, that
is part of the activation, as the routing weight is. They are read and written by calling modules,
so a process without weights has them, too; the routed ones beside them are NaN there.
"""

import torch

from .readout import MetaWeightError, neuron_directions, take

SOME = 8192
"""Neurons whose output weights are held at once."""


class Routed:
    """The experts of one layer; stands where other layers have their down-projection's envoy.

    Parameters
    ----------
    experts : envoy
        The module that is called with (hidden (T, d), experts (T, k), routing weights (T, k)).
    count, width : int
        Experts, E, and neurons of each, I.
    fetch : callable, optional
        ``fetch(module)`` returns the module's own parameters by name, where they are offloaded.
    whole : envoy, optional
        The module around the experts, that adds what the shared one adds; needed where there is a
        shared one.
    shared : envoy, optional
        Down-projection of the shared expert.
    shared_width : int
        Neurons of that, S.
    shared_first : bool
        Whether the shared expert is called before the routed ones.
    shared_gate : envoy, optional
        Gives a number a token, (T, 1), whose sigmoid multiplies what the shared expert adds.

    Attributes
    ----------
    is_routed : bool
        True.
    input : Tensor (T, E·I + S)
        In a trace: the neurons. Setting it adds what changed times the output weights to what the
        experts return.
    """

    is_routed = True

    def __init__(
        self,
        experts,
        count,
        width,
        fetch=None,
        whole=None,
        shared=None,
        shared_width=0,
        shared_first=False,
        shared_gate=None,
    ):
        self.experts = experts
        self.count = count
        self.width = width
        self.fetch = fetch
        self.whole = whole
        self.shared = shared
        self.shared_width = shared_width
        self.shared_first = shared_first
        self.shared_gate = shared_gate
        self.seen = torch.empty(0)
        self.given = []
        self.share = 1.0

    def parameters(self):
        """The fused weights by name."""
        module = self.experts._module
        if self.fetch is not None:
            return self.fetch(module)
        found = dict(module.named_parameters(recurse=False))
        if self.sealed():
            raise MetaWeightError(
                "The weights of routed experts are not in this process: experts are measured in "
                "memory, offloaded, or on a server that runs requests without a sandbox."
            )
        return found

    def sealed(self):
        """Whether the routed experts' weights are not in this process, nor can be fetched."""
        own = self.experts._module.parameters(recurse=False)
        return self.fetch is None and any(weight.is_meta for weight in own)

    def read(self):
        """The neurons of every token, (T, E·I + S), NaN where a token is not routed to them."""
        common = self.shared.input if self.shared is not None and self.shared_first else None
        given, named = self.experts.inputs
        self.seen = self.activations(*given, *named.values())
        if self.shared is not None:
            common = self.shared.input if common is None else common
            common = common.reshape(-1, self.shared_width)
            if self.shared_gate is not None:
                self.share = self.shared_gate.output.reshape(-1, 1).sigmoid()
                common = common * self.share
            self.seen = torch.cat([self.seen, common.to(self.seen)], -1)
        return self.seen

    def activations(self, hidden, index, weights):
        """Routing weight times activation, (T, E·I).

        Parameters
        ----------
        hidden : Tensor (T, d)
        index : Tensor (T, k) int64
            The experts that each token is routed to; E stands for none.
        weights : Tensor (T, k)
        """
        self.given = [hidden, index, weights]
        out = hidden.new_full((len(hidden), self.count, self.width), float("nan"))
        if self.shared is not None and self.sealed():
            return out.flatten(1)
        module, own = self.experts._module, self.parameters()
        name = "gate_up_proj" if module.has_gate else "up_proj"
        for expert in index.unique().tolist():
            if expert == self.count:
                continue
            token, slot = (index == expert).nonzero(as_tuple=True)
            matrix = own[name][expert]
            found = hidden[token] @ (matrix if module.is_transposed else matrix.T)
            if module.has_bias:
                found = found + own[name + "_bias"][expert]
            found = module._apply_gate(found) if module.has_gate else module.act_fn(found)
            out[token, expert] = (found * weights[token, slot, None]).to(out)
        return out.flatten(1)

    def columns(self, neurons, like):
        """Output weights of some neurons, (n, d) float32; ``like`` lends dtype and device."""
        first = self.count * self.width
        common = neurons >= first
        parts = []
        if self.shared is None or not common.all():
            parts.append((~common, self.routed_columns(neurons[~common])))
        if common.any() or not parts:
            own = (neurons[common] - first).to(like.device)
            found = neuron_directions(self.shared, own, self.shared_width, like)
            parts.append((common, found))
        out = torch.empty(len(neurons), parts[0][1].shape[-1], device=parts[0][1].device)
        for where, found in parts:
            out[where.to(out.device)] = found.to(out)
        return out

    def routed_columns(self, neurons):
        """Those of routed experts, in the weights' dtype."""
        down = self.parameters()["down_proj"]
        neurons = neurons.to(down.device)
        expert, index = neurons // self.width, neurons % self.width
        return down[expert, index] if self.transposed() else down[expert, :, index]

    def adds(self, neurons):
        """What neurons (T, E·I + S) add to what the module returns, (T, d) float32."""
        neurons = neurons.nan_to_num(0.0)
        added = 0.0
        for some in (neurons != 0).any(0).nonzero()[:, 0].split(SOME):
            columns = self.columns(some, neurons).to(neurons.device).float()
            added = added + neurons[:, some].float() @ columns
        return added

    def biases(self):
        """What is added whatever the neurons are, (T, d) float32, once they were read."""
        hidden, index, weights = self.given
        found = torch.zeros_like(hidden, dtype=torch.float32)
        if getattr(self.experts._module, "has_bias", False):
            each = weights.new_zeros(len(index), self.count + 1).scatter_add(1, index, weights)
            bias = self.parameters()["down_proj_bias"].to(each.device)
            found += each[:, : self.count].float() @ bias.float()
        if self.shared is not None:
            found += self.share * self.shared(hidden.new_zeros(1, self.shared_width))
        return found

    def write(self, changed):
        """Make the neurons ``changed`` (T, E·I + S), where they are there at all."""
        routed = changed[:, : self.count * self.width]
        if self.sealed() and not routed.isnan().all():
            self.parameters()  # they cannot be changed: it says why
        moved = torch.where(torch.isnan(self.seen), 0.0, changed - self.seen)
        output = self.output
        added = torch.zeros_like(output, dtype=torch.float32).flatten(0, -2) + self.adds(moved)
        # With a value that is not known it is not known what is added.
        added = added.masked_fill(moved.isnan().any(-1, keepdim=True), float("nan"))
        self.output = (output.float() + added.view_as(output)).to(output)

    def transposed(self):
        """Whether output weights are rows of the experts' down-projections."""
        return self.experts._module.is_transposed

    def returned(self):
        """What the module returns to which the neurons add: the experts', or the one around."""
        found = (self.experts if self.whole is None else self.whole).output
        return found[0] if isinstance(found, tuple) else found

    def give(self, changed):
        """Return something else."""
        module = self.experts if self.whole is None else self.whole
        found = module.output
        module.output = (changed, *found[1:]) if isinstance(found, tuple) else changed

    output = property(returned, give)
    input = property(read, write)


class Weighed(Routed):
    """Experts that are given hidden states times routing weights, in place of both (Llama 4).

    The module is called with all tokens for expert 0, then with all for expert 1 and so on,
    (E·T, d), which are zero at tokens that are not routed there.
    """

    def transposed(self):
        """Output weights are rows."""
        return True

    def activations(self, hidden):
        """Activations, (T, E·I), of hidden states (E·T, d)."""
        hidden = hidden.unflatten(0, (self.count, -1))
        self.given = [hidden[0], None, None]
        out = hidden.new_full((hidden.shape[1], self.count, self.width), float("nan"))
        if self.sealed():
            return out.flatten(1)
        module, own = self.experts._module, self.parameters()
        for expert, each in enumerate(hidden):
            token = each.any(-1).nonzero()[:, 0]
            if len(token):
                gate, up = (each[token] @ own["gate_up_proj"][expert]).chunk(2, -1)
                out[token, expert] = module.act_fn(gate) * up
        return out.flatten(1)


class Always:
    """The down-projection of an ordinary MLP in a family whose other layers have experts.

    Parameters
    ----------
    down : envoy

    Attributes
    ----------
    is_routed : bool
        True: it is said at how many tokens neurons are there, which is at all.
    input : Tensor (R, L, width)
        In a trace: the neurons.
    """

    is_routed = True

    def __init__(self, down):
        self.down = down

    def __call__(self, neurons):
        """What the down-projection makes of them."""
        return self.down(neurons)

    def read(self):
        """The neurons of every token."""
        return self.down.input

    def write(self, changed):
        """Make the neurons ``changed``."""
        self.down.input = changed

    input = property(read, write)


def where_there(unit, seen):
    """At which of a unit's tokens each edited neuron is there, (n, T) bool, on the CPU."""
    rows = take(seen, unit.tokens.positions)
    return ~rows.index_select(-1, unit.edits.index.to(seen.device)).T.isnan().cpu()
