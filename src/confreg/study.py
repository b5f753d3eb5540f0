"""A study: what a recipe is planned on, a model, a text and a run's options."""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np

from confreg.axes import Axis, Later
from confreg.errors import ConfregError
from confreg.options import Options
from confreg.progress import waiting
from confreg.sweep.budget import Budget

if TYPE_CHECKING:
    import torch

    from confreg.effects import Effect
    from confreg.models.network import Network
    from confreg.steps.routing import Routing
    from confreg.subjects.heads import HeadAxis
    from confreg.subjects.neurons import NeuronAxis
    from confreg.subjects.routing import Order
    from confreg.subjects.sets import LaterSets, SetAxis, Sets
    from confreg.subjects.ways import Way
    from confreg.tokens import Corpus, TokenTable
    from confreg.tokens.axis import Text
    from confreg.tokens.counts import Counts


class Study:
    """What a recipe's function is given first. No weights are read.

    Attributes
    ----------
    model : Network
        The model of the run.
    options : Options
        What the run was told: ``options.seed``, ``options.neurons``, ``options.activations`` ...
    budget : Budget
        What one unit of work may take where it runs.
    is_remote : bool
        Whether traces run on a server.
    """

    def __init__(
        self,
        model: Network,
        options: Options,
        budget: Budget,
        usual: Sequence[Effect] = (),
        on_request: Sequence[Effect] = (),
        recipe: str = "",
        routed: Order | None = None,
    ) -> None:
        self.model, self.options, self.budget = model, options, budget
        self._usual, self._on_request, self._recipe = tuple(usual), tuple(on_request), recipe
        self.attributes: dict[str, str | int | float] = {}
        self._read: TokenTable | None = None
        self._routed: Order = routed or {}
        self._by_routing: dict[int, int] = {}

    @property
    def is_remote(self) -> bool:
        """Whether traces run on a server."""
        return self.budget.upload is not None

    @property
    def seed(self) -> int:
        """Of everything drawn at random."""
        return self.options.seed

    def effects(self, *also: Effect) -> tuple[Effect, ...]:
        """The recipe's effects that are to be measured.

        Those of ``--effects`` (all: those for which the text has what they take), or else its usual
        ones; with what they need, and ``also``. They
        stand in the order in which the recipe declares them.

        Raises
        ------
        ConfregError
            An effect that the recipe does not declare, with the list of those that it does.
        """
        from confreg.derive.means import reduced

        every = (*self._usual, *self._on_request)
        asked = self.options.effects
        if asked is None:
            wanted = [effect.name for effect in self._usual]
        elif asked == ["all"]:
            wanted = [effect.name for effect in every if self._answers(effect.measure.along)]
        else:
            wanted = [*asked, *(effect.name for effect in also)]
        known = {effect.name: effect for effect in every}
        for name in wanted:
            if name not in known:
                raise ConfregError(
                    f"Recipe {self._recipe!r} has no effect {name!r}. It has: {', '.join(known)}."
                )
        needed = [needs for name in wanted for needs in known[name].needs]
        found = tuple(effect for effect in every if effect.name in [*wanted, *needed])
        if own := reduced(found):
            self.attributes["effects_reduced"] = " ".join(own)
        return found

    @functools.cached_property
    def _named(self) -> str:
        from confreg.subjects.elsewhere import expand

        return expand(self.options.neurons, self.model)

    def named(self, layer: int) -> str:
        """``--neurons``, with what files, earlier runs and routing stand for written out.

        Parameters
        ----------
        layer : int
            The layer that ``all``, ``random:N`` and ``routed:top:N`` mean; negative ones count from
            the end.
        """
        return self._settled(self._named, layer)

    def _settled(self, spec: str, layer: int) -> str:
        """A specification with what routing stands for written out."""
        from confreg.subjects import routing

        if not routing.asked(spec):
            return spec
        layer = self.model.about.layer(layer)
        found = routing.expand(spec, layer, self.model.about, self._routed)
        self._by_routing[layer] = max(routing.wanted(spec), self._by_routing.get(layer, 0))
        return found

    def routing(self) -> Routing | None:
        """What the text's routing has to say of the neurons that were asked for, if anything.

        It is over the kept tokens of the text that the recipe reads; where it reads none, of the
        run's text.
        """
        from confreg.steps.routing import Routing

        if not self._by_routing:
            return None
        if self._read is None:
            self._text(self._table())
        assert self._read is not None
        text = self._fed(self._read, "sample")
        return Routing(self.model.about, text, self._by_routing, self._routed)

    def _answers(self, along: str | None) -> bool:
        """Whether the text has what a measure runs along, if it runs along anything."""
        from confreg.tokens import answers

        return along is None or (self._read is not None and answers.has(self._read, along))

    @functools.cached_property
    def corpus(self) -> Corpus:
        """The text that was named."""
        from confreg import tokens

        return tokens.read(self.options.text)

    def tokens(self, counts: Counts | None = None) -> Text:
        """The text as an axis, ``token``: cut into sequences of ``--sequence-length``.

        Prompts and chats are a sequence each, see `confreg.tokens.documents`; what answers them is
        ``tokens().table.answers``.

        Parameters
        ----------
        counts : Counts, optional
            Of tokens, where the recipe has them: for ``--by frequency``.

        Raises
        ------
        ConfregError
            No token is kept, sequences are longer than the model has positions for, or tokens have
            no such label as ``--by`` asks for.
        """
        return self._text(self._table(), counts)

    def _table(self, keep: bool = True, corpus: Corpus | None = None) -> TokenTable:
        from confreg import tokens

        o, about = self.options, self.model.about
        columns = (o.columns or ()) if corpus is None else ()
        corpus = corpus or self.corpus
        with waiting(f"tokenising {corpus.name}"):
            return tokens.lay_out(
                corpus, about.tokenizer, o.sequence_length, o.max_tokens, o.per_document,
                o.bos, columns=columns, keep=(o.keep or ()) if keep else (),
                template=o.chat_template_kwargs, positions=about.max_length,
            )  # fmt: skip

    def sample(self, text: str = "") -> Text:
        """The run's text as it is, as the axis ``sample``: for means over ordinary text.

        It is cut as `tokens` cuts it, and has no labels of its own.

        Parameters
        ----------
        text : str
            Other text in its place, named as ``--text`` is.
        """
        from confreg import tokens

        corpus = tokens.read(text) if text else None
        return self._fed(self._table(keep=False, corpus=corpus), "sample")

    def repeats(
        self,
        repeats: str = "text",
        *,
        length: int = 100,
        separator: str = "",
        ngram: int = 6,
        gap: int = 1,
        count: int | None = None,
        banned: str = "repeated,special,wordless",
    ) -> Text:
        """Text that comes again, as the axis ``token``.

        Parameters
        ----------
        repeats : {"text", "random", "ngrams"}
            Pieces of the corpus or random tokens, repeated once, or n-grams that come again by
            themselves.
        length, separator, ngram, gap, count, banned
            See `confreg.tokens.repeats`.

        Raises
        ------
        ConfregError
            As `tokens`, or the numbers make no sense.
        """
        from confreg import tokens
        from confreg.tokens.laying import USUAL

        o = self.options
        if o.bos == "text":
            raise ConfregError(
                "--bos text is for running text: what comes again is laid out in sequences that "
                "begin with the tokenizer's own token, where it has one."
            )
        if o.columns or o.keep or o.chat_template_kwargs:
            raise ConfregError(
                "--columns, --keep and --chat-template-kwargs are for text as it is: what comes "
                "again has labels of its own, and keeps the second occurrence."
            )
        most = USUAL if o.max_tokens == "usual" else o.max_tokens
        with waiting(f"looking for what comes again in {self.corpus.name}"):
            table = tokens.repeats.of_kind(
                self.corpus, self.model.about.tokenizer, o.sequence_length, most, o.seed,
                repeats=repeats, length=length, separator=separator, ngram=ngram, gap=gap,
                count=count, banned=banned, rows=self.model.about.vocab_size,
            )  # fmt: skip
        return self._text(table)

    def _text(self, table: TokenTable, counts: Counts | None = None) -> Text:
        from confreg.tokens.groups import grouped

        axis = self._fed(table)
        self._read = table
        if not table.keep.any():
            raise ConfregError(
                "No token of this text is kept: a kept token has position 3 or more, a next token, "
                "and neither is special. Give longer text."
            )
        self.attributes |= {
            "tokenizer": table.tokenizer,
            "corpus": table.corpus,
            "corpus_sha256": table.corpus_hash,
            "sequence_length": table.sequence_length,
            **({"text_warning": table.warning} if table.warning else {}),
        }
        by = self.options.by
        return axis if by is None else grouped(axis, by, counts)

    def _fed(self, table: TokenTable, name: str = "token") -> Text:
        """Text as an axis, if the model takes it: of its own tokens, and no longer than may be."""
        from confreg.models.positions import alike
        from confreg.tokens.axis import text_axis

        about = self.model.about
        if about.max_length is not None and table.sequence_length > about.max_length:
            raise ConfregError(
                f"{about.name} has positions for {about.max_length} tokens; sequences of "
                f"{table.sequence_length} were asked for."
            )
        beyond = int(table.token_id.argmax())
        if table.token_id[beyond] >= about.vocab_size:
            raise ConfregError(
                f"The text has the token {table.token_id[beyond]} ({table.text[beyond]!r}), and "
                f"{about.name} has rows for {about.vocab_size:,}: tokens were added to its "
                "tokenizer and none to the model. Take that token out of the text, or save the "
                "model after model.resize_token_embeddings(len(tokenizer))."
            )
        lengths = np.array([len(ids) for ids in table.sequences])
        kinds = alike(lengths, about)
        axis = text_axis(table, name)
        return axis if kinds is None else replace(axis, together=kinds[table.sequence])

    def neurons(
        self, layer: int = -1, *, of: Network | None = None, name: str = "neuron", spec: str = ""
    ) -> NeuronAxis:
        """Neurons as an axis: those that ``--neurons`` names, by default all of a layer.

        Parameters
        ----------
        layer : int
            Which layer ``all``, ``random:N`` and ``routed:top:N`` mean; negative ones count from
            the end.
        of : Network, optional
            Another model, whose whole layer is meant. It must have the study's tokens.
        name : str
            Of the axis.
        spec : str
            In place of ``--neurons``.

        Raises
        ------
        ConfregError
            Neurons that do not exist, or another model that has other tokens.
        """
        from confreg.subjects.elsewhere import expand
        from confreg.subjects.neurons import choose, neuron_axis

        about = self.model.about if of is None else of.about
        if of is not None:
            self._check_tokens(of)
        if spec:
            spec = expand(spec, of or self.model)
            spec = self._settled(spec, layer) if of is None else spec
        else:
            spec = "all" if of is not None else self.named(layer)
        chosen = choose(spec, layer, about.n_layers, about.n_neurons, self.seed, about.banks)
        return neuron_axis(chosen, about.n_neurons, name)

    def every_neuron(self) -> NeuronAxis:
        """Neurons as an axis: those that ``--neurons`` names, by default all of every layer.

        Raises
        ------
        ConfregError
            Neurons that do not exist.
        """
        from confreg.subjects.neurons import first_of, neuron_axis

        if self.options.neurons != "all":
            return self.neurons()
        about = self.model.about
        layers = range(about.n_layers)
        every = first_of(layers, [about.width(layer) for layer in layers], about.banks)
        return neuron_axis(every, about.n_neurons)

    def _check_tokens(self, other: Network) -> None:
        mine, theirs = self.model.about.tokenizer, other.about.tokenizer
        if mine.get_vocab() != theirs.get_vocab():
            raise ConfregError(
                f"{other.name} has other tokens than {self.model.name}: the same text is not the "
                "same tokens for both. Choose models that share a tokenizer."
            )

    def sets(
        self,
        layer: int = -1,
        *,
        random: int = 100,
        deviations: str = "-1,0,1",
        controls: str = "random",
    ) -> SetAxis | LaterSets:
        """Sets of neurons as the axis ``set``: those that ``--neurons`` names, and random ones.

        Parameters
        ----------
        layer : int
            As of `neurons`.
        random : int
            How many random sets of the same size a chosen one has as controls.
        deviations : str
            The k of the ablation values mean + k·σ, separated by commas.
        controls : {"random", "norm"}
            ``"norm"``: random sets whose neurons are like the chosen ones in ‖w_out‖. The axis is
            then known once `steps.control_norms` is stored, and its neurons are the whole layer.

        Raises
        ------
        ConfregError
            Sets of several layers, a whole layer, or too few neurons left to draw from.
        """
        from confreg.subjects.sets import against_controls

        about, named, seed = self.model.about, self.named(layer), self.seed

        def draw(norms: np.ndarray | None) -> Sets:
            return against_controls(named, layer, about, seed, random, deviations, norms)

        return self._sets(draw, controls)

    def fixed_sets(
        self,
        layer: int = -1,
        *,
        ways: Sequence[Way],
        random: int = 100,
        controls: str = "random",
    ) -> SetAxis | LaterSets:
        """Sets of neurons as the axis ``set``, each fixed in several ways, and random ones.

        Parameters
        ----------
        layer, controls
            As of `sets`.
        ways : sequence of Way
            See `confreg.subjects.ways`; what they are of is found by `steps.typical_values`.
        random : int
            How many random sets a chosen one has as controls. None holds a neuron of any chosen
            set.

        Raises
        ------
        ConfregError
            As `sets`.
        """
        from confreg.subjects.sets import fixed

        about, named, seed = self.model.about, self.named(layer), self.seed

        def draw(norms: np.ndarray | None) -> Sets:
            return fixed(named, layer, about, seed, random, ways, norms)

        return self._sets(draw, controls)

    def _sets(
        self, draw: Callable[[np.ndarray | None], Sets], controls: str
    ) -> SetAxis | LaterSets:
        from confreg.subjects.sets import set_axis, sets_like

        width = self.model.about.n_neurons
        self.attributes |= {"controls": controls}
        return set_axis(draw(None), width) if controls == "random" else sets_like(draw, width)

    def alone_and_joint(
        self, layer: int = -1, *, random: int = 20, controls: str = "random"
    ) -> SetAxis | LaterSets:
        """Chosen neurons each alone and each set of them jointly, plain and clipped: axis ``set``.

        Parameters
        ----------
        layer : int
            As of `neurons`.
        random : int
            How many random neurons, and random sets of the size of each chosen one, are controls.
        controls : {"random", "norm"}
            As of `sets`.

        Raises
        ------
        ConfregError
            As `sets`.
        """
        from confreg.subjects.sets import alone_and_joint

        about, named, seed = self.model.about, self.named(layer), self.seed

        def draw(norms: np.ndarray | None) -> Sets:
            return alone_and_joint(named, layer, about, seed, random, norms)

        return self._sets(draw, controls)

    def heads(
        self,
        heads: str,
        watched: NeuronAxis,
        *,
        random: int = 20,
        controls: str = "same",
    ) -> HeadAxis | Later:
        """Sets of attention heads as the axis ``set``, chosen ones and random ones.

        Where they are chosen by score, the axis is known once ``prefix_score`` is stored.

        Parameters
        ----------
        heads : str
            ``above:0.7``, ``top:3`` or ``5.1,7.2``.
        watched : NeuronAxis
            Neurons of one layer; heads of later layers cannot change them.
        random : int
            Random sets of as many heads, as controls of each chosen one.
        controls : {"same", "any"}
            Of which layers.

        Raises
        ------
        ConfregError
            Heads that do not exist or are out of reach, or none left to draw controls from.
        """
        from confreg.subjects import heads as choosing

        about = self.model.about

        def axis(scores: np.ndarray | None) -> HeadAxis:
            found = choosing.choose(
                watched.neurons, about, self.seed, heads, random, controls, scores
            )
            return choosing.head_axis(found, about.n_heads)

        self.attributes |= {"ablation": "bos", "heads": heads, "controls": controls}
        assumed = axis(None)
        if choosing.is_named(heads):
            return assumed

        def known(stored: Mapping[str, np.ndarray]) -> Axis:
            return axis(stored["prefix_score"])

        return Later("set", known, assumed)

    def counts(self, spec: str | None = None) -> Counts:
        """Token counts: of a file, of other text, or of the whole text of the run.

        Parameters
        ----------
        spec : str, optional
            A .npy or .csv file, or text to count such as ``hf:dataset``.
        """
        from confreg import tokens

        about = self.model.about
        with waiting(f"counting the tokens of {spec or self.corpus.name}"):
            found = tokens.counts.read(spec, self.corpus, about.tokenizer, about.vocab_size)
        return found.owned_by(about.owned)

    @property
    def two_tokens(self) -> torch.Tensor:
        """The text of a trace that only calls modules, (1, 2)."""
        import torch

        return torch.zeros(1, 2, dtype=torch.int64)


def describe_parameters(parameters: Mapping[str, Any]) -> dict[str, Any]:
    """A recipe's parameters as they are written down: models by name."""

    def said(value: Any) -> Any:
        if isinstance(value, tuple):
            return ",".join(str(said(each)) for each in value)
        return value if isinstance(value, str) else getattr(value, "name", value)

    return {name: said(value) for name, value in parameters.items()}
