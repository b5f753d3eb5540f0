"""`confreg.run` and `confreg.plan`: what the command line and notebooks call."""

from __future__ import annotations

import hashlib
import tempfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from confreg import earlier, places
from confreg import options as table
from confreg.axes import Axis
from confreg.errors import ConfregError
from confreg.options import Options
from confreg.places import surroundings
from confreg.recipe import Parameter, Recipe, find
from confreg.sweep import provenance
from confreg.sweep.plan import Plan, axes_of, size
from confreg.sweep.step import Step

if TYPE_CHECKING:
    import xarray as xr

    from confreg.models import Description
    from confreg.models.network import Network
    from confreg.progress import Progress
    from confreg.study import Study
    from confreg.subjects.routing import Order


@surroundings.own()
def run(recipe: str | Path | Recipe, **given: Any) -> xr.Dataset:
    """Run a recipe and open the dataset that it wrote.

    A run into an existing store goes on where that store stopped, if it was made by the same
    configuration.
    """
    from confreg.progress import Progress
    from confreg.results.open import open
    from confreg.sweep.lock import writing
    from confreg.sweep.run import Run

    found = find(recipe)
    options, parameters = split(found, given)
    progress = Progress(options.progress)
    with progress.heard(), progress.step("planning"):
        plan = make_plan(found, options, parameters)
    path = None if options.out is None else local_path(options.out)
    path = path or Path(tempfile.mkdtemp(prefix="confreg-")) / f"{found.name}.zarr"
    with progress.heard(), writing(path):
        if plan.first is not None:

            def make(begun: Plan, known: Any) -> Plan:
                return make_plan(found, options, parameters, begun, known)

            plan = _whole(plan, make, path, options, progress)
        store = open_store(plan, path, options.overwrite)
        with plan.place.entered(path, plan.configuration, progress):
            work = Run(plan, store, progress)
            work.execute()
        if not work.changed:
            progress.say(f"{str(path)!r} is finished already: nothing was computed.")
    ds = open(path)
    if not ds.attrs["complete"]:
        raise ConfregError(f"The store {str(path)!r} is not finished; run its command again.")
    return ds


run.__doc__ = f"""{run.__doc__.rstrip() if run.__doc__ else ""}

    Parameters
    ----------
    recipe : str, Path or Recipe
        A name (see ``confreg recipes``), the path of a recipe file, or a recipe.
    {table.documentation().replace(chr(10), chr(10) + "    ")}
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


@surroundings.own()
def plan(recipe: str | Path | Recipe, **given: Any) -> Plan:
    """What `run` would do with the same options; reads no weights and writes nothing.

    Raises
    ------
    ConfregError
        As `run`.
    """
    from confreg.progress import Progress

    found = find(recipe)
    options, parameters = split(found, given)
    with Progress(options.progress).heard():
        return make_plan(found, options, parameters)


def split(recipe: Recipe, given: Mapping[str, Any]) -> tuple[Options, dict[str, Any]]:
    """What was given as options and as the recipe's parameters, both validated."""
    own = {name: value for name, value in given.items() if name not in table.names()}
    known = {name: value for name, value in given.items() if name in table.names()}
    return Options.read(known), recipe.bind(own)


def make_plan(
    recipe: Recipe,
    options: Options,
    parameters: Mapping[str, Any],
    begun: Plan | None = None,
    routed: Order | None = None,
) -> Plan:
    """Everything that is decided before a weight is loaded.

    Parameters
    ----------
    recipe : Recipe
    options : Options
    parameters : mapping
        As of `split`.
    begun : Plan, optional
        The same plan as it was before its ``first`` was measured: its model stays loaded.
    routed : mapping, optional
        What that gave.
    """
    from confreg.models import adapters
    from confreg.progress import waiting
    from confreg.steps.verification import verification
    from confreg.study import Study, describe_parameters

    with waiting("importing torch, transformers and nnsight"):
        import nnsight  # noqa: F401
        import transformers  # noqa: F401
    profile = places.profiles.load(options.profile, options.overrides)
    held = _held(options, profile)
    if begun is None:
        model = _network(recipe, options, held)
        place = places.make(profile, options, model)
    else:
        model, place = begun.place.model, begun.place
    if model.adapter and place.budget.upload is not None:
        raise ConfregError(adapters.HERE_ONLY)
    study = Study(
        model, options, place.budget, recipe.usual, recipe.on_request, recipe=recipe.name,
        routed=routed,
    )  # fmt: skip
    bound = {
        name: _models_of(recipe.parameters[name], value, held) for name, value in parameters.items()
    }
    items = recipe.items(study, bound)
    routing = study.routing()
    first = None if routing is None or routing.is_known else routing
    used = dict.fromkeys([study.model, *(each for item in items for each in _models(item))])
    for number, network in enumerate(used):
        items = [*verification(network, number), *items]
    for item in items:
        if isinstance(item, Step):
            place.admit(item)
    said = describe_parameters(bound)
    added: dict[str, Any] = {}
    for item in items:
        added |= item.attributes
    return Plan(
        title=recipe.name,
        items=tuple(items),
        place=place,
        configuration={
            **_configuration(recipe, options, study, said, profile.name, items, added),
            **({} if routing is None or first else {routing.title: routing.found}),
        },
        attributes={
            "title": f"{recipe.name}: {model.name}",
            **provenance.attributes(recipe.name, recipe.source, recipe.documentation, options.seed),
            **_of_model(model),
            **(
                {
                    **_shape(model.about),
                    earlier.WEIGHTS: earlier.weights_of(model.fingerprint or ""),
                }
                if model.is_language_model
                else {}
            ),
            **({} if study.is_remote else _libraries(model)),
            **study.attributes,
            "profile": profile.name,
            "host": places.host(profile),
            **{f"parameter_{name}": str(value) for name, value in said.items()},
            **added,
            **provenance.command(recipe.name, options, said),
        },
        facts=_facts(model, profile),
        first=first,
        explain=recipe.explain,
    )


def _models(item: Any) -> tuple[Network, ...]:
    """The models that a step names."""
    return getattr(item, "models", ())


def _held(options: Options, profile: Any) -> str | None:
    """What the weights are held as: quantized, or in the dtype that was asked for, if any."""
    return getattr(profile, "quantization", None) or options.dtype or profile.dtype


def _network(recipe: Recipe, options: Options, held: str | None) -> Network:
    """The run's model, described."""
    from confreg.models import adapters
    from confreg.models.network import Network

    given = options.model
    if recipe.model is not None and given == Options.model:
        return Network(recipe.model.__name__, make=recipe.model)
    network = _named(given, held)
    if options.adapter is not None:
        if network.loaded is not None or not isinstance(given, str | Path):
            raise ConfregError(
                "--adapter is attached to a model that is loaded by name; one that is loaded "
                "already brings its own."
            )
        adapters.locate(options.adapter)
        network.adapter = str(options.adapter)
    return network


def _models_of(parameter: Parameter, value: Any, held: str | None) -> Any:
    """A parameter's value, with models described where it names such."""
    if parameter.is_model:
        return _named(value, held)
    return tuple(_named(each, held) for each in value) if parameter.are_models else value


def _named(given: Any, held: str | None) -> Network:
    from confreg import models
    from confreg.models.network import Network, traceable

    if isinstance(given, Network):
        return given
    if isinstance(given, str | Path):
        return Network(str(given), about=models.describe(str(given), dtype=held))
    if isinstance(given, models.Model):
        return Network(given.name, about=given.description, loaded=given)
    return traceable(given)


def _of_model(model: Network) -> dict[str, str | int]:
    if not model.is_language_model:
        return {"model": model.name}
    about = model.about
    return {
        "model": about.name,
        "model_revision": about.revision or "",
        "model_architecture": about.architecture,
        "dtype": about.dtype,
        **({"model_adapter": model.adapter} if model.adapter else {}),
    }


def _shape(about: Description) -> dict[str, int]:
    """What `confreg.compare` needs to know that neurons of one name are the same ones."""
    return {
        "model_layers": about.n_layers,
        "model_width": about.d_model,
        "model_neurons": about.n_neurons,
        "model_heads": about.n_heads,
        **({"model_experts": about.n_experts} if about.n_experts > 1 else {}),
    }


def _libraries(model: Network) -> dict[str, str]:
    """What computes where it is installed, and by choice: peft, bitsandbytes."""
    also = ["peft"] * bool(model.adapter)
    if model.is_language_model and model.about.dtype in ("int8", "nf4", "fp4"):
        also.append("bitsandbytes")
    found = provenance.computing(tuple(also))
    return {"computing_libraries": found} if found else {}


def _configuration(
    recipe: Recipe,
    options: Options,
    study: Study,
    parameters: Mapping[str, Any],
    profile: str,
    items: list[Any],
    added: Mapping[str, Any],
) -> dict[str, Any]:
    """What a run must share with a store to go on with it."""
    import confreg
    from confreg.models.fingerprint import fingerprint

    used = dict.fromkeys([study.model, *(each for item in items for each in _models(item))])
    for network in used:
        network.fingerprint = fingerprint(network)
    weights = [network.fingerprint for network in used]
    rows = [
        f"{about.row.origin}, {about.row.digest(about.config)[:12]}"
        for about in (network.about for network in used if network.is_language_model)
        if about.row.origin  # of a row that tests cover the version of confreg says enough
    ]
    labels = hashlib.sha256()
    for item in items:
        for axis in axes_of(item):
            if isinstance(axis, Axis) and axis.name != "token":
                labels.update("\n".join([axis.name, *map(str, axis.index.tolist())]).encode())
    return {
        "recipe": recipe.name,
        "recipe_sha256": recipe.digest,
        "parameters": dict(parameters),
        **_of_model(study.model),
        **({"architecture_row": "; ".join(rows)} if rows else {}),
        **({} if study.is_remote else _libraries(study.model)),
        "weights_sha256": hashlib.sha256(" ".join(weights).encode()).hexdigest(),
        **{k: v for k, v in study.attributes.items() if k.startswith("corpus")},
        "profile": profile,
        **options.shared(),
        "labels_sha256": labels.hexdigest(),
        **{key: value for key, value in added.items() if key.endswith("sha256")},
        "confreg": confreg.__version__,
    }


def _facts(model: Network, profile: Any) -> list[tuple[str, str]]:
    said = model.name
    if model.is_language_model:
        about = model.about
        said = f"{about.name} ({about.architecture}, {size(about.bytes)} of weights)"
    return [
        ("model", said),
        *([("adapter", model.adapter)] if model.adapter else []),
        ("profile", f"{profile.name}: {profile.description}"),
    ]


def _whole(
    begun: Plan,
    make: Callable[[Plan, Any], Plan],
    path: Path,
    options: Options,
    progress: Progress,
) -> Plan:
    """A plan with what must be measured before it is whole: as its store has it, or measured now.

    What a store has is of its own text and options: it counts if all else is the same too.

    Raises
    ------
    ConfregError
        The store is of another configuration.
    """
    from confreg.sweep import store as stores

    assert begun.first is not None
    if path.exists() and not options.overwrite:
        before, plan = stores.configuration(path), begun
        known = begun.first.kept(before.get(begun.first.title, {}))
        if known is not None:
            plan = make(begun, known)
            if not stores.changed(before, plan.configuration):
                return plan
        if not stores.is_blank(path):
            open_store(plan, path, False)  # refuses it, before anything takes long
    return make(begun, begun.first.measure(begun.place, progress))


def local_path(out: str | Path) -> Path:
    """Where to write, as a path of this machine.

    Raises
    ------
    ConfregError
        A URL of another file system than this machine's.
    """
    kind, colon, rest = str(out).partition("://")
    if not colon:
        return Path(out).expanduser()
    if kind == "file":
        return Path(rest)
    raise ConfregError(
        f"--out {str(out)!r}: a store is a folder of this machine. Write it here and copy it to "
        f"{kind}:// when it is finished."
    )


def open_store(plan: Plan, path: Path, overwrite: bool) -> Any:
    """Create the store of a plan, or resume the one that is there.

    Raises
    ------
    ConfregError
        What is there is no store, or one of another configuration.
    """
    from confreg.sweep import store as stores

    if overwrite:
        stores.remove(path)
        places.forget_jobs(path)
    if path.is_dir() and not any(path.iterdir()):
        path.rmdir()
    if path.exists():
        try:
            return stores.Store.resume(path, plan.configuration)
        except ConfregError:
            if not stores.is_blank(path):
                raise
            # Of another run, which failed before it had measured anything.
            stores.remove(path)
            places.forget_jobs(path)
    return stores.Store.create(path, plan.configuration, plan.attributes)
