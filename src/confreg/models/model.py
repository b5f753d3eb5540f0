"""`Model`: a network that nnsight can trace, with the names a recipe needs."""

from __future__ import annotations

import functools
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np

from confreg.errors import ConfregError
from confreg.models import lookup
from confreg.models.architectures import Architecture, resolve
from confreg.models.banks import Bank
from confreg.models.classes import weightless
from confreg.models.quiet import quiet

if TYPE_CHECKING:
    import torch
    from nnsight import TransformersModel
    from transformers import PretrainedConfig, PreTrainedModel, PreTrainedTokenizerBase

    from confreg.effects import Inputs, Site


@dataclass(frozen=True)
class Description:
    """What is known of a model before its weights are read.

    Attributes
    ----------
    name, revision : str
        As the dataset records them; ``revision`` is "" where there is none.
    dtype, stored_dtype : str
        What weights are held as in memory ("float32", "bfloat16", "nf4" ...), and in the
        checkpoint.
    n_layers, n_neurons, n_heads, d_model, vocab_size : int
        Layers; neurons (of the layer that has most) and query heads of one layer; width of the
        residual stream; rows of the unembedding.
    n_experts : int
        Routed experts of one layer; 1 where there are none.
    banks : tuple of Bank
        In families with routed experts: the neurons of each layer.
    attends : tuple of bool
        Which layers have attention heads that can be told apart, of each.
    after_mlp : str
        What follows the last layer's MLP and rules the closed forms out, in a clause, or "".
    vocab_real : int
        Tokens that the tokenizer owns; the unembedding's rows beyond them are padding.
    max_length : int or None
        Longest sequence that the model has positions for.
    sizes : dict of str to int
        Parameters of every module that is placed as a whole: each layer, the embeddings, the
        final norm, the unembedding (0 where it is tied). Empty for a wrapped model.
    """

    name: str
    revision: str
    dtype: str
    stored_dtype: str
    row: Architecture
    config: PretrainedConfig
    tokenizer: PreTrainedTokenizerBase
    n_layers: int
    n_neurons: int
    n_heads: int
    d_model: int
    vocab_size: int
    vocab_real: int
    max_length: int | None
    attends: tuple[bool, ...] = ()
    after_mlp: str = ""
    n_experts: int = 1
    banks: tuple[Bank, ...] = ()
    sizes: dict[str, int] = field(default_factory=dict)

    @property
    def architecture(self) -> str:
        """transformers' name of the model's family."""
        return self.row.model_type

    @property
    def owned(self) -> np.ndarray:
        """Which rows of the unembedding a token owns, (V,) bool; others are padding, or holes."""
        found = np.zeros(self.vocab_size, dtype=bool)
        ids = np.fromiter(self.tokenizer.get_vocab().values(), dtype=np.int64)
        found[ids[ids < self.vocab_size]] = True
        return found

    def width(self, layer: int) -> int:
        """Neurons of a layer; negative ones count from the end."""
        return self.banks[layer].size if self.banks else self.n_neurons

    @property
    def parameters(self) -> int:
        """Parameters, tied ones counted once."""
        return sum(self.sizes.values())

    @property
    def bytes(self) -> int:
        """Size of the weights in ``dtype``."""
        return int(self.parameters * bytes_per_parameter(self.dtype))

    def layer(self, index: int) -> int:
        """Return a layer's number, counting negative ones from the end.

        Raises
        ------
        ConfregError
            The model has no such layer.
        """
        return whole_layer(index, self.n_layers)


def whole_layer(layer: int, n_layers: int) -> int:
    """A layer from 0, given from either end.

    Raises
    ------
    ConfregError
        The model has no such layer.
    """
    if not -n_layers <= layer < n_layers:
        raise ConfregError(
            f"There is no layer {layer}: the model has layers 0 to {n_layers - 1} "
            "(-1 means the last)."
        )
    return layer % n_layers


def bytes_per_parameter(dtype: str) -> float:
    """Bytes of one stored weight of a dtype or quantization that nnsight names."""
    from nnsight.modeling.mixins.remotable import bytes_per_element

    return float(bytes_per_element(dtype))


def describe_config(
    config: PretrainedConfig,
    tokenizer: PreTrainedTokenizerBase,
    name: str,
    revision: str | None = None,
    dtype: str | None = None,
    sizes: dict[str, int] | None = None,
    row: Architecture | None = None,
) -> Description:
    """Build a `Description` from a configuration and a tokenizer; no weights are needed."""
    outer = config
    row = row or lookup.find(config, name, lambda: weightless(config))
    config = lookup.text_of(config)
    vocab = int(config.vocab_size)
    stored = outer.dtype if outer.dtype is not None else config.dtype
    own = str(stored).removeprefix("torch.") if stored is not None else "float32"
    return Description(
        name=name,
        revision=revision or "",
        dtype=dtype or own,
        stored_dtype=own,
        row=row,
        config=config,
        tokenizer=tokenizer,
        n_layers=int(config.num_hidden_layers),
        n_neurons=row.n_neurons(config),
        n_heads=int(config.num_attention_heads),
        d_model=int(config.hidden_size),
        vocab_size=vocab,
        vocab_real=min(vocab, len(tokenizer)),
        max_length=getattr(config, "max_position_embeddings", None),
        attends=tuple(row.has_heads(config)),
        after_mlp=row.after_mlp(config),
        n_experts=row.n_experts(config),
        banks=row.banks(config),
        sizes=sizes or {},
    )


def _is_identity(envoy: Any) -> bool:
    from torch import nn

    return isinstance(envoy._module, nn.Identity)


def _offloaded(experts: Any) -> Any:
    """How the weights of experts are read that accelerate keeps elsewhere; None where it does not.

    It fetches them for each call of the module, which is not yet under way when its input is read.
    A model without weights, whose traces a server runs, has none to fetch.
    """
    from accelerate.utils.modeling import has_offloaded_params

    return aligned if has_offloaded_params(experts._module) else None


def aligned(module: torch.nn.Module) -> dict[str, torch.Tensor]:
    """A module's own parameters by name, fetched from where accelerate keeps them."""
    from accelerate.utils import align_module_device

    with align_module_device(module):
        named = module.named_parameters(recurse=False)
        return {name: weight.detach().clone() for name, weight in named}


class Model:
    """A network wrapped by nnsight.

    Made by `load` or `Model.wrap`. Everything of `Description` is an attribute of the model
    too. ``with model.trace(inputs):`` is nnsight's own trace.

    Attributes
    ----------
    nn : nnsight.TransformersModel
    trace : callable
        ``nn.trace``, without a key-value cache.
    final_norm, unembedding : nnsight envoys
    readout : dict
        ``centred``, ``eps``, ``scale``, ``softcap``, and ``normed``, which is False where the
        final norm was replaced by an identity.
    post_readout : dict or None
        ``centred``, ``eps`` of the norm after the MLP.
    multiplier : float
        What the MLP's output is multiplied by before it is added (Granite), else 1.
    learnt : dict of int to float
        What layers multiply their output by (Gemma 4), as far as it was asked for.
    """

    def __init__(self, nn: TransformersModel, description: Description) -> None:
        self.nn = nn
        self.description = description
        # nnsight reads the caller's frame: a Python function in between would hide the body.
        self.trace = functools.partial(nn.trace, use_cache=False)
        row = description.row
        self.final_norm = resolve(nn, row.final_norm)
        self.unembedding = resolve(nn, row.unembedding)
        self.readout = row.readout(description.config)
        if _is_identity(self.final_norm):
            self.readout |= {"centred": False, "eps": 0.0, "normed": False}
        self.post_readout = row.post_readout(description.config)
        self.multiplier = row.mlp_factor(description.config)
        self.learnt: dict[int, float] = {}

    def __getattr__(self, name: str) -> Any:
        """Whatever is known before the weights are read."""
        if name.startswith("__") or name == "description":
            raise AttributeError(name)
        return getattr(self.description, name)

    def __repr__(self) -> str:
        """Name, family, shape and dtype."""
        return (
            f"Model({self.name!r}, {self.architecture}, {self.n_layers} layers of "
            f"{self.n_neurons} neurons, {self.dtype})"
        )

    @classmethod
    def wrap(
        cls,
        network: PreTrainedModel,
        tokenizer: PreTrainedTokenizerBase,
        name: str | None = None,
    ) -> Model:
        """Make a `Model` of a causal language model that is already loaded.

        The network is put into evaluation mode and its parameters need no gradients from then
        on; it is otherwise left as it is.
        """
        from nnsight import TransformersModel

        name = name or network.name_or_path or type(network).__name__
        described = describe_config(
            network.config, tokenizer, name, dtype=str(network.dtype).removeprefix("torch.")
        )
        network.eval().requires_grad_(False)
        with quiet():
            nn = TransformersModel(network, task="text-generation", tokenizer=tokenizer)
        return cls(nn, described)

    def write_spec(self, layer: int = -1) -> dict[str, Any]:
        """Keywords of `confreg.effects.Write`: how a layer's neurons reach the residual stream."""
        post = self.post_readout or {"centred": False, "eps": 0.0}
        return {
            "width": self.description.width(layer),
            "multiplier": self.multiplier * self._layer_scale(self.layer(layer)),
            "post_centred": post["centred"],
            "post_eps": post["eps"],
        }

    def site(self, layer: int = -1) -> Site:
        """One layer, where it is read, written and read out.

        Raises
        ------
        ConfregError
            The model has no such layer.
        """
        from confreg.effects import Site

        return Site(
            neurons=self.down_proj(layer),
            heads=self.attention_out(layer),
            residual=self._block(layer),
            final_norm=self.final_norm,
            unembedding=self.unembedding,
            post_norm=self.post_norm(layer),
            begin=self._block(0),
            readout=self.readout,
            write=self.write_spec(layer),
        )

    def inputs(self, layer: int = -1) -> Inputs:
        """How a layer's neurons read the residual stream.

        Raises
        ------
        ConfregError
            The model has no such layer, or its row does not say which matrices read.
        """
        from confreg.effects import Inputs

        row, block = self.description.row, self._block(layer)
        if not row.up:
            raise ConfregError(
                f"Which matrices give the neurons of {self.name} ({self.architecture}) their "
                "inputs is not known."
            )
        before = row.before_mlp(self.description.config)
        return Inputs(
            up=resolve(block, row.up),
            gate=resolve(block, row.gate) if row.gate not in ("", row.up) else None,
            norm=None if before is None else resolve(block, before),
            width=self.n_neurons,
            fused=row.gate == row.up,
            gate_factor=row.input_factor(self.description.config),
            centred=row.centred,
            eps=row.norm_eps(self.description.config),
        )

    def _layer_scale(self, layer: int) -> float:
        """What the last layer multiplies its output by, else 1: only closed forms ask for it."""
        path = self.description.row.scaled_sum
        if path is None or self.description.after_mlp or layer != self.n_layers - 1:
            return 1.0
        if layer not in self.learnt:
            from confreg.models.scaling import learn

            self.learnt[layer] = learn(self, resolve(self._block(layer), path), layer)
        return self.learnt[layer]

    def down_proj(self, layer: int) -> Any:
        """Envoy of a layer's down-projection, whose input are the neurons; or its experts."""
        row, block = self.description.row, self._block(layer)
        if not row.experts:
            return resolve(block, row.down_projection)
        from confreg.effects import Always, Routed, Weighed

        bank = self.description.banks[layer]
        if not bank.experts:
            return Always(resolve(block, row.plain))
        found = resolve(block, row.down_projection)
        common = {}
        if bank.shared:
            gate = resolve(block, row.shared_gate) if row.shared_gate else None
            common = {
                "whole": resolve(block, row.down_projection.rpartition(".")[0]),
                "shared": resolve(block, row.shared),
                "shared_width": bank.shared,
                "shared_first": row.shared_first,
                "shared_gate": gate,
            }
        kind = Weighed if row.weighs_inputs else Routed
        return kind(found, bank.experts, bank.each, fetch=_offloaded(found), **common)

    def attention_out(self, layer: int) -> Any | None:
        """Envoy of a layer's attention output projection, whose input are its heads' outputs.

        Its input is (rows, length, heads · head width), one slice a *query* head: with
        grouped-query attention, too. None where the layer has no heads.
        """
        path = self.description.row.attention_out
        if path is None or not self.description.attends[self.layer(layer)]:
            return None
        return resolve(self._block(layer), path)

    @contextmanager
    def eager_attention(self) -> Iterator[None]:
        """Compute attention such that patterns are returned, where the family has a choice."""
        network = self.nn._module
        usual = network.config._attn_implementation
        with quiet():  # families without a choice say so, and return patterns when asked to
            network.set_attn_implementation("eager")
        try:
            yield
        finally:
            with quiet():
                network.set_attn_implementation(usual)

    def post_norm(self, layer: int) -> Any | None:
        """Envoy of the norm that a layer applies to its MLP's output, or None.

        Of a hybrid, some layers may have none.
        """
        path, block = self.description.row.post_norm, self._block(layer)
        if path is None or not hasattr(block._module, path.partition(".")[0]):
            return None
        return resolve(block, path)

    def _block(self, layer: int) -> Any:
        return resolve(self.nn, self.description.row.layers)[self.layer(layer)]

    @property
    def torch_dtype(self) -> torch.dtype:
        """The residual stream's dtype, that of the embeddings."""
        return self.nn._module.get_input_embeddings().weight.dtype

    @property
    def device(self) -> torch.device:
        """Where inputs go: the device of the embeddings."""
        return next(self.nn._module.parameters()).device
