"""A layer of a language model: where it is read, written, and read out."""

import torch

from .observed import Observed, activation_changes, unablated
from .readout import read_readout, take
from .routed import where_there
from .tally import Tally
from .write import Write


class Site:
    """One layer of a language model, as a trace works at it.

    In a trace:

        site = model.site(unit.layer)
        with model.trace(unit.inputs):
            activation = site.neurons.input
            if unit.copies:
                site.neurons.input = unit.edits.apply(activation, unit.copies)
            block = site.measure(unit, activation)

    Parameters
    ----------
    neurons : envoy or module
        Down-projection of the layer's MLP: its input are the neurons.
    heads : envoy, module or None
        Output projection of the layer's attention: its input are the heads' outputs.
    residual : envoy, module or None
        The layer's block: its input is the residual stream.
    final_norm, unembedding : envoys or modules
    post_norm : envoy, module or None
        Norm through which the MLP's output goes before it is added.
    begin : envoy, module or None
        The model's first block, whose input lends width, dtype and device.
    readout : dict
        ``centred``, ``eps``, ``scale``, ``softcap`` and ``normed`` of a `Readout`.
    write : dict
        ``width``, ``multiplier``, ``post_centred`` and ``post_eps`` of a `Write`.
    """

    def __init__(
        self,
        neurons,
        heads,
        residual,
        final_norm,
        unembedding,
        post_norm=None,
        begin=None,
        readout=None,
        write=None,
    ):
        self.neurons = neurons
        self.heads = heads
        self.residual = residual
        self.final_norm = final_norm
        self.unembedding = unembedding
        self.post_norm = post_norm
        self.begin = begin
        self.readout = readout or {}
        self.write = write or {}

    def readout_of(self, like):
        """The model's `Readout`; ``like`` is any activation of the residual stream, (..., d)."""
        return read_readout(self.final_norm, self.unembedding, like, **self.readout)

    def write_of(self, like, post_input=None):
        """How the layer's neurons reach the residual stream: its `Write`.

        Parameters
        ----------
        like : Tensor (..., d)
            Any activation of the residual stream.
        post_input : Tensor (R, L, d), optional
            What the post-norm was given, where tokens are to be edited.
        """
        given = like if post_input is None else post_input
        return Write(self.neurons, post_norm=self.post_norm, post_input=given, **self.write)

    def measure(self, unit, seen, residual=None):
        """Read the rest of the forward pass and have the unit's engine find the effects.

        Called in a trace, after the edit: it reads the post-norm's input (if algebra needs it),
        the final norm's input and the unembedding's output, in this order.

        Parameters
        ----------
        unit : Unit
        seen : Tensor (R, L, width)
            What the trace has read and perhaps edited, as it was *before* the edit.
        residual : Tensor (R, L, d), optional
            The final norm's input, if the trace has it at hand; read if not.

        Returns
        -------
        dict of str to Tensor, on the CPU
            ``effects`` (n, T, E) float32 if ``unit.cube``; ``effect_sum``, ``effect_abs_sum``
            (n, E) float64 over kept tokens, and ``effect_undefined`` (n, E) int64, at how many of
            them an effect is no finite number and left out; where tokens are in groups, the same
            with ``_by`` (n, E, G); measures of the unedited model, (T,)
            each: ``loss``, ``entropy``, ``norm_scale``, ``rank``, ``top1``, ``kl_frequency`` if
            there are counts, and whatever else effects are on; ``ablation_value`` (n,) float32
            where edits found their own values; of experts' neurons ``routed_tokens`` (n,) int64,
            at how many kept tokens they are there, and of these alone ``effect_sum_routed``,
            ``effect_abs_sum_routed`` and ``effect_routed`` (n, E), how many have the effect;
            ``pairs``, ``recomputed``, ``sampled``, float64 scalars: pairs of an edit and a token,
            how many of them the series left to the exact sums, and how many were recomputed in
            float64; ``error_sum``, ``error_largest``
            (E,) float64, the sum and the largest of those pairs' errors.

            If ``unit.watched``: ``activation`` (m, T) float32 (unless ``unit.changes`` is
            ``"sums"``). If ``unit.changes``: ``activation_change_sum`` and
            ``activation_change_abs_sum`` (n, m) float64 over kept tokens, of experts' neurons over
            ``activation_change_count`` (n, m) int64 of them, where they are there with the edit and
            without; if it is ``"all"``, ``activation_change`` (n, T, m) float32.

        Raises
        ------
        MetaWeightError
            A weight without storage was about to be used in arithmetic.
        ValueError
            A measure returned another shape than one number a prediction, or the engine has no
            way to it.
        """
        through = getattr(unit.edits, "into", "residual") == "mlp" and not unit.copies
        post_input = self.post_norm.input if through and self.post_norm is not None else None
        residual = self.final_norm.input if residual is None else residual
        raw = self.unembedding.output
        with torch.no_grad():
            readout = self.readout_of(residual)
            write = self.write_of(residual, post_input) if through else None
        # A server runs blocks under the autocast of its models' dtype: products of float32 would
        # be of bfloat16.
        with torch.no_grad(), torch.autocast(raw.device.type, enabled=False):
            routed = getattr(self.neurons, "is_routed", False)
            return measure(Observed(unit, readout, write, seen, residual, raw, routed))


def measure(observed):
    """What `Site.measure` returns, from what the model did."""
    unit = observed.unit
    for effect in unit.effects:
        check(effect, unit)
    tokens = unit.tokens
    along = {
        column: tokens.along[effect.measure.along]
        for column, effect in enumerate(unit.effects)
        if effect.measure.along
    }
    single = observed.routed and hasattr(unit.edits, "index")
    tally = Tally(
        len(unit.edits), tokens.keep, len(unit.effects), unit.cube, along, tokens.shown,
        tokens.group, tokens.groups, where_there(unit, observed.seen) if single else None,
    )  # fmt: skip
    clean = unablated(observed)
    unit.engine.fill(tally, observed, clean)
    out = tally.result()
    if unit.cube:
        out["effects"] = out["effects"][:, : tokens.own]
    measures = {effect.quantity: effect.measure for effect in unit.effects}
    for name, values in clean.items():
        dtype = getattr(torch, measures[name].dtype) if name in measures else values.dtype
        if name in measures and measures[name].along:
            values = tokens.along[measures[name].along].of(values)
        out[name] = values[: tokens.own].to(dtype).cpu()
    if observed.edits is not unit.edits:
        out["ablation_value"] = observed.edits.values.cpu()
    if unit.watched is not None:
        out.update(watched(observed))
    return out


def check(effect, unit):
    """Raise `ValueError` where a unit has no way to an effect."""
    measure = effect.measure
    if effect.pathway not in measure.pathways:
        raise ValueError(f"{effect.quantity} has no {effect.pathway} effect")
    single = getattr(unit.edits, "rank", 1) == 1
    if "norm_scale" in measure.given and single and not unit.copies:
        raise ValueError(f"{effect.name} is measured by the engine Forward only")
    if measure.along and measure.along not in unit.tokens.along:
        raise ValueError(f"{effect.name} runs along {measure.along!r}, which the tokens lack")
    counted = effect.pathway == "frequency_direct" or "log_frequency" in measure.given
    if counted and unit.counts is None:
        raise ValueError(f"{effect.name} needs the counts of the tokens")


def watched(observed):
    """The watched values and how they change: the parts of `Site.measure`'s result."""
    unit, out = observed.unit, {}
    own = unit.tokens.own
    if unit.changes != "sums":
        rows = take(observed.seen, observed.positions[:own])
        index = unit.watched.to(rows.device)
        out["activation"] = rows.index_select(-1, index).T.float().cpu()
    if unit.changes is not None:
        changes = activation_changes(observed)
        if unit.changes == "all":
            out["activation_change"] = changes[:, :own]
        kept = changes[:, unit.tokens.keep.cpu()].double()
        if observed.routed:
            there = ~kept.isnan()
            out["activation_change_count"] = there.sum(1)
            kept = torch.where(there, kept, 0.0)
        out["activation_change_sum"] = kept.sum(1)
        out["activation_change_abs_sum"] = kept.abs().sum(1)
    return out
