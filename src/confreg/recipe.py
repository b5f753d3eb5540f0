"""What a recipe is: a function that lays out axes and returns steps, and its typed parameters."""

from __future__ import annotations

import hashlib
import importlib
import importlib.util
import inspect
import linecache
import pkgutil
import re
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from importlib.metadata import EntryPoint, entry_points
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Any, get_type_hints

from confreg import beside, reads
from confreg.axes import Axis
from confreg.errors import ConfregError
from confreg.options import names as option_names

if TYPE_CHECKING:
    from confreg.effects import Effect
    from confreg.study import Study
    from confreg.sweep.step import Item


@dataclass(frozen=True)
class Parameter:
    """A typed parameter of a recipe, as its signature declares it."""

    name: str
    annotation: Any
    default: Any

    def describe(self) -> str:
        """``name: type = default``, as one would write it."""
        return f"{self.name}: {_type_name(self.annotation)} = {self.default!r}"

    @property
    def is_model(self) -> bool:
        """Whether it names a model."""
        from confreg.models.network import Network

        return self.annotation is Network

    @property
    def are_models(self) -> bool:
        """Whether it names one or more models, by commas."""
        from confreg.models.network import Network

        return self.annotation == tuple[Network, ...]


@dataclass(frozen=True, eq=False)
class Recipe:
    """A recipe, as `recipe` makes it from a function.

    Attributes
    ----------
    lay_out : callable
        ``lay_out(study, **parameters)`` returns a list of steps and derivations.
    usual, on_request : tuple of Effect
        Effects that it measures if not told otherwise, and when it is asked to.
    model : callable, optional
        Makes the model that it is about, where that is not chosen by ``--model``.
    path : Path or None
        Its file; None where it was written in a notebook.
    """

    name: str
    lay_out: Callable[..., Any]
    usual: tuple[Effect, ...] = ()
    on_request: tuple[Effect, ...] = ()
    model: Callable[[], Any] | None = None
    parameters: Mapping[str, Parameter] = field(default_factory=dict)
    path: Path | None = None

    @property
    def source(self) -> bytes:
        """What was compiled: the recipe's file, or its function where it stands in a notebook."""
        if self.path is not None:
            return "".join(linecache.getlines(self.lay_out.__code__.co_filename)).encode()
        try:
            return inspect.getsource(self.lay_out).encode()
        except OSError:
            raise ConfregError(
                f"The source of recipe {self.name!r} cannot be found, and traces need it: write "
                "the recipe in a file or in a notebook's cell, not in `python -c` or on standard "
                "input."
            ) from None

    @property
    def digest(self) -> str:
        """SHA-256 of the source, and of what it reads: modules beside it, or a notebook's names."""
        module = sys.modules.get(self.lay_out.__module__)
        others = "".join(getattr(module, BESIDE, {}).values())
        if self.path is None:
            others = reads.digest(self.lay_out)
        return hashlib.sha256(self.source + others.encode()).hexdigest()

    @property
    def summary(self) -> str:
        """First line of the recipe's docstring."""
        return self.documentation.strip().splitlines()[0]

    @property
    def documentation(self) -> str:
        """The recipe's module docstring, or else its function's."""
        module = sys.modules.get(self.lay_out.__module__)
        text = (module.__doc__ if module else None) or self.lay_out.__doc__
        return inspect.cleandoc(text or "(no documentation)")

    @property
    def effects(self) -> tuple[Effect, ...]:
        """All effects that it can measure."""
        return (*self.usual, *self.on_request)

    def bind(self, given: Mapping[str, Any]) -> dict[str, Any]:
        """Check parameters against the signature and fill in the defaults.

        Raises
        ------
        ConfregError
            An unknown name or a wrong type, with the list of what exists.
        """
        from pydantic import TypeAdapter, ValidationError

        exists = "It takes: " + "; ".join(p.describe() for p in self.parameters.values()) + "."
        if not self.parameters:
            exists = "It takes no parameters."
        values = {name: p.default for name, p in self.parameters.items()}
        for name, value in given.items():
            if name not in self.parameters:
                raise ConfregError(f"Recipe {self.name!r} has no parameter {name!r}. {exists}")
            parameter = self.parameters[name]
            if parameter.is_model:
                values[name] = value
                continue
            if parameter.are_models:
                values[name] = _several(value)
                continue
            if isinstance(value, str) and value.lower() in ("none", "null"):
                value = None
            try:
                values[name] = TypeAdapter(parameter.annotation).validate_python(value)
            except ValidationError:
                raise ConfregError(
                    f"Parameter {name!r} of recipe {self.name!r} must be "
                    f"{_type_name(parameter.annotation)}, not {value!r}. {exists}"
                ) from None
        return values

    def items(self, study: Study, parameters: Mapping[str, Any]) -> list[Item]:
        """The recipe's steps and derivations, checked.

        Raises
        ------
        ConfregError
            What `confreg.sweep.step.check` refuses, or what the recipe itself does.
        """
        from confreg.sweep.step import check, flat

        try:
            items = flat(self.lay_out(study, **parameters))
        except ConfregError:
            raise
        except Exception as error:
            said = self.explain(error)
            if said is None:
                raise
            raise said from error
        _check_labels(items, study)
        check(items)
        return items

    def explain(self, error: BaseException) -> ConfregError | None:
        """An error out of the recipe's own code as a sentence: file, line and what was said.

        None where the error is not from there.
        """
        if self.path is None or _ships(self.lay_out):
            return None
        own = self.lay_out.__code__.co_filename
        there = getattr(error, "traceback", "")
        if isinstance(error, ConfregError) and not there:
            return None
        if there:
            # A server's, as text: there the recipe's code has the name that it has here.
            lines = re.findall(rf'File "(?:\[[^]]*\] )?{re.escape(own)}", line (\d+)', there)
            last = there.strip().splitlines()[-1].strip()
            return self._sentence(lines, last) if lines else None
        cause: BaseException | None = error
        while cause is not None:
            frames = inspect.getinnerframes(cause.__traceback__) if cause.__traceback__ else []
            lines = [frame.lineno for frame in frames if own in frame.filename]
            if lines:
                said = str(cause).strip().splitlines()
                words = f"{type(cause).__name__}: {said[-1] if said else ''}".rstrip(": ")
                return self._sentence(lines, words)
            cause = cause.__cause__ or cause.__context__
        return None

    def _sentence(self, lines: Sequence[int | str], words: str) -> ConfregError:
        return ConfregError(f"{self.path}, line {lines[-1]}: {words}")


def _ships(function: Callable[..., Any]) -> bool:
    return function.__module__.startswith("confreg.recipes.")


def recipe(
    *,
    effects: Sequence[Effect] = (),
    on_request: Sequence[Effect] = (),
    model: Callable[[], Any] | None = None,
) -> Callable[[Callable[..., Any]], Recipe]:
    """Declare a recipe: decorate a function that lays out axes and returns steps.

    The function takes a `confreg.study.Study`, then its parameters by keyword, each with a type and
    a default, and returns a list of steps and derivations. It is called before anything is loaded.

    Parameters
    ----------
    effects, on_request : sequence of Effect
        What ``study.effects()`` chooses from: measured if not told otherwise, or on request.
    model : callable, optional
        Makes the model that the recipe is about (`nnsight.NNsight` around any torch module), where
        that is no language model that ``--model`` names.

    Raises
    ------
    ConfregError
        A parameter without a default, or one named like an option of `confreg.run`.
    """

    def declare(lay_out: Callable[..., Any]) -> Recipe:
        source = inspect.getsourcefile(lay_out) or lay_out.__code__.co_filename
        path = Path(_real_path(lay_out.__code__.co_filename) or source)
        return Recipe(
            name=lay_out.__name__,
            lay_out=lay_out,
            usual=tuple(effects),
            on_request=tuple(on_request),
            model=model,
            parameters=_parameters(lay_out),
            path=path if path.is_file() else None,
        )

    return declare


def _parameters(lay_out: Callable[..., Any]) -> dict[str, Parameter]:
    hints = get_type_hints(lay_out)
    found = {}
    for p in inspect.signature(lay_out).parameters.values():
        if p.kind is not p.KEYWORD_ONLY:
            continue
        if p.default is p.empty:
            raise ConfregError(
                f"Parameter {p.name!r} of recipe {lay_out.__name__!r} needs a default value."
            )
        if p.name in option_names():
            raise ConfregError(
                f"Parameter {p.name!r} of recipe {lay_out.__name__!r} has the name of an option of "
                "every run: rename it."
            )
        found[p.name] = Parameter(p.name, hints.get(p.name, Any), p.default)
    return found


def _several(models: Any) -> tuple[Any, ...]:
    """Models by name, by commas, or as they are."""
    if isinstance(models, str):
        return tuple(part.strip() for part in models.split(",") if part.strip())
    return tuple(models) if isinstance(models, list | tuple) else (models,)


def _type_name(annotation: Any) -> str:
    return (
        annotation.__name__
        if isinstance(annotation, type)
        else str(annotation).replace("typing.", "")
    )


def names() -> list[str]:
    """Names of the recipes that ship with confreg, and of those that packages bring."""
    return sorted({*_shipped(), *installed()})


def _shipped() -> list[str]:
    # The folder recipes/ is mapped into the package when it is installed.
    folder = importlib.import_module("confreg.recipes").__path__
    return [m.name for m in pkgutil.iter_modules(folder)]


GROUP = "confreg.recipes"


def installed() -> dict[str, EntryPoint]:
    """What installed packages bring, by name: entry points of the group ``confreg.recipes``."""
    return {entry.name: entry for entry in entry_points(group=GROUP)}


def _from_package(entry: EntryPoint) -> Recipe:
    """A recipe of an installed package, whose code travels to servers as source."""
    package = entry.dist.name if entry.dist is not None else "?"
    try:
        found = entry.load()
    except Exception as error:
        raise ConfregError(
            f"The recipe {entry.name!r} of the package {package} does not load: "
            f"{type(error).__name__}: {error}. Mend the package, or uninstall it."
        ) from error
    if isinstance(found, ModuleType):
        found = _only_recipe(found, entry.value)
    if not isinstance(found, Recipe):
        raise ConfregError(
            f"The entry point {entry.name!r} of the package {package} gives {found!r}, where a "
            "function decorated with @confreg.recipe(...) is wanted, or a module that holds one."
        )
    import nnsight

    nnsight.register(entry.module.partition(".")[0])
    return found


def find(recipe: str | Path | Recipe) -> Recipe:
    """A recipe by name (confreg's or a package's), by the path of a Python file, or as it is.

    Raises
    ------
    ConfregError
        No such recipe, or a file or a package that holds none or several, or does not import.
    """
    if isinstance(recipe, Recipe):
        return recipe
    text = str(recipe)
    if text.endswith(".py") or "/" in text:
        return _from_file(Path(text).expanduser())
    # What ships comes first: a package cannot change what a name means.
    if text not in _shipped() and text in (brought := installed()):
        return _from_package(brought[text])
    if text not in _shipped():
        raise ConfregError(
            f"There is no recipe {text!r}. There are: {', '.join(names())}; "
            "or give the path of a recipe file (my_recipe.py)."
        )
    return _only_recipe(importlib.import_module(f"confreg.recipes.{text}"), text)


_MARK = "#"
BESIDE = "__confreg_beside__"
"""Where a recipe's module keeps the digests of the modules beside it that it imports."""


def _real_path(filename: str) -> str:
    """The file of a code's name, under which its bytes were compiled."""
    return filename.partition(_MARK)[0]


def _from_file(path: Path) -> Recipe:
    """Compile a recipe's file once, under a name that says which bytes.

    nnsight keeps sources and blocks by file name and line, and never looks again: a file that was
    changed must have another name.
    """
    if not path.is_file():
        raise ConfregError(f"There is no recipe file {str(path)!r}.")
    path = path.resolve()
    content = path.read_bytes()
    # And where they lie: two files of the same bytes are two recipes.
    digest = hashlib.sha256(bytes(path) + b"\0" + content).hexdigest()[:12]
    name = f"{path.stem}_{digest}"
    if name in sys.modules and beside.unchanged(getattr(sys.modules[name], BESIDE, {})):
        return _only_recipe(sys.modules[name], str(path))
    filename = f"{path}{_MARK}{digest}"
    text = importlib.util.decode_source(content)
    linecache.cache[filename] = (len(text), None, text.splitlines(keepends=True), filename)
    module = ModuleType(name)
    module.__file__ = str(path)
    sys.modules[name] = module
    try:
        with beside.importing(path.parent):
            exec(compile(text, filename, "exec"), vars(module))
        setattr(module, BESIDE, beside.digests(path.parent))
    except BaseException as error:
        del sys.modules[name]
        if isinstance(error, ConfregError) or not isinstance(error, Exception):
            raise
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


def _check_labels(items: Sequence[Item], study: Study) -> None:
    """Refuse columns whose names the dataset has already, and groups that nothing makes."""
    gives = {variable.name for item in items for variable in item.gives}
    axes = [axis for item in items for axis in (*getattr(item, "over", ()), *item.along)]
    taken = gives | {axis.name for axis in axes}
    for axis in axes:
        if isinstance(axis, Axis) and axis.name != "token":
            taken |= set(axis.labels)
    for name in study.options.columns or ():
        if name in taken:
            raise ConfregError(
                f"--columns {name}: the dataset has something of that name already; give the field "
                "of the documents another."
            )
    if study.options.by is not None and "effect_mean_by" not in gives:
        raise ConfregError(
            "--by is for recipes that find effects of edits at tokens; this one finds none."
        )
