"""What confreg knows of an architecture: a row of its table.

A row says where a family keeps its decoder layers, the down-projection whose inputs are the
neurons, the final norm and the unembedding, and how logits are finished.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from dataclasses import dataclass, fields, replace
from typing import Any

from confreg.models.banks import Bank

DERIVED = "derived"
"""The origin of a row that is no one's own."""


def value_of(config: Any, value: Any) -> Any:
    """A number, or the configuration's attribute, or a function of it."""
    if isinstance(value, str):
        return getattr(config, value)
    return value(config) if callable(value) else value


def every_layer(config: Any) -> list[bool]:
    """True of each layer."""
    return [True] * config.num_hidden_layers


@dataclass(frozen=True)
class Architecture:
    """One family of models, as ``transformers`` names it (``config.model_type``).

    Attributes
    ----------
    model_type, title : str
        transformers' name, and the name people use.
    layers, final_norm, unembedding : str
        Dotted paths from the model.
    down_projection, attention_out, post_norm : str
        Dotted paths from a layer; ``attention_out`` is the projection whose input are the
        outputs of the attention's query heads side by side, None where there is no such one;
        ``post_norm`` normalises the MLP's output before it is added to the residual stream, and is
        None where there is none.
    up, gate : str
        Dotted paths from a layer: matrices of the MLP whose outputs (the gate's after the
        activation function) multiplied are the neurons; ``gate`` is empty where the activation
        function of ``up`` is what they are, and the same as ``up`` where one matrix has the gate's
        rows above the others. ``up`` is empty where it is not known.
    gate_factor : float, str or callable
        What the gate's output is multiplied by before the activation function.
    norm_before : str, callable or None
        Dotted path from a layer, or a function of the configuration: the norm whose output ``up``
        and ``gate`` are given; None where they are given the residual stream itself.
    attends : callable
        Of the configuration: which layers have attention heads, of each.
    no_heads : str
        Why there is no ``attention_out``, in a clause.
    centred : bool
        True for LayerNorm, False for RMSNorm.
    eps : str or float
        The configuration's attribute that holds the norms' ε, or ε itself.
    width : str, int or callable
        Neurons of one layer, or of each of its experts: the configuration's attribute, a number, or
        a function of it.
    experts : str
        The configuration's attribute that says how many routed experts a layer has, of which the
        module at ``down_projection`` holds the weights; empty where there are none.
    routes : callable
        Of the configuration, in families with routed experts: which layers have them, of each.
    plain, plain_width : str
        Where the others have their down-projection, path from a layer; and the configuration's
        attribute of how many neurons it has.
    shared, shared_gate : str
        Paths from a layer: down-projection of the expert that all tokens share, and what gives
        the number whose sigmoid multiplies what it adds; empty where there is no such one.
    shared_width : int, str or callable
        Neurons of the shared expert, as ``width``.
    shared_first : bool
        Whether the shared expert is called before the routed ones.
    weighs_inputs : bool
        Whether routing weights multiply what experts are given, in place of what they return.
    scale, multiplier : float, str or callable
        Numbers, the configuration's attributes, or functions of it: what raw logits, and what the
        MLP adds to the residual stream (after ``post_norm``), are multiplied by.
    softcap : str or None
        The configuration's attribute of the cap on final logits.
    parallel : bool
        Whether attention and MLP read the same residual (for `confreg models` only).
    also : tuple of str
        What else distinguishes the family (for `confreg models` only).
    refuse : callable
        Of the configuration: why a variant of this family cannot be measured, or None.
    after_mlp : callable
        Of the configuration: what follows a layer's MLP and keeps the closed forms from the last
        layer, in a clause, or "".
    scaled_sum : str or None
        Where a layer multiplies its output by a number of its own: path from a layer of the norm
        before the MLP, whose input is what the MLP's output (after ``post_norm``) is added to.
    wraps : str
        Of a multimodal model, transformers' name of the text model in it.
    left_out : tuple of str
        Of a multimodal model of which transformers makes the text model alone, and does not say
        so: what the names of weights begin with that are of its other parts.
    origin : str
        Where a row is from that no test covers: "derived", or a user's file or package.
    """

    model_type: str
    title: str
    layers: str
    down_projection: str
    final_norm: str
    centred: bool
    eps: str | float
    unembedding: str = "lm_head"
    width: str | int | Callable[[Any], int] = "intermediate_size"
    experts: str = ""
    routes: Callable[[Any], list[bool]] = every_layer
    plain: str = "mlp.down_proj"
    plain_width: str = "intermediate_size"
    shared: str = ""
    shared_gate: str = ""
    shared_width: str | int | Callable[[Any], int] = 0
    shared_first: bool = False
    weighs_inputs: bool = False
    attention_out: str | None = None
    attends: Callable[[Any], list[bool]] = every_layer
    no_heads: str = ""
    up: str = ""
    gate: str = ""
    gate_factor: float | str | Callable[[Any], float] = 1.0
    norm_before: str | Callable[[Any], str | None] | None = None
    post_norm: str | None = None
    scale: float | str | Callable[[Any], float] = 1.0
    multiplier: float | str | Callable[[Any], float] = 1.0
    softcap: str | None = None
    parallel: bool = False
    also: tuple[str, ...] = ()
    refuse: Callable[[Any], str | None] = lambda config: None
    after_mlp: Callable[[Any], str] = lambda config: ""
    scaled_sum: str | None = None
    wraps: str = ""
    left_out: tuple[str, ...] = ()
    origin: str = ""

    def inside(self, model_type: str, title: str, decoder: str) -> Architecture:
        """The same family inside a multimodal model, whose decoder has another path."""
        own = self.layers.rpartition(".")[0]

        def moved(path: str) -> str:
            return f"{decoder}.{path.removeprefix(own + '.')}"

        return replace(
            self,
            model_type=model_type,
            title=f"{title} (around {self.title})",
            layers=moved(self.layers),
            final_norm=moved(self.final_norm),
            wraps=self.model_type,
        )

    def n_neurons(self, config: Any) -> int:
        """Neurons of one layer, of the one that has most: inputs of down-projections."""
        banks = self.banks(config)
        return max(bank.size for bank in banks) if banks else int(value_of(config, self.width))

    def banks(self, config: Any) -> tuple[Bank, ...]:
        """The neurons of each layer, in families with routed experts; empty in others."""
        if not self.experts:
            return ()
        width, shared = (int(value_of(config, each)) for each in (self.width, self.shared_width))
        per_token = getattr(config, "num_experts_per_tok", None) or 0
        routed = Bank(self.n_experts(config), width, shared, per_token)
        plain = Bank(0, int(getattr(config, self.plain_width)))
        return tuple(routed if there else plain for there in self.routes(config))

    def n_experts(self, config: Any) -> int:
        """Routed experts of one layer; 1 where there are none."""
        return int(getattr(config, self.experts)) if self.experts else 1

    def mlp_factor(self, config: Any) -> float:
        """What the MLP adds is multiplied by."""
        return float(value_of(config, self.multiplier))

    def input_factor(self, config: Any) -> float:
        """What the gate's output is multiplied by."""
        return float(value_of(config, self.gate_factor))

    def before_mlp(self, config: Any) -> str | None:
        """Path from a layer of the norm whose output the MLP is given; None where there is none."""
        return self.norm_before(config) if callable(self.norm_before) else self.norm_before

    def of_a_layer(self, config: Any) -> list[str]:
        """Paths from a layer of all modules that are named, in order."""
        named = {
            self.down_projection, self.plain, self.shared, self.shared_gate, self.attention_out,
            self.post_norm, self.up, self.gate, self.scaled_sum, self.before_mlp(config),
        }  # fmt: skip
        return sorted(filter(None, named))

    def has_heads(self, config: Any) -> list[bool]:
        """Which layers have attention heads that can be told apart, of each."""
        return [there and self.attention_out is not None for there in self.attends(config)]

    def norm_eps(self, config: Any) -> float:
        """Return ε of the norms."""
        return float(value_of(config, self.eps))

    def readout(self, config: Any) -> dict[str, Any]:
        """Keywords of `confreg.effects.read_readout` that the configuration knows."""
        cap = getattr(config, self.softcap, None) if self.softcap else None
        return {
            "centred": self.centred,
            "eps": self.norm_eps(config),
            "scale": float(value_of(config, self.scale)),
            "softcap": None if cap is None else float(cap),
        }

    def post_readout(self, config: Any) -> dict[str, Any] | None:
        """Kind and ε of the norm after the MLP, or None where there is none."""
        if self.post_norm is None:
            return None
        return {"centred": self.centred, "eps": self.norm_eps(config)}

    def digest(self, config: Any) -> str:
        """A digest of all that the row says of a configuration, hexadecimal."""
        values = {each.name: getattr(self, each.name) for each in fields(self)}
        said = {name: each(config) if callable(each) else each for name, each in values.items()}
        return hashlib.sha256(json.dumps(said, sort_keys=True, default=str).encode()).hexdigest()

    def traits(self) -> str:
        """What distinguishes the family, in a few words."""
        words = ["LayerNorm" if self.centred else "RMSNorm"]
        words += ["parallel blocks"] * self.parallel
        words += ["norm after the MLP"] * (self.post_norm is not None)
        words += ["routed experts"] * bool(self.experts)
        words += ["softcap"] * (self.softcap is not None)
        words += ["scaled layers"] * (self.scaled_sum is not None)
        words += ["heads cannot be ablated"] * (self.attention_out is None)
        return ", ".join([*words, *self.also])


def resolve(root: Any, path: str) -> Any:
    """Follow a dotted path of attributes; works on modules and on nnsight's envoys."""
    for part in path.split("."):
        root = getattr(root, part)
    return root
