"""One self-contained HTML file from a dataset."""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from confreg.errors import ConfregError
from confreg.report import contexts
from confreg.report.composing import compose
from confreg.report.sections import Options, Section, about_neurons, has
from confreg.report.wording import deviations, glossary, mediator, number, percent, plural
from confreg.results import axes, tables

if TYPE_CHECKING:
    import xarray as xr


PAPER = (
    "Stolfo, Wu, Gurnee, Belinkov, Song, Sachan and Nanda, Confidence Regulation Neurons in "
    "Language Models (2024), arXiv 2406.16254."
)


def write(
    ds: xr.Dataset,
    path: str | Path,
    neurons: Sequence[str] | None = None,
    details: int = 12,
    contexts: int = 6,
) -> Path:
    """Write a report that opens without a network.

    The page holds one copy of plotly.js, some 5 MB. Of the cube, only the neurons shown in
    detail are read.

    Parameters
    ----------
    ds
        A dataset as :func:`confreg.open` returns it, from any recipe. Sections whose
        variables it lacks are left out, with a sentence.
    path
        The file to write; an existing one is replaced.
    neurons
        Labels of the neurons (or sets) to show in detail; None: the ``details`` strongest.
    details
        How many neurons to show in detail.
    contexts
        How many affected tokens to show of each.

    Returns
    -------
    Path
        The file.

    Raises
    ------
    ConfregError
        If the dataset ablates nothing or lacks one of those named, or the file cannot be
        written.
    """
    path = Path(path)
    page = render(ds, Options(details, neurons, contexts))
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(page, encoding="utf-8")
    except OSError as error:
        raise ConfregError(
            f"The report cannot be written to {str(path)!r}: {error.strerror or error}."
        ) from error
    return path


def render(ds: xr.Dataset, options: Options) -> str:
    """Return the page as a string; arguments and errors as for :func:`write`."""
    from jinja2 import Environment, PackageLoader, StrictUndefined
    from plotly.offline import get_plotlyjs

    if not _has_something(ds):
        raise ConfregError(
            "The dataset has no axis with labels and no number: it is no result of confreg."
        )
    _check_named(ds, options)
    environment = Environment(
        loader=PackageLoader("confreg.report", "."),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.globals["figure_json"] = _figure_json
    environment.globals["data_json"] = _data_json
    environment.filters["slug"] = _slug
    made, missing = compose(ds, options)
    return environment.get_template("page.html.j2").render(
        title=_title(ds),
        summary=_summary(ds, options),
        mediator=mediator(ds)[0],
        glossary=glossary(ds),
        source=_source(ds),
        warnings=_warnings(ds),
        facts=facts(ds),
        attributes=sorted((str(key), str(value)) for key, value in ds.attrs.items()),
        sections=made,
        missing=missing,
        shades=max((len(s.data["shaded"]) for s in made if _is_shaded(s)), default=0),
        plotly=get_plotlyjs(),
    )


def _is_shaded(section: Section) -> bool:
    return isinstance(section.data, dict) and "shaded" in section.data


def _has_something(ds: xr.Dataset) -> bool:
    labelled = any(axes.kind(ds, str(dim)) != "other" for dim in ds.sizes)
    return labelled or any(array.ndim == 0 for array in ds.data_vars.values())


def facts(ds: xr.Dataset) -> list[tuple[str, str]]:
    """Say what was run, as pairs of a word and a phrase; unknown things are left out."""
    found = [
        ("Model", _model(ds)),
        ("First", _join(ds, first="{}", first_command="{}")),
        ("Second", _join(ds, second="{}", second_command="{}")),
        ("Neurons", _neurons(ds)),
        ("Axes", _axes(ds)),
        ("Text", _text(ds)),
        ("Unablated", _baseline(ds)),
        ("Ablation", _ablation(ds)),
        ("Engine", _engine(ds)),
        ("Run", _run(ds)),
        ("Versions", _versions(ds)),
    ]
    return [(word, phrase) for word, phrase in found if phrase]


def _figure_json(figure: Any) -> str:
    """Serialise a figure so that nothing in it can end the script element around it."""
    return _closed(figure.to_json())


def _data_json(data: Any) -> str:
    """Serialise what a script of the page draws, likewise."""
    return _closed(json.dumps(data, ensure_ascii=False, separators=(",", ":")))


def _closed(text: str) -> str:
    for character in "<>&":
        text = text.replace(character, f"\\u{ord(character):04x}")
    return text


def _slug(label: str) -> str:
    """Make a label fit for an element's id; script.js.j2 does the same."""
    return re.sub(r"[^\w.-]", "_", label)


def _check_named(ds: xr.Dataset, options: Options) -> None:
    if options.neurons is None:
        return
    dim = tables.chosen_axis(ds, None)
    known = set(axes.texts(ds, dim))
    for name in options.neurons:
        if name not in known:
            raise ConfregError(
                f"The dataset has no {dim} {name!r}; it has {len(known)}, for instance "
                f"{min(known, key=len, default='none')!r}."
            )


def _title(ds: xr.Dataset) -> tuple[str, str]:
    recipe = str(ds.attrs.get("recipe", "confidence regulation")).replace("_", " ")
    return recipe[:1].upper() + recipe[1:], str(ds.attrs.get("model", ""))


def _summary(ds: xr.Dataset, options: Options) -> list[dict[str, str]]:
    """Return the three strongest neurons, with what ablating them does."""
    if axes.main_subject(ds) != "neuron":
        return []
    frame = tables.table(ds)
    if "te_mediated" not in frame or "mediated" not in frame:
        return []
    shown = set(contexts.shown(ds, options))
    found = []
    for name in tables.ranked(frame, "te_mediated")[:3]:
        row = frame.index.get_loc(name)
        te, share = (float(frame[column].to_numpy()[row]) for column in ("te", "mediated"))
        said = {"neuron": str(name), "te": number(te), "share": percent(share)}
        found.append(said | {"to": "n" if str(name) in shown else "r"})
    return found


def _source(ds: xr.Dataset) -> str:
    """Say where the method is from: as the dataset says, or the paper of its numbers."""
    own = str(ds.attrs.get("references", ""))
    return own or (PAPER if about_neurons(ds) else "")


def _warnings(ds: xr.Dataset) -> list[str]:
    found = []
    if int(ds.attrs.get("complete", 1)) == 0:
        found.append("The run is not finished: what follows is what there is so far.")
    words = ("error_warning", "counts_warning", "text_warning", "effects_undefined")
    said = (ds.attrs.get(name) for name in words)
    return found + [str(warning) for warning in said if warning]


def _join(ds: xr.Dataset, **parts: str) -> str:
    """Fill each phrase with the attribute of its name, and join those that exist."""
    present = {key: ds.attrs[key] for key in parts if ds.attrs.get(key, "") != ""}
    return ", ".join(parts[key].format(value) for key, value in present.items())


def _model(ds: xr.Dataset) -> str:
    revision = str(ds.attrs.get("model_revision", ""))
    short = revision[:12] if re.fullmatch("[0-9a-f]{16,}", revision) else revision
    named = ds.assign_attrs(model_revision=short)
    return _join(
        named, model="{}", model_revision="revision {}", model_architecture="{}", dtype="{}"
    )


def _run(ds: xr.Dataset) -> str:
    host = ds.attrs.get("host", "")
    named = ds.assign_attrs(host="" if host == "local" else host)
    return _join(named, profile="profile {}", host="on {}", seed="seed {}")


def _neurons(ds: xr.Dataset) -> str:
    layers = np.unique(ds["layer"].values) if has(ds, "layer", ("neuron",)) else []
    said = f"{ds.sizes['neuron']:,}" if "neuron" in ds.sizes else ""
    if said and len(layers) == 1 and "model_neurons" in ds.attrs and "expert" not in ds.coords:
        whole = int(ds.attrs["model_neurons"])
        said = f"all {said}" if ds.sizes["neuron"] == whole else f"{said} of the {whole:,}"
    said += " neurons" * bool(said)
    if "set" in ds.sizes:
        drawn = (
            "of heads are ablated; watched are" if has(ds, "set_heads", ("set",)) else "drawn from"
        )
        said = f"{ds.sizes['set']:,} sets" + (f" {drawn} {said}" if said else "")
    if not len(layers):
        return said
    where = f"layer {layers[0]}"
    if len(layers) > 1:
        where = f"{len(layers)} layers, {layers[0]} to {layers[-1]}"
    last = int(ds.attrs.get("model_layers", 0)) - 1
    return f"{said} of {where}" + (f" (the model has layers 0 to {last})" if last > 0 else "")


def _axes(ds: xr.Dataset) -> str:
    """Say how long the axes are that no other fact speaks of, and from where to where they go."""
    found = []
    for dim in axes.of_kind(ds, "subject"):
        crossed = any(dim in v.dims and v.ndim > 1 for v in ds.data_vars.values())
        tell = crossed or dim == axes.main_subject(ds)
        if tell and dim not in ("neuron", "set") and ds.sizes[dim]:
            names = axes.texts(ds, dim)
            found.append(f"{len(names):,} {plural(ds, dim)}, {names[0]} to {names[-1]}")
    return "; ".join(found)


def _text(ds: xr.Dataset) -> str:
    corpus = _join(ds, corpus="{}")
    if axes.text(ds) != "token":
        return corpus
    phrase = f"{ds.sizes['token']:,} tokens"
    if "sequence" in ds.coords and ds.sizes["token"]:
        count = len(np.unique(ds["sequence"].values))
        phrase += f" in {count:,} sequence{'s' if count > 1 else ''}"
    if "sequence_length" in ds.attrs:
        phrase += f" of at most {ds.attrs['sequence_length']}"
    if "keep" in ds.coords:
        phrase += f"; {int(ds['keep'].sum()):,} kept in means"
    return f"{corpus}: {phrase}" if corpus else phrase


def _baseline(ds: xr.Dataset) -> str:
    if not has(ds, "keep", ("token",)):
        return ""
    keep = np.asarray(ds["keep"].values, dtype=bool)
    masks = [keep]
    if has(ds, "compared", ("token",)) and has(
        ds, "occurrence", ("token",)
    ):  # kept are tokens of second occurrences
        masks.insert(0, ds["compared"].values & (ds["occurrence"].values == 0))
    phrases = []
    for name in ("loss", "entropy"):
        if has(ds, name, ("token",)) and keep.any():
            known = np.isfinite(ds[name].values)  # no loss where no next token is known
            means = [
                number(float(np.mean(ds[name].values[mask & known])))
                if (mask & known).any()
                else number(float("nan"))
                for mask in masks
            ]
            phrases.append(f"mean {name} {' then '.join(means)} nats")
    return ", ".join(phrases)


def _ablation(ds: xr.Dataset) -> str:
    over = str(ds.attrs.get("mean_over", "")) or "all"
    if "set_way" in ds.coords:
        where = f" of {ds.attrs['mean_from']}" if ds.attrs.get("mean_from") else ""
        said = f", over {over} tokens{where}" if "mean_over" in ds.attrs else ""
        return f"activation replaced by what the set's name says{said}"
    kind = str(ds.attrs.get("ablation", "")) or ("mean" if "set" in ds.dims else "")
    if kind == "bos":
        return f"attention heads ({ds.attrs.get('heads', 'chosen')}) attend to the first token only"
    if kind == "mean":
        where = f"{over} tokens" + " that are routed to it" * ("expert" in ds.coords)
        if ds.attrs.get("mean_from"):
            where += f" of other text ({ds.attrs.get('mean_from_corpus', ds.attrs['mean_from'])})"
        if over == "first":
            count = ds.attrs["mean_over_tokens"]
            where = f"{count:,} compared tokens of first occurrences"
        if steps := deviations(ds):
            return f"activation replaced by its mean + k·σ over {where}, k = {steps}"
        return f"activation replaced by its mean over {where}"
    return f"activation replaced by {kind}" if kind else ""


def _engine(ds: xr.Dataset) -> str:
    phrase = _join(ds, engine="{}")
    if "recomputed_share" in ds.attrs and phrase == "series":
        phrase += f" ({percent(ds.attrs['recomputed_share'])} of all pairs exactly)"
    if "tolerance" in ds.attrs:
        phrase += f", tolerance {number(ds.attrs['tolerance'], 1)} nats"
    measured = np.isfinite(float(ds.attrs.get("error_max", np.nan)))
    if measured and ds.attrs.get("error_sampled_pairs", 1):
        phrase += f"; largest error measured {number(ds.attrs['error_max'], 2)} nats"
        if "error_sampled_pairs" in ds.attrs:
            pairs = " × ".join(filter(None, (axes.main_subject(ds), axes.text(ds)))).replace(
                "_", " "
            )
            count = float(ds.attrs["error_sampled_pairs"])
            phrase += f" on {count:,.0f} {pairs} pairs recomputed in float64"
    return phrase


def _versions(ds: xr.Dataset) -> str:
    names = ("confreg", "nnsight", "transformers", "torch", "python")
    found = [(name, ds.attrs.get(f"{name}_version")) for name in names]
    return ", ".join(f"{name} {version}" for name, version in found if version)
