"""What would run: everything that is decided before a weight is loaded."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from confreg.declaration import Effect, Recipe
from confreg.errors import ConfregError
from confreg.execution import ablation as ablations
from confreg.execution import heads as head_choosing
from confreg.execution import neurons as choosing
from confreg.execution import sets as set_choosing
from confreg.execution.ablation import Ablation
from confreg.execution.heads import HeadSets
from confreg.execution.neurons import Neurons
from confreg.execution.sets import Sets
from confreg.models.host import available_memory
from confreg.places.profiles import NdifProfile, Profile

if TYPE_CHECKING:
    from confreg.models import Description
    from confreg.tokens import TokenTable
    from confreg.tokens.counts import Counts

ENGINES = ("auto", "series", "exact", "forward")
CLOSED_FORMS = ("series", "exact")
# A unit is what a progress bar advances by and what a killed run loses: some ten seconds.
UNIT_TOKENS = 512
FORWARD_NEURONS = 16
# What a unit's neurons and token counts may take of a request to a server: with the block's source
# that is 100 kB. Neurons are left some of it where counts take nearly all.
UPLOAD, UPLOAD_LEAST = 50_000, 5_000
Span = tuple[int, int]


@dataclass(frozen=True)
class Request:
    """What was asked for, as `confreg.run` and the command line take it."""

    recipe: Recipe
    model: str = "smollm2-135m"
    text: Any = None
    profile: Profile | None = None
    out: Path | None = None
    engine: str = "auto"
    neurons: str = "all"
    sequence_length: int = 256
    max_tokens: int | None = 1024
    per_document: bool = False
    dtype: str | None = None
    reduce: str = "none"
    tolerance: float = 1e-5
    memory: int | None = None
    overwrite: bool = False
    seed: int = 0
    effects: Sequence[str] | None = None
    activations: bool = False
    parameters: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Plan:
    """What would run, and how it is cut into units.

    Attributes
    ----------
    engine : dict of int to str
        The engine of each layer.
    neuron_units, token_units : list of (start, stop)
        Chunks of the store along ``neuron`` and ``token``; a unit of work is a pair of them.
    sets : Sets or HeadSets, optional
        What is ablated, where that is not single neurons.
    scores : ndarray (layers, heads), optional
        Prefix-matching scores by which heads were chosen.
    shared_pass : bool
        Whether the ablation value is found in the pass that measures the effects.
    """

    request: Request
    parameters: dict[str, Any]
    profile: Profile
    model: Description
    table: TokenTable
    neurons: Neurons
    effects: tuple[Effect, ...]
    engine: dict[int, str]
    ablation: Ablation
    memory: int
    neuron_units: list[Span]
    token_units: list[Span]
    counts: Counts | None = None
    sets: Sets | HeadSets | None = None
    scores: np.ndarray | None = None

    @property
    def subjects(self) -> Neurons | Sets | HeadSets:
        """What is ablated: neurons, sets of them (``neurons`` are then their members) or of heads.

        Where heads are ablated, ``neurons`` are those that are watched.
        """
        return self.neurons if self.sets is None else self.sets

    @property
    def subject(self) -> str:
        """The dimension of what is ablated."""
        return "neuron" if self.sets is None else "set"

    @property
    def heads(self) -> HeadSets | None:
        """The sets of attention heads, where that is what is ablated."""
        return self.sets if isinstance(self.sets, HeadSets) else None

    @property
    def unscored(self) -> bool:
        """Whether it only stands for the plan that is made once heads are scored."""
        return self.heads is not None and self.heads.assumed

    @property
    def remote(self) -> bool:
        """Whether it runs on an NDIF server."""
        return isinstance(self.profile, NdifProfile)

    @property
    def mean_over(self) -> np.ndarray:
        """Which tokens the ablation value is over, (T,) bool."""
        wanted = self.parameters.get("mean_over", "all")
        if wanted == "first" and self.table.repeats is not None:
            return self.table.repeats.first
        return self.table.keep if wanted == "kept" else np.ones_like(self.table.keep)

    @property
    def shared_pass(self) -> bool:  # noqa: D102
        return len(self.token_units) == 1 and self.sets is None

    @property
    def cube(self) -> bool:
        """Whether every effect is kept, rather than reductions over tokens."""
        return self.request.reduce == "none"

    @property
    def variables(self) -> list[str]:
        """What every unit of work fills."""
        found = ["loss", "entropy", "norm_scale", "rank", "top1"]
        found += ["kl_frequency"] * (self.counts is not None)
        found += ["effects"] * self.cube + ["activation"] * self.activations
        return found + ["activation_change"] * (self.activations and self.heads is not None)

    @property
    def sums(self) -> dict[str, str]:
        """What every unit adds up over kept tokens, and the dimension of it beside ``subject``."""
        found = {"abs_sum": "effect", "sum": "effect"}
        if self.heads is not None:
            found |= {"change_abs_sum": "neuron", "change_sum": "neuron"}
        return found

    @property
    def activations(self) -> bool:
        """Whether every activation is kept."""
        recipe = self.request.recipe
        followed = recipe.repeats and not recipe.heads
        return self.request.activations or recipe.context or followed

    @property
    def pairs(self) -> int:
        """Ablations × tokens."""
        return len(self.subjects) * len(self.table)

    @property
    def passes(self) -> dict[str, float]:
        """How many times each token goes through the model, by purpose."""
        found: dict[str, float] = {}
        if self.heads is not None:
            length = 2 * int(self.parameters["score_length"])
            scored = int(self.parameters["score_sequences"]) * length / len(self.table)
            found |= {} if self.remote else {"prefix scores": scored}
        elif self.ablation.over_tokens and not self.shared_pass:
            # Of sets also σ, or the means over the two occurrences.
            each = 1 if self.sets is None else 2 if self.table.repeats is None else 3
            found["ablation values"] = float(each * len(self.neurons.layers))
        effects = 0.0
        for start, stop in self.neuron_units:
            forward = self.engine[int(self.subjects.layer[start])] == "forward"
            effects += 1 + (stop - start) if forward else 1
        found["effects"] = effects
        return found

    @property
    def bytes_on_disk(self) -> int:
        """Size of the dataset before compression."""
        n, t, e = len(self.subjects), len(self.table), len(self.effects)
        watched = len(self.neurons) * (self.heads is not None)
        cube = n * e * self.cube + (len(self.neurons) + n * watched) * self.activations
        reductions = len(self.token_units) * n * (e + watched) * 16
        return 4 * t * cube + reductions + t * 80 + n * 60

    def configuration(self) -> dict[str, Any]:
        """What a run must share with a store to go on with it."""
        import confreg

        r = self.request
        return {
            "recipe": r.recipe.name,
            "recipe_sha256": hashlib.sha256(r.recipe.source).hexdigest(),
            "parameters": self.parameters,
            "model": self.model.name,
            "revision": self.model.revision or "",
            "dtype": self.model.dtype,
            "corpus": self.table.corpus,
            "corpus_sha256": self.table.corpus_hash,
            "counts_sha256": self.counts.sha256 if self.counts else "",
            "profile": self.profile.name,
            "engine": r.engine,
            "effects": [e.name for e in self.effects],
            "neurons": r.neurons,
            "neurons_sha256": _digest(self.neurons.labels),
            "tolerance": r.tolerance,
            "reduce": r.reduce,
            "activations": self.activations,
            "seed": r.seed,
            "confreg": confreg.__version__,
        }


def make_plan(
    request: Request,
    model: Description,
    table: TokenTable,
    counts: Counts | None = None,
    scores: np.ndarray | None = None,
) -> Plan:
    """Decide everything that can be decided without weights.

    ``counts`` are the token counts of recipes that take them; ``scores`` are prefix-matching
    scores (layers, heads), without which heads that are to be found by them are only counted.

    Raises
    ------
    ConfregError
        Whatever is wrong with the request, before anything is loaded or written.
    """
    from confreg.places import profiles

    profile = request.profile or profiles.load("memory")
    parameters = request.recipe.bind(request.parameters)
    layer = int(parameters.get("layer", -1))
    sets = None
    if request.recipe.sets:
        choose = set_choosing.alone_and_joint if request.recipe.repeats else set_choosing.choose
        sets = choose(request.neurons, parameters, model, request.seed)
        neurons = sets.neurons
    else:
        neurons = choosing.choose(
            request.neurons, layer, model.n_layers, model.n_neurons, request.seed
        )
    if request.recipe.heads:
        sets = head_choosing.choose(neurons, parameters, model, request.seed, scores)
        _check_heads(request, profile, model, parameters, sets)
    effects = request.recipe.choose(request.effects)
    if not table.keep.any():
        raise ConfregError(
            "No token of this text is kept: a kept token has position 3 or more, a next token, "
            "and neither is special. Give longer text."
        )
    if request.reduce not in ("none", "token"):
        raise ConfregError(f"--reduce is none or token, not {request.reduce!r}.")
    followed = request.recipe.repeats and not request.recipe.heads
    if request.reduce == "token" and (request.recipe.context or followed):
        raise ConfregError(
            f"Recipe {request.recipe.name!r} is about single tokens: it cannot --reduce token. "
            "For sweeps over many neurons use entropy_neurons."
        )
    if request.tolerance <= 0:
        raise ConfregError(f"--tolerance is in nats and above 0, not {request.tolerance}.")
    engine = {
        at: _engine(request.engine, at == model.n_layers - 1, effects) for at in neurons.layers
    }
    memory = request.memory or _memory(profile)
    if request.recipe.heads:
        engine = dict.fromkeys(engine, "forward")
    elif sets is not None:
        if request.activations and not request.recipe.repeats:
            raise ConfregError("Sets are ablated here: --activations are kept for single neurons.")
        engine = {at: "exact" if e == "series" else e for at, e in engine.items()}
    subjects = neurons if sets is None else sets
    spans = _Spans(model, table, subjects, len(effects), engine, memory, request, profile, counts)
    neuron_units, token_units = spans.neurons(), spans.tokens()
    return Plan(
        request=request,
        parameters=parameters,
        profile=profile,
        model=model,
        table=table,
        neurons=neurons,
        effects=effects,
        engine=engine,
        ablation=ablations.read(parameters.get("ablation", "mean")),
        memory=memory,
        neuron_units=neuron_units,
        token_units=token_units,
        counts=counts,
        sets=sets,
        scores=scores,
    )


def _check_heads(
    request: Request,
    profile: Profile,
    model: Description,
    parameters: Mapping[str, Any],
    sets: HeadSets,
) -> None:
    if request.engine not in ("auto", "forward"):
        raise ConfregError(
            f"Engine {request.engine!r} is algebra of the last layer's neurons: heads are ablated "
            "by --engine forward (or auto)."
        )
    longest, scored = model.max_length, 2 * int(parameters["score_length"]) + 1
    remote = isinstance(profile, NdifProfile)  # there, heads are not scored
    if longest is not None and scored > longest and not remote:
        raise ConfregError(
            f"{model.name} has positions for {longest} tokens; heads would be scored on sequences "
            f"of {scored}: lower score_length."
        )
    if sets.assumed and remote:
        raise ConfregError(
            "Heads are scored by their attention patterns, and a server's attention returns none: "
            "name the heads, -p heads=5.1,7.2, for instance those that a run elsewhere has found."
        )


def _engine(wanted: str, last_layer: bool, effects: Iterable[Effect]) -> str:
    if wanted not in ENGINES:
        raise ConfregError(f"--engine is one of {', '.join(ENGINES)}, not {wanted!r}.")
    from confreg.effects.measures import TILTED, VARIANTS

    if any(e.name.startswith("norm_scale") for e in effects):
        if wanted in CLOSED_FORMS:
            raise ConfregError(
                f"Engine {wanted!r} reads effects off logits; norm_scale_total is measured by "
                "--engine forward (or auto)."
            )
        return "forward"
    # Beside those, the series computes any effect pair by pair.
    series = [f"{measure}_{variant}" for measure in TILTED for variant in VARIANTS]
    quick = any(e.name in series for e in effects)
    if wanted == "auto":
        return "forward" if not last_layer else "series" if quick else "exact"
    if wanted in CLOSED_FORMS and not last_layer:
        raise ConfregError(
            f"Engine {wanted!r} is algebra of the last layer; for earlier layers use "
            "--engine forward (or auto)."
        )
    if wanted == "series" and not quick:
        raise ConfregError(
            f"Engine 'series' is for {', '.join(series)}; for other effects alone use "
            "--engine exact."
        )
    return wanted


def _memory(profile: Profile) -> int:
    if isinstance(profile, NdifProfile):
        return int(profile.memory)
    # Placing a model fills at most 0.6 of it.
    return available_memory() // 4


@dataclass(frozen=True)
class _Spans:
    """Cuts neurons and tokens into units that fit the memory budget."""

    model: Description
    table: TokenTable
    neurons_: Neurons | Sets | HeadSets
    n_effects: int
    engine: dict[int, str]
    memory: int
    request: Request
    profile: Profile
    counts: Counts | None

    @property
    def forward(self) -> bool:
        return "forward" in self.engine.values()

    @property
    def length(self) -> int:
        return max(map(len, self.table.sequences))

    def neurons(self) -> list[Span]:
        """Units of one layer each: few neurons for ``forward``, else as many as fit."""
        if self.forward:
            most = max(self.memory // (self.length * self.model.vocab_size * 16) - 1, 1)
            most = min(most, FORWARD_NEURONS)
        else:
            most = max(self.memory // 4 // (self.length * self.n_effects * 8), 1)
        if isinstance(self.profile, NdifProfile):
            most = min(most, self._uploaded())
        spans = []
        for layer in self.neurons_.layers:
            where = np.flatnonzero(self.neurons_.layer == layer)
            start, stop = int(where[0]), int(where[-1]) + 1
            count = -(-(stop - start) // most)
            size = -(-(stop - start) // count)
            spans += [(a, min(a + size, stop)) for a in range(start, stop, size)]
        return spans

    def tokens(self) -> list[Span]:
        """Units of whole sequences where they are of equal length."""
        total, length = len(self.table), self.length
        most = max(stop - start for start, stop in self.neurons())
        per_token = 24 * self.model.vocab_size + 8 * most * (self.n_effects + 1)
        fit = max(int(self.memory * 0.6) // per_token // length, 1) * length
        if self.forward:
            fit = length
        elif not self._whole_passes():
            fit = min(fit, max(UNIT_TOKENS // length, 1) * length)
        return [(a, min(a + fit, total)) for a in range(0, total, fit)]

    def _uploaded(self) -> int:
        """How many neurons, or sets of them, a request may name."""
        # An index and an ablation value each, as they compress.
        each = 6
        if isinstance(self.neurons_, Sets):
            each = 60 + 8 * max(map(len, self.neurons_.members))
        left = UPLOAD
        if self.counts is not None:
            counts = self.counts.bytes_sent(self.model.vocab_real)
            # Counts of a vocabulary so large are more than that by themselves.
            left = UPLOAD - counts if counts < UPLOAD else UPLOAD // 2
        return max(max(left, UPLOAD_LEAST) // each, 1)

    def _whole_passes(self) -> bool:
        # Where a pass is dear (weights read from disk, a request), tokens share it.
        offloaded = getattr(self.profile, "device_map", None) is not None
        return offloaded or isinstance(self.profile, NdifProfile)


def _digest(labels: np.ndarray) -> str:
    return hashlib.sha256("\n".join(labels.tolist()).encode()).hexdigest()
