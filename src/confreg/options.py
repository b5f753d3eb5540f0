"""The one table of a run's options: names, types, defaults, and what they mean.

The command line, `confreg.run` and its documentation, the configuration that a store must share,
and what a dataset says of its making follow from it.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import Field, dataclass, field, fields
from pathlib import Path
from typing import Any, Literal, get_args, get_origin, get_type_hints

from confreg.errors import ConfregError


def _option(
    default: Any,
    help: str,
    *,
    metavar: str = "",
    least: float | None = None,
    above: float | None = None,
    shared: bool = False,
    flag: bool = True,
    word: Mapping[str, Any] | None = None,
    joins: str = "",
    splits: bool = False,
    several: bool = False,
) -> Any:
    """An option.

    ``least`` and ``above`` bound numbers; ``shared``: part of what a run must share with a store to
    go on with it; ``flag``: whether the command line has it as ``--name``; ``word``: words that
    stand for values; ``joins``: what a list of texts is put together by, where one text is wanted;
    ``splits``: whether texts of a list are lists themselves, by commas; ``several``: whether the
    command line may name several, of which each is a run.
    """
    meta = {
        "help": help, "metavar": metavar, "least": least, "above": above, "shared": shared,
        "flag": flag, "word": word or {}, "joins": joins, "splits": splits,
        "several": several,
    }  # fmt: skip
    return field(default=default, metadata=meta)


@dataclass(frozen=True)
class Options:
    """What a run may be told."""

    model: Any = _option(
        "smollm2-135m",
        "alias, Hugging Face id[@revision], folder or GGUF file",
        metavar="M",
        several=True,
    )
    adapter: str | Path | None = _option(
        None, "adapter of the model (peft): folder or Hugging Face id[@revision]", metavar="A"
    )
    text: Any = _option(None, "what to run on, see below", metavar="T", flag=False)
    profile: Any = _option(
        "memory",
        "where to run: a name or a TOML file (see confreg doctor)",
        metavar="P",
        flag=False,
    )
    overrides: Mapping[str, Any] | None = _option(
        None, "single values of the profile by dotted name", flag=False
    )
    out: str | Path | None = _option(None, "Zarr folder to write", metavar="O.zarr", flag=False)
    engine: Literal["auto", "series", "exact", "forward"] = _option(
        "auto",
        "series and exact: algebra of the last layer; forward: a real intervention for every edit",
        shared=True,
    )
    neurons: str = _option(
        "all", "which neurons, see below", metavar="SPEC", shared=True, joins=","
    )
    effects: list[str] | None = _option(
        None, "which effects of the recipe, or all (default: its usual ones)", metavar="E"
    )
    sequence_length: int = _option(256, "tokens a sequence", metavar="N", least=2)
    max_tokens: int | Literal["usual"] | None = _option(
        "usual",
        "tokens in all, or 'all' (default: 1024 of running text, all of prompts)",
        metavar="N",
        least=3,
        word={"all": None},
    )
    per_document: bool = _option(False, "begin a new sequence with every document")
    bos: Literal["add", "text"] = _option(
        "add",
        "the token that begins a sequence; add: put it where the text lacks it; text: never add it",
    )
    columns: list[str] | None = _option(
        None,
        "fields of the documents that label their tokens: category,split",
        metavar="C",
        shared=True,
        splits=True,
    )
    keep: list[str] | None = _option(
        None,
        "tokens that means are over: usual, all, last, target, role:NAME, COLUMN=VALUE; where "
        "several are named, all must hold (default: usual)",
        metavar="K",
        shared=True,
    )
    by: str | None = _option(
        None,
        "label of the tokens, such as a column, for whose values means are found also; frequency: "
        "powers of ten of the next token's frequency, where tokens are counted",
        metavar="LABEL",
        shared=True,
    )
    chat_template_kwargs: dict[str, Any] | None = _option(
        None, "arguments for the tokenizer's chat template, as JSON", metavar="JSON", shared=True
    )
    dtype: str | None = _option(None, "of the weights (default: the checkpoint's own)", metavar="D")
    activations: bool = _option(False, "keep every activation: neuron × token", shared=True)
    dtype_on_disk: Literal["float32", "float16"] = _option(
        "float32", "of activations that are kept", shared=True
    )
    reduce: Literal["none", "token"] = _option(
        "none", "token: keep only what is left after reducing over tokens", shared=True
    )
    tolerance: float = _option(1e-5, "of engine series, in nats", metavar="X", above=0, shared=True)
    memory: int | str | None = _option(
        None, "budget beside the model, such as 2GB (default: a quarter of what is free)",
        metavar="SIZE",
    )  # fmt: skip
    unit_tokens: int = _option(
        512, "tokens of one unit of work, where a pass is cheap", metavar="N", least=1
    )
    unit_copies: int = _option(
        16, "copies of the text in one pass of real interventions", metavar="N", least=1
    )
    seed: int = _option(0, "of everything drawn at random", metavar="S", least=0, shared=True)
    overwrite: bool = _option(False, "replace an existing store", flag=False)
    progress: bool = _option(True, "show progress bars", flag=False)
    command_line: str | None = _option(
        None, "how the run was asked for, as the dataset records it", flag=False
    )

    @classmethod
    def read(cls, given: Mapping[str, Any]) -> Options:
        """Options from what was given, validated.

        Raises
        ------
        ConfregError
            A value of the wrong type or out of bounds.
        """
        kinds = get_type_hints(cls)
        table = {each.name: each for each in fields(cls)}
        return cls(**{name: _read(table[name], kinds[name], v) for name, v in given.items()})

    def shared(self) -> dict[str, Any]:
        """What a run must share with a store to go on with it."""
        return {
            each.name: getattr(self, each.name) for each in fields(self) if meta(each, "shared")
        }

    def said(self) -> dict[str, Any]:
        """What differs from the defaults, of what can be written down."""
        found = {each.name: getattr(self, each.name) for each in fields(self)}
        written = {k: v for k, v in found.items() if isinstance(v, str | int | float | list | dict)}
        for left_out in ("overrides", "command_line", "progress", "out"):
            written.pop(left_out, None)
        return {k: v for k, v in written.items() if v != getattr(type(self), k)}


def meta(option: Field[Any], name: str) -> Any:
    """What `_option` was given under ``name``."""
    return option.metadata[name]


def names() -> list[str]:
    """Names of all options."""
    return [each.name for each in fields(Options)]


def choices(kind: Any) -> tuple[Any, ...]:
    """The words that an option of a type takes, or nothing where it takes others."""
    return get_args(kind) if get_origin(kind) is Literal else ()


def documentation() -> str:
    """The options as the parameters of a numpy docstring."""
    kinds = get_type_hints(Options)
    lines = []
    for each in fields(Options):
        kind = kinds[each.name]
        text = getattr(kind, "__name__", str(kind)).replace("typing.", "").replace("pathlib.", "")
        shown = "{" + ", ".join(map(repr, choices(kind))) + "}" if choices(kind) else text
        lines += [f"{each.name} : {shown}, default {each.default!r}", f"    {meta(each, 'help')}."]
    return "\n".join(lines)


def _read(option: Field[Any], kind: Any, value: Any) -> Any:
    from pydantic import TypeAdapter, ValidationError

    name = option.name
    if isinstance(value, str) and value in meta(option, "word"):
        value = meta(option, "word")[value]
    if "list" in str(kind) and isinstance(value, str) and not meta(option, "joins"):
        value = [value]
    if meta(option, "splits") and isinstance(value, list):
        value = [part.strip() for each in value for part in str(each).split(",") if part.strip()]
    if "dict" in str(kind) and isinstance(value, str):
        value = _json(name, value)
    joins = meta(option, "joins")
    if joins and hasattr(value, "__array__"):  # of numpy, xarray or pandas
        import numpy as np

        value = np.asarray(value).tolist()
    if isinstance(value, tuple):
        value = list(value)
    if joins and isinstance(value, list) and value and all(isinstance(v, str) for v in value):
        value = joins.join(value)
    try:
        found = TypeAdapter(kind, config={"arbitrary_types_allowed": True}).validate_python(value)
    except ValidationError:
        allowed = " or ".join(map(str, choices(kind))) or _kind(kind)
        raise ConfregError(f"--{name.replace('_', '-')} is {allowed}, not {value!r}.") from None
    least, above = meta(option, "least"), meta(option, "above")
    if isinstance(found, int | float) and not isinstance(found, bool):
        flag = f"--{name.replace('_', '-')}"
        if least is not None and found < least:
            raise ConfregError(f"{flag} is at least {least}, not {found}.")
        if above is not None and not found > above:
            raise ConfregError(f"{flag} is above {above}, not {found}.")
    return found


def _json(name: str, text: str) -> Any:
    import json

    try:
        return json.loads(text)
    except (ValueError, RecursionError) as error:
        said = getattr(error, "msg", None) or error
        raise ConfregError(f"--{name.replace('_', '-')} is no JSON: {said}.") from None


def _kind(kind: Any) -> str:
    parts = get_args(kind) or (kind,)
    words = {int: "a whole number", float: "a number", str: "text", bool: "true or false"}
    said = (
        " or ".join(map(repr, get_args(part)))
        if get_origin(part) is Literal
        else "a JSON object"
        if get_origin(part) is dict
        else words.get(part, str(part))
        for part in parts
        if part is not type(None)
    )
    return " or ".join(said)
