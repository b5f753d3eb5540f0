"""What a recipe is: a measuring function, the effects it returns, and its typed parameters."""

from __future__ import annotations

import importlib
import importlib.util
import inspect
import pkgutil
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import ModuleType
from typing import Any, get_type_hints

from confreg.errors import ConfregError


@dataclass(frozen=True)
class Effect:
    """One effect of ablating a neuron on a token's prediction.

    Parameters
    ----------
    name : str
        ``measure_variant``, for instance ``"loss_total"``.
    long_name : str
        What a plot's axis says.
    units : str
        ``"nats"``, or ``"1"`` for a share, a rank or an indicator.
    default : bool
        Whether it is measured when ``--effects`` is not given.
    needs : tuple of str
        Effects that are measured along with it.
    """

    name: str
    long_name: str
    units: str = "nats"
    default: bool = True
    needs: tuple[str, ...] = ()


@dataclass(frozen=True)
class Parameter:
    """A typed parameter of a recipe, as its signature declares it."""

    name: str
    annotation: Any
    default: Any

    def describe(self) -> str:
        """``name: type = default``, as one would write it."""
        return f"{self.name}: {_type_name(self.annotation)} = {self.default!r}"


@dataclass(frozen=True)
class Recipe:
    """A recipe, as `recipe` makes it from a function.

    Attributes
    ----------
    measure : callable
        ``measure(model, batch, **parameters) -> dict of tensors``: one trace.
    effects : tuple of Effect
    statistics : bool
        Whether the weight-space statistics of the neurons are part of the dataset.
    mediated : (str, str)
        The total and the direct effect whose mean absolute values are ``te`` and ``de``.
    context : bool
        Whether activations are kept, and effects also reduced over the tokens on which a
        neuron is above its mean.
    sets : bool
        Whether sets of neurons are ablated, beside random sets, along the dimension ``set``.
    repeats : bool
        Whether the text is repeated, and sets of neurons are ablated plainly and clipped.
    heads : bool
        Whether sets of attention heads are ablated, beside random sets, along ``set``; neurons are
        what is watched.
    """

    name: str
    measure: Callable[..., dict[str, Any]]
    effects: tuple[Effect, ...]
    statistics: bool
    mediated: tuple[str, str]
    context: bool = False
    sets: bool = False
    repeats: bool = False
    heads: bool = False
    parameters: Mapping[str, Parameter] = field(default_factory=dict)
    path: Path | None = None

    @property
    def source(self) -> bytes:
        """The recipe's file, or its function alone where it was written in a notebook."""
        if self.path is not None and self.path.is_file():
            return self.path.read_bytes()
        return inspect.getsource(self.measure).encode()

    @property
    def summary(self) -> str:
        """First line of the recipe's docstring."""
        return self.documentation.strip().splitlines()[0]

    @property
    def documentation(self) -> str:
        """The recipe's module docstring, or else its function's."""
        module = inspect.getmodule(self.measure)
        text = (module.__doc__ if module else None) or self.measure.__doc__
        return inspect.cleandoc(text or "(no documentation)")

    def bind(self, given: Mapping[str, Any]) -> dict[str, Any]:
        """Check parameters against the signature and fill in the defaults.

        Raises
        ------
        ConfregError
            An unknown name or a wrong type, with the list of what exists.
        """
        from pydantic import TypeAdapter, ValidationError

        exists = "It takes: " + "; ".join(p.describe() for p in self.parameters.values()) + "."
        values = {name: p.default for name, p in self.parameters.items()}
        for name, value in given.items():
            if name not in self.parameters:
                raise ConfregError(f"Recipe {self.name!r} has no parameter {name!r}. {exists}")
            annotation = self.parameters[name].annotation
            if isinstance(value, str) and value.lower() in ("none", "null"):
                value = None
            try:
                values[name] = TypeAdapter(annotation).validate_python(value)
            except ValidationError:
                raise ConfregError(
                    f"Parameter {name!r} of recipe {self.name!r} must be "
                    f"{_type_name(annotation)}, not {value!r}. {exists}"
                ) from None
        return values

    def choose(self, names: Sequence[str] | None) -> tuple[Effect, ...]:
        """Effects by name: None for the default ones, ``["all"]`` for every one.

        Raises
        ------
        ConfregError
            An unknown name, with the list of what exists.
        """
        if names is None:
            return tuple(e for e in self.effects if e.default)
        if list(names) == ["all"]:
            return self.effects
        known = {e.name: e for e in self.effects}
        unknown = [n for n in names if n not in known]
        if unknown:
            raise ConfregError(
                f"Recipe {self.name!r} has no effect {unknown[0]!r}. It has: {', '.join(known)}."
            )
        needed = [*names, *self.mediated, *(n for name in names for n in known[name].needs)]
        return tuple(e for e in self.effects if e.name in needed)


def recipe(
    *,
    effects: Sequence[Effect],
    statistics: bool = True,
    mediated: tuple[str, str] = ("loss_total", "loss_direct"),
    context: bool = False,
    sets: bool = False,
    repeats: bool = False,
    heads: bool = False,
) -> Callable[[Callable[..., dict[str, Any]]], Recipe]:
    """Declare a recipe: decorate a function that holds one trace.

    The function takes ``model`` and ``batch``, then its parameters by keyword, each with a
    type and a default. Four parameters have a meaning that confreg acts on: ``layer``,
    ``ablation``, ``mean_over`` and ``null_dims``.

    Parameters
    ----------
    effects : sequence of Effect
        What the function returns along the dimension ``effect``.
    statistics : bool
        Whether the dataset holds the neurons' weight-space statistics.
    mediated : (str, str)
        Names of the total and the direct effect behind ``te``, ``de`` and ``mediated``.
    context : bool
        Keep activations, and say on which tokens each neuron is above its mean.
    sets : bool
        Ablate sets of neurons; the function then has the parameters ``random_sets`` and
        ``deviations``.
    repeats : bool
        Over text that is repeated. With ``sets``: ablate each chosen neuron alone and each chosen
        set jointly, plainly and clipped. The function has the parameters of
        `confreg.tokens.repeats.of_kind`, with ``sets`` in place of ``deviations``.
    heads : bool
        Ablate sets of attention heads; the function then has the parameters ``heads``,
        ``random_sets``, ``controls``, ``score_sequences`` and ``score_length``.
    """

    def declare(measure: Callable[..., dict[str, Any]]) -> Recipe:
        source = inspect.getsourcefile(measure)
        return Recipe(
            name=measure.__name__,
            measure=measure,
            effects=tuple(effects),
            statistics=statistics,
            mediated=mediated,
            context=context,
            sets=sets,
            repeats=repeats,
            heads=heads,
            parameters=_parameters(measure),
            path=Path(source) if source else None,
        )

    return declare


def _parameters(measure: Callable[..., Any]) -> dict[str, Parameter]:
    hints = get_type_hints(measure)
    found = {}
    for p in inspect.signature(measure).parameters.values():
        if p.kind is p.KEYWORD_ONLY:
            if p.default is p.empty:
                raise ConfregError(
                    f"Parameter {p.name!r} of recipe {measure.__name__!r} needs a default value."
                )
            found[p.name] = Parameter(p.name, hints.get(p.name, Any), p.default)
    return found


def _type_name(annotation: Any) -> str:
    return (
        annotation.__name__
        if isinstance(annotation, type)
        else str(annotation).replace("typing.", "")
    )


def names() -> list[str]:
    """Names of the recipes that ship with confreg."""
    # The folder recipes/ is mapped into the package when it is installed.
    folder = importlib.import_module("confreg.recipes").__path__
    return sorted(m.name for m in pkgutil.iter_modules(folder))


def find(recipe: str | Path | Recipe) -> Recipe:
    """A recipe by name, by the path of a Python file, or as it is.

    Raises
    ------
    ConfregError
        No such recipe, or a file that holds none or several, or that does not import.
    """
    if isinstance(recipe, Recipe):
        return recipe
    text = str(recipe)
    if text.endswith(".py") or "/" in text:
        return _from_file(Path(text).expanduser())
    if text not in names():
        raise ConfregError(
            f"There is no recipe {text!r}. There are: {', '.join(names())}; "
            "or give the path of a recipe file (my_recipe.py)."
        )
    return _only_recipe(importlib.import_module(f"confreg.recipes.{text}"), text)


def _from_file(path: Path) -> Recipe:
    if not path.is_file():
        raise ConfregError(f"There is no recipe file {str(path)!r}.")
    path = path.resolve()
    name = path.stem
    spec = importlib.util.spec_from_file_location(name, path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    # As with a script: helper modules beside the recipe can be imported by it.
    if str(path.parent) not in sys.path:
        sys.path.insert(0, str(path.parent))
    sys.modules[name] = module
    try:
        spec.loader.exec_module(module)
    except ConfregError:
        raise
    except Exception as error:
        raise ConfregError(
            f"Recipe file {str(path)!r} does not import: {type(error).__name__}: {error}"
        ) from error
    return _only_recipe(module, str(path))


def _only_recipe(module: ModuleType, where: str) -> Recipe:
    found = [v for v in vars(module).values() if isinstance(v, Recipe)]
    if len(found) != 1:
        raise ConfregError(
            f"{where!r} holds {len(found)} recipes; a recipe file holds one function decorated "
            "with @confreg.recipe(...)."
        )
    return found[0]
