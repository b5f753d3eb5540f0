"""The neurons of routed experts, as if they were the inputs of one down-projection.

Expert e adds p_e(t) Σ_i a_ei(t) w_ei to the residual stream at the tokens t that are routed to it,
with the routing weight p_e, its activations a = act(gate)·up, and the columns w of its own
down-projection. So p_e a_ei is the activation of neuron e·I + i of a layer of E·I neurons, and all
algebra is that of an ordinary one. At other tokens the neuron is not there: its activation is NaN,
and nothing that is done to it does anything. Routing is left as it is.

transformers keeps the experts of a layer in fused parameters of three dimensions, in one module
that no call takes apart: these weights are read, where they are.
"""

from .readout import MetaWeightError, take


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

    Attributes
    ----------
    is_routed : bool
        True.
    input : Tensor (T, E·I)
        In a trace: the neurons. Setting it adds what changed times the output weights to what the
        experts return.
    """

    is_routed = True

    def __init__(self, experts, count, width, fetch=None):
        self.experts = experts
        self.count = count
        self.width = width
        self.fetch = fetch
        self.seen = None

    def parameters(self):
        """The fused weights by name."""
        module = self.experts._module
        if self.fetch is not None:
            return self.fetch(module)
        found = dict(module.named_parameters(recurse=False))
        if any(weight.is_meta for weight in found.values()):
            raise MetaWeightError(
                "The weights of routed experts are not in this process: experts are measured in "
                "memory, offloaded, or on a server that runs requests without a sandbox."
            )
        return found

    def read(self):
        """The neurons of every token, (T, E·I), NaN where a token is not routed to them."""
        given, named = self.experts.inputs
        hidden, index, weights = [*given, *named.values()][:3]
        self.seen = self.activations(hidden, index, weights)
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
        module, own = self.experts._module, self.parameters()
        name = "gate_up_proj" if module.has_gate else "up_proj"
        out = hidden.new_full((len(hidden), self.count, self.width), float("nan"))
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

    def columns(self, neurons):
        """Output weights of some neurons, (n, d)."""
        module, down = self.experts._module, self.parameters()["down_proj"]
        neurons = neurons.to(down.device)
        expert, index = neurons // self.width, neurons % self.width
        return down[expert, index] if module.is_transposed else down[expert, :, index]

    def write(self, changed):
        """Make the neurons ``changed`` (T, E·I), where they are there at all."""
        change = (changed - self.seen).nan_to_num(0.0)
        touched = (change != 0).any(0).nonzero()[:, 0]
        added = change[:, touched].float() @ self.columns(touched).to(change.device).float()
        output = self.experts.output
        self.experts.output = (output.float() + added.view_as(output)).to(output)

    def tokens(self, unit, seen):
        """At how many kept tokens each edited neuron's expert is chosen, (n,) int64, on the CPU."""
        kept = unit.tokens.positions[unit.tokens.keep]
        there = take(seen, kept).index_select(-1, unit.edits.index.to(seen.device))
        return (~there.isnan()).sum(0).cpu()

    input = property(read, write)
