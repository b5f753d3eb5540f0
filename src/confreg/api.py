"""`confreg.run` and `confreg.make_plan`: what the command line and notebooks call."""

from __future__ import annotations

import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from confreg import declaration as recipes
from confreg.declaration import Recipe
from confreg.errors import ConfregError
from confreg.execution import plan as plans
from confreg.execution.plan import Plan, Request
from confreg.places import profiles
from confreg.places.profiles import NdifProfile, Profile

if TYPE_CHECKING:
    import xarray as xr

    from confreg.models import Description, Model
    from confreg.progress import Progress
    from confreg.tokens import Corpus, TokenTable
    from confreg.tokens.counts import Counts


def run(
    recipe: str | Path | Recipe,
    *,
    model: str | Model = "smollm2-135m",
    text: str | Path | Sequence[str] | Sequence[Path] | Corpus | None = None,
    profile: str | Path | Profile = "memory",
    overrides: Mapping[str, Any] | None = None,
    out: str | Path | None = None,
    engine: str = "auto",
    neurons: str = "all",
    sequence_length: int = 256,
    max_tokens: int | None = 1024,
    per_document: bool = False,
    dtype: str | None = None,
    effects: Sequence[str] | None = None,
    activations: bool = False,
    reduce: str = "none",
    tolerance: float = 1e-5,
    memory: int | str | None = None,
    overwrite: bool = False,
    seed: int = 0,
    progress: bool = True,
    command_line: str | None = None,
    **parameters: Any,
) -> xr.Dataset:
    """Run a recipe and open the dataset that it wrote.

    A run into an existing store goes on where that store stopped, if it was made by the same
    configuration.

    Parameters
    ----------
    recipe : str, Path or Recipe
        A name (see ``confreg recipes``), the path of a recipe file, or a recipe.
    model : str or Model
        An alias, a Hugging Face id (``id@revision``), a local folder, a GGUF file, or a
        loaded `confreg.models.Model`.
    text : optional
        None for the default text; a list of strings is the documents themselves; a string, a
        path or a list of paths names files, folders, globs or ``hf:dataset``.
    profile : str, Path or Profile
        Where to run, see ``remote_conf/``. ``overrides`` sets single values by dotted name.
    out : str or Path, optional
        The Zarr directory to write; by default a new one in the temporary folder.
    engine : {"auto", "series", "exact", "forward"}
        ``auto``: closed form on the last layer, real interventions elsewhere.
    neurons : str
        ``all`` (of the recipe's layer), ``11.584,11.2378``, ``31:0-511``, ``random:100``.
    sequence_length, max_tokens : int
        How text is cut, and how much of it is used (None: all of it).
    per_document : bool
        Begin a new sequence with every document.
    dtype : str, optional
        Of the weights; by default the checkpoint's.
    effects : sequence of str, optional
        Names of the recipe's effects, or ``["all"]``; by default its default ones.
    activations : bool
        Keep every activation: ``activation (neuron, token)``.
    reduce : {"none", "token"}
        ``token`` keeps only the reductions over tokens, not the cube.
    tolerance : float
        Of engine ``series``, nats per neuron, token and effect.
    memory : int or str, optional
        Budget beside the model, ``"2GB"``; by default a quarter of what is free.
    overwrite : bool
        Replace an existing store.
    seed : int
        Of random neurons and of the pairs on which the error is measured.
    progress : bool
        Show progress bars.
    **parameters
        The recipe's own parameters.

    Returns
    -------
    xarray.Dataset
        Opened lazily from ``out``, with the accessor ``ds.confreg``.

    Raises
    ------
    ConfregError
        Anything that the caller can mend, in a sentence.
    """
    given = {k: v for k, v in locals().items() if k in _REPORTED and v != _DEFAULTS[k]}
    request, loaded = _request(
        recipe=recipe, model=model, text=text, profile=profile, overrides=overrides, out=out,
        engine=engine, neurons=neurons, sequence_length=sequence_length, max_tokens=max_tokens,
        per_document=per_document, dtype=dtype, effects=effects, activations=activations,
        reduce=reduce, tolerance=tolerance, memory=memory, overwrite=overwrite, seed=seed,
        parameters=parameters,
    )  # fmt: skip
    if command_line is None:
        said = {**given, **parameters}
        command_line = f"confreg.run({request.recipe.name!r}"
        command_line += "".join(f", {k}={v!r}" for k, v in said.items()) + ")"
    return run_request(request, loaded, command_line, progress)


_REPORTED = (
    "engine", "neurons", "sequence_length", "max_tokens", "per_document", "dtype", "effects",
    "activations", "reduce", "tolerance", "seed",
)  # fmt: skip
_DEFAULTS = {k: v for k, v in (run.__kwdefaults__ or {}).items() if k in _REPORTED}


def make_plan(recipe: str | Path | Recipe, **options: Any) -> Plan:
    """What `run` would do with the same options; reads no weights and writes nothing.

    Raises
    ------
    ConfregError
        As `run`.
    """
    known = {k: options.pop(k) for k in list(options) if k in (run.__kwdefaults__ or {})}
    for only_run in ("progress", "command_line"):
        known.pop(only_run, None)
    request, loaded = _request(recipe=recipe, parameters=options, **known)
    return plan_request(request, loaded)


def _request(
    *,
    recipe: str | Path | Recipe,
    parameters: Mapping[str, Any],
    model: str | Model = "smollm2-135m",
    profile: str | Path | Profile = "memory",
    overrides: Mapping[str, Any] | None = None,
    out: str | Path | None = None,
    memory: int | str | None = None,
    **options: Any,
) -> tuple[Request, Model | None]:
    loaded = None if isinstance(model, str) else model
    request = Request(
        recipe=recipes.find(recipe),
        model=model if isinstance(model, str) else model.name,
        profile=profiles.load(profile, overrides),
        out=Path(out).expanduser() if out is not None else None,
        memory=read_bytes(memory),
        parameters=parameters,
        **options,
    )
    return request, loaded


def plan_request(request: Request, loaded: Model | None = None) -> Plan:
    """The plan of a request: tokens are cut, no weights are read."""
    from confreg import models

    described: Description = (
        loaded.description
        if loaded is not None
        else models.describe(request.model, dtype=_held(request))
    )
    table = _table(request, described)
    if described.max_length is not None and table.sequence_length > described.max_length:
        raise ConfregError(
            f"{described.name} has positions for {described.max_length} tokens; sequences of "
            f"{table.sequence_length} were asked for."
        )
    return plans.make_plan(request, described, table, _counts(request, described))


def _table(request: Request, described: Description) -> TokenTable:
    """The request's text as sequences, repeated for recipes about repeats."""
    from confreg import tokens

    corpus, tokenizer = tokens.read(request.text), described.tokenizer
    length, most = request.sequence_length, request.max_tokens
    if request.recipe.repeats:
        chosen = request.recipe.bind(request.parameters)
        return tokens.repeats.of_kind(corpus, tokenizer, length, most, request.seed, **chosen)
    return tokens.cut(corpus, tokenizer, length, most, request.per_document)


def _counts(request: Request, described: Description) -> Counts | None:
    """Token counts, for recipes that take the parameter ``counts``."""
    from confreg import tokens

    if "counts" not in request.recipe.parameters:
        return None
    spec = request.recipe.bind(request.parameters)["counts"]
    size = described.vocab_size
    return tokens.counts.read(spec, tokens.read(request.text), described.tokenizer, size)


def _held(request: Request) -> str | None:
    """What the weights are held as: quantized, or in the dtype that was asked for, if any."""
    profile = request.profile
    return (
        getattr(profile, "quantization", None) or request.dtype or getattr(profile, "dtype", None)
    )


def run_request(
    request: Request, loaded: Model | None, command_line: str, show_progress: bool
) -> xr.Dataset:
    """Plan, open or create the store, load the model, execute."""
    from confreg.execution import run as running
    from confreg.progress import Progress

    progress = Progress(show_progress)
    with progress.step("planning"):
        plan = plan_request(request, loaded)
    path = request.out or Path(tempfile.mkdtemp(prefix="confreg-")) / f"{request.recipe.name}.zarr"
    model = loaded
    if plan.unscored:
        scores = running.stored_scores(plan, path, request.overwrite)
        if scores is None:
            model = loaded or load_model(plan, progress)
            scores = running.score_heads(plan, model, progress)
        plan = plans.make_plan(request, plan.model, plan.table, plan.counts, scores)
    store = running.open_store(plan, path, request.overwrite, command_line)
    plan = running.as_stored(plan, store, progress)
    if not store.complete:
        running.execute(plan, store, model or load_model(plan, progress), progress)
    return running.result(path)


def load_model(plan: Plan, progress: Progress) -> Model:
    """The model of a plan, where its profile places it."""
    with progress.step(f"loading {plan.model.name}"):
        return _load(plan)


def _load(plan: Plan) -> Model:
    from confreg import models

    dtype = plan.request.dtype or plan.profile.dtype
    if isinstance(plan.profile, NdifProfile):
        return models.load(plan.request.model, dtype=dtype, weights=False)
    return models.load(plan.request.model, profile=plan.profile.placement(), dtype=dtype)


def read_bytes(size: int | str | None) -> int | None:
    """A size in bytes: ``2000000000`` or ``"2GB"``.

    Raises
    ------
    ConfregError
        Not a size.
    """
    from pydantic import ByteSize, TypeAdapter, ValidationError

    if size is None:
        return None
    try:
        read = int(TypeAdapter(ByteSize).validate_python(size))
    except ValidationError:
        read = 0
    if read <= 0:
        raise ConfregError(f"--memory is a size such as 2GB or 500MB, not {size!r}.")
    return read
