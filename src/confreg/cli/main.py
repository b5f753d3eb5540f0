"""The command line: ``confreg``."""

from __future__ import annotations

import argparse
import dataclasses
import io
import os
import re
import shlex
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any, get_type_hints

from confreg import __version__
from confreg.errors import ConfregError
from confreg.options import Options, choices, meta

EPILOG = """examples:
  confreg run entropy_neurons --out runs/demo.zarr
  confreg run entropy_neurons --model Qwen/Qwen2.5-7B --profile offload --out runs/qwen.zarr
  confreg plan entropy_neurons --model Qwen/Qwen2.5-7B --max-tokens 100000
  confreg show runs/demo.zarr --by te_mediated
  confreg report runs/demo.zarr -o runs/demo.html

Every command explains itself: confreg run --help

environment:
  HF_HOME, HF_TOKEN      models and data of the Hub: where they are kept, and your key
  CONFREG_CACHE          where models with an alias, verifications and NDIF servers are kept
                         (default: confreg in the user's cache, as ~/.cache/confreg)
  NDIF_API_KEY           your key to an NDIF server that asks for one
"""

RUN_EPILOG = """neurons:
  all                    every neuron of the recipe's layer (default)
  11.584,11.2378         by layer.index
  31:0-511               a range of one layer, both ends included
  15.3.17,15.3.0-511     in mixtures of experts by layer.expert.index; 15.shared.7
  expert:3               all of an expert of the recipe's layer; expert:shared
  routed:top:200         the 200 neurons whose experts get the most tokens of the text
  random:100             drawn with --seed from the recipe's layer
  @best.txt              of a file: lines of the above, or a table (.csv, .parquet, ...) with the
                         columns layer and index
  runs/a.zarr:top:20:te_mediated
                         the first of a finished store of the same model (or bottom:)

text:
  a file, a folder, a glob, or hf:dataset[/config][:split][#column]; default: the English
  help topics that ship with Python. Of .jsonl, .json, .csv, .tsv and .parquet files the field
  text is read; any file may be packed (.gz, .zst)

A run into an existing store goes on where it stopped, if the configuration is the same.
"""


def main(argv: Sequence[str] | None = None) -> None:
    """Entry point: exit status 0, 2 for a mistake that the user can mend, 130 for Ctrl-C."""
    arguments = list(sys.argv[1:] if argv is None else argv)
    # A terminal or a file that is no UTF-8 shows another character, and is no error.
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="replace")
    # nnsight reads sys.argv for a -v of its own.
    sys.argv = sys.argv[:1]
    options = _parser().parse_args(_joined(arguments))
    options.command_line = shlex.join(["confreg", *arguments])
    try:
        options.function(options)
    except ConfregError as error:
        if getattr(options, "debug", False):
            raise
        print(f"confreg: {error}", file=sys.stderr)
        sys.exit(2)
    except KeyboardInterrupt:
        print(
            "\nconfreg: stopped. What was finished is kept: the same command goes on from there.",
            file=sys.stderr,
        )
        sys.exit(130)
    except BrokenPipeError:
        # The reader (head, less) has gone: not an error of ours.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def _joined(arguments: Sequence[str]) -> list[str]:
    """Put flags and values that begin with a minus together: ``--neurons=-1:0-3``.

    argparse would take such a value for a flag.
    """
    found: list[str] = []
    for argument in arguments:
        flag = found[-1] if found else ""
        if re.match(r"-\d", argument) and re.fullmatch(r"--[a-z][a-z-]*", flag):
            found[-1] = f"{flag}={argument}"
        else:
            found.append(argument)
    return found


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="confreg",
        description="Find and measure confidence-regulation neurons in language models.",
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--version", action="version", version=f"confreg {__version__}")
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    for add in (
        _add_run,
        _add_plan,
        _add_show,
        _add_compare,
        _add_atlas,
        _add_report,
        _add_netcdf,
        _add_counts,
        _add_lists,
        _add_fetch,
    ):
        add(commands)
    _add_verify(commands)
    _add_doctor(commands)
    _add_ndif(commands)
    return parser


def _command(
    commands: Any, name: str, function: Any, text: str, epilog: str = ""
) -> argparse.ArgumentParser:
    parser = commands.add_parser(
        name,
        help=text,
        description=text[0].upper() + text[1:] + ".",
        epilog=epilog,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.set_defaults(function=function)
    return parser


def _add_run(commands: Any) -> None:
    parser = _command(commands, "run", _run, "run a recipe and write its dataset", RUN_EPILOG)
    _add_request(parser)
    parser.add_argument("--overwrite", action="store_true", help="replace an existing store")
    parser.add_argument("--quiet", action="store_true", help="no progress bars, no table")


def _add_plan(commands: Any) -> None:
    parser = _command(
        commands, "plan", _plan, "say what would run, its passes and its sizes; run nothing",
        RUN_EPILOG,
    )  # fmt: skip
    _add_request(parser)


def _add_request(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "recipe", metavar="RECIPE", help="a name (see confreg recipes) or the path of a file"
    )
    add = parser.add_argument
    add("--text", nargs="+", action="extend", metavar="T", help="what to run on, see below")
    _add_profile(parser, "memory")
    add("--out", metavar="O.zarr", help="store to write (default: runs/RECIPE.zarr)")
    for option in dataclasses.fields(Options):
        if meta(option, "flag"):
            _add_option(parser, option)
    add("-p", dest="parameters", action="append", default=[], metavar="name=value",
        help="a parameter of the recipe, such as -p layer=10 or -p ablation=zero")  # fmt: skip
    add("--debug", action="store_true", help="show the traceback of a mistake in a recipe")


def _add_option(parser: argparse.ArgumentParser, option: dataclasses.Field[Any]) -> None:
    """A flag of the command line for a row of the table of options."""
    kind, flag = get_type_hints(Options)[option.name], f"--{option.name.replace('_', '-')}"
    text = meta(option, "help")
    # What is not given is not passed on: the table has the defaults.
    given: dict[str, Any] = {"default": argparse.SUPPRESS}
    if kind is bool:
        parser.add_argument(flag, action="store_true", help=text, **given)
        return
    if "default" not in text and option.default is not None:
        text += f" (default: {option.default})"
    if meta(option, "several"):
        text += "; may be repeated, and --out is then a folder"
    given["choices" if choices(kind) else "metavar"] = choices(kind) or meta(option, "metavar")
    if "list" in str(kind):
        given |= {"nargs": "+", "action": "extend"}
    elif meta(option, "several"):
        given |= {"action": "append"}
    parser.add_argument(flag, help=text, **given)


def _add_profile(parser: argparse.ArgumentParser, default: str | None) -> None:
    parser.add_argument(
        "--profile",
        default=default,
        metavar="P",
        help="where to run: a name or a TOML file (see confreg doctor)",
    )
    parser.add_argument(
        "-P",
        dest="overrides",
        action="append",
        default=[],
        metavar="name=value",
        help="override a value of the profile, such as -P max_memory.cpu=6GB",
    )


def _add_show(commands: Any) -> None:
    parser = _command(commands, "show", _show, "print the strongest neurons as a table")
    parser.add_argument("store", metavar="O.zarr")
    parser.add_argument(
        "--by",
        default="te_mediated",
        metavar="VARIABLE",
        help="rank by this per-neuron variable (default: %(default)s)",
    )
    parser.add_argument("-n", type=int, default=10, help="how many (default: %(default)s)")
    parser.add_argument("--smallest", action="store_true", help="smallest first")


def _add_report(commands: Any) -> None:
    parser = _command(commands, "report", _report, "write a page that shows the dataset")
    parser.add_argument("store", metavar="O.zarr")
    parser.add_argument(
        "-o", dest="page", metavar="page.html", help="default: beside the store, with .html"
    )


def _add_compare(commands: Any) -> None:
    parser = _command(
        commands, "compare", _compare, "hold two stores against each other",
        "What may be compared is said first, and what is left out with the reason.",
    )  # fmt: skip
    parser.add_argument("first", metavar="A.zarr")
    parser.add_argument("second", metavar="B.zarr")
    parser.add_argument("-o", dest="page", metavar="page.html", help="write a page, too")
    parser.add_argument(
        "--out", metavar="O.nc", help="write the comparison's dataset as netCDF, too"
    )
    parser.add_argument(
        "--top", type=int, default=100, metavar="N",
        help="how many of the largest count as the top (default: %(default)s)",
    )  # fmt: skip
    parser.add_argument(
        "--draws", type=int, default=2000, metavar="N",
        help="resamples of documents (default: %(default)s)",
    )  # fmt: skip
    parser.add_argument(
        "--seed", type=int, default=0, metavar="S", help="of the resamples (default: %(default)s)"
    )


def _add_atlas(commands: Any) -> None:
    parser = _command(
        commands, "atlas", _atlas, "show all models of a folder on the same axes",
        "The folder is what `confreg run RECIPE --model A --model B --out FOLDER` writes.",
    )  # fmt: skip
    parser.add_argument("folder", metavar="FOLDER")
    parser.add_argument(
        "-o", dest="page", metavar="page.html", help="default: beside the folder, with .html"
    )
    parser.add_argument(
        "--parquet", metavar="O.parquet", help="write the tables of all models as one file, too"
    )


def _add_netcdf(commands: Any) -> None:
    parser = _command(commands, "netcdf", _netcdf, "write the dataset as one netCDF file")
    parser.add_argument("store", metavar="O.zarr")
    parser.add_argument(
        "-o", dest="file", metavar="O.nc", help="default: beside the store, with .nc"
    )


def _add_counts(commands: Any) -> None:
    text = "count the tokens of a text, for recipes that take counts"
    parser = _command(
        commands, "counts", _counts, text,
        "Then: confreg run token_frequency_neurons -p counts=counts.npy",
    )  # fmt: skip
    add = parser.add_argument
    add("text", nargs="*", metavar="T", help="as --text of confreg run")
    add("-o", dest="out", required=True, metavar="FILE", help="a .npy or a .csv file to write")
    add(
        "--model",
        default="smollm2-135m",
        metavar="M",
        help="whose tokenizer counts (default: %(default)s)",
    )
    add(
        "--max-tokens",
        type=_count,
        default=10_000_000,
        metavar="N",
        help="tokens to count, or 'all' (default: %(default)s)",
    )


def _add_lists(commands: Any) -> None:
    _command(commands, "recipes", _recipes, "list the recipes, their parameters and effects")
    text = "list aliases, architectures that are tested, models verified here, what is refused"
    _command(commands, "models", _models, text)


def _add_fetch(commands: Any) -> None:
    parser = _command(
        commands, "fetch", _fetch, "fetch a model that has an alias, and ask for its licence",
        "A model without terms to accept is fetched by the first run that names it.",
    )  # fmt: skip
    parser.add_argument("alias", metavar="ALIAS", help="as `confreg models` lists them")
    parser.add_argument(
        "--accept-licence", action="store_true",
        help="you accept the terms that the model comes under: no question is asked",
    )  # fmt: skip


def _add_verify(commands: Any) -> None:
    parser = _command(
        commands, "verify", _verify,
        "try what is known of a model's architecture on its weights",
        "It loads the model and holds its parts against each other; for an architecture that is in "
        "no table, too. At a server it compares what requests can.",
    )  # fmt: skip
    add = parser.add_argument
    add("model", metavar="M", help="as --model of confreg run")
    add("--adapter", metavar="A", help="as --adapter of confreg run")
    add("--dtype", metavar="D",
        help="to compute in (default: float32, at a server what the profile says)")  # fmt: skip
    _add_profile(parser, "memory")


def _add_doctor(commands: Any) -> None:
    parser = _command(commands, "doctor", _doctor, "check this machine, and what a profile needs")
    _add_profile(parser, None)
    parser.add_argument(
        "--model",
        default="smollm2-135m",
        metavar="M",
        help="model to place or to look for (default: %(default)s)",
    )


def _add_ndif(commands: Any) -> None:
    parser = _command(
        commands, "ndif", _ndif, "start, end and look at an NDIF server on this machine",
        "`up` writes the profile ndif-localhost: confreg run ... --profile ndif-localhost",
    )  # fmt: skip
    add = parser.add_argument
    add("action", choices=("up", "down", "status"))
    add("--model", dest="models", action="append", default=[], metavar="M",
        help="deploy it at once, as --model of confreg run (may be repeated)")  # fmt: skip
    add("--device", default="auto", choices=("auto", "cpu", "cuda"),
        help="of every model (default: %(default)s, a GPU where there is one)")  # fmt: skip
    add("--dtype", metavar="D", help="of every model (default: float32, on GPUs bfloat16)")
    add("--no-sandbox", dest="sandbox", action="store_false",
        help="run blocks beside the weights even where a client asks not to")  # fmt: skip
    add("--timeout", type=float, metavar="SECONDS", help="end a request that runs for longer")


def _count(text: str) -> int | None:
    return None if text == "all" else int(text)


def _pairs(given: Sequence[str], flag: str) -> dict[str, str]:
    found = {}
    for item in given:
        name, equals, value = item.partition("=")
        if not equals:
            raise ConfregError(f"{flag} takes name=value, not {item!r}.")
        found[name] = value
    return found


def _options(options: argparse.Namespace) -> dict[str, Any]:
    from confreg import tokens

    names = [option.name for option in dataclasses.fields(Options) if meta(option, "flag")]
    given = {name: getattr(options, name) for name in names if hasattr(options, name)}
    several = [option.name for option in dataclasses.fields(Options) if meta(option, "several")]
    for name in several:
        if len(given.get(name, [])) == 1:
            (given[name],) = given[name]
    return {
        **given,
        "profile": options.profile,
        "text": None if options.text is None else tokens.read_sources(options.text),
        "overrides": _pairs(options.overrides, "-P"),
        "out": options.out or f"runs/{_stem(options.recipe)}.zarr",
        **_parameters(options),
    }


def _parameters(options: argparse.Namespace) -> dict[str, str]:
    from confreg.recipe import find

    given = _pairs(options.parameters, "-p")
    # Checked here, so that a parameter cannot be taken for an option of confreg.run.
    find(options.recipe).bind(given)
    return given


def _stem(recipe: str) -> str:
    return Path(recipe).stem


def _run(options: argparse.Namespace) -> None:
    from confreg import api
    from confreg.cli import tables

    request = _options(options)
    if isinstance(request.get("model"), list):
        _run_each(options, request)
        return
    ds = api.run(
        options.recipe,
        **request,
        overwrite=options.overwrite,
        progress=not options.quiet,
        command_line=options.command_line,
    )
    if not options.quiet:
        tables.print_top(ds)
        print(f"\nDataset: {request['out']}   page: confreg report {request['out']}")
    for name in ("error_warning", "counts_warning", "text_warning", "effects_undefined"):
        if name in ds.attrs:
            print(f"confreg: warning: {ds.attrs[name]}", file=sys.stderr)


def _run_each(options: argparse.Namespace, request: dict[str, Any]) -> None:
    """Several models: a store each, in the folder ``--out``."""
    from confreg import many

    request = {**request, "out": options.out or f"runs/{_stem(options.recipe)}"}
    tree = many.run_each(
        options.recipe, request.pop("model"), overwrite=options.overwrite,
        progress=not options.quiet, command_line=options.command_line, **request,
    )  # fmt: skip
    if not options.quiet:
        print(f"\nDatasets of {len(tree.children)} models: {request['out']}   "
              f"page: confreg atlas {request['out']}")  # fmt: skip


def _plan(options: argparse.Namespace) -> None:
    from confreg import api
    from confreg.cli import tables

    request = _options(options)
    models = request.pop("model", None)
    for model in models if isinstance(models, list) else [models]:
        given = request if model is None else {**request, "model": model}
        tables.print_plan(api.plan(options.recipe, **given))


def _atlas(options: argparse.Namespace) -> None:
    from confreg import many, report
    from confreg.results import atlas
    from confreg.results import open as opening

    with opening.reading(options.folder):
        tree = many.open_folder(options.folder)
        page = options.page or _beside(options.folder, ".html")
        print(report.write(atlas.atlas(tree), page))
        if options.parquet:
            print(many.write_parquet(tree, options.parquet))


def _show(options: argparse.Namespace) -> None:
    from confreg.cli import tables
    from confreg.results import open as opening

    with opening.reading(options.store):
        tables.print_top(opening.open(options.store), options.by, options.n, options.smallest)


def _compare(options: argparse.Namespace) -> None:
    from confreg import report
    from confreg.cli import comparing
    from confreg.results import open as opening
    from confreg.results.comparing import compare

    with opening.reading(options.first), opening.reading(options.second):
        found = compare(
            opening.open(options.first), opening.open(options.second),
            top=options.top, draws=options.draws, seed=options.seed,
        )  # fmt: skip
    comparing.print_comparison(found)
    if options.page:
        print(report.write(found, options.page))
    if options.out:
        print(opening.write_netcdf(found, options.out))


def _report(options: argparse.Namespace) -> None:
    from confreg import report
    from confreg.results import open as opening

    page = options.page or _beside(options.store, ".html")
    with opening.reading(options.store):
        print(report.write(opening.open(options.store), page))


def _beside(store: str, suffix: str) -> Path:
    """A file beside a store: with its whole name, which may have dots (qwen2.5)."""
    path = Path(store)
    return path.with_name(path.name.removesuffix(".zarr") + suffix)


def _netcdf(options: argparse.Namespace) -> None:
    from confreg.results import open as opening

    file = options.file or _beside(options.store, ".nc")
    with opening.reading(options.store):
        print(opening.write_netcdf(opening.open(options.store), file))


def _counts(options: argparse.Namespace) -> None:
    from confreg import models, tokens
    from confreg.progress import Progress

    described = models.describe(options.model)
    corpus = tokens.read_sources(options.text) if options.text else tokens.read()
    with Progress().bar("counting", options.max_tokens, "tokens") as advance:
        found = tokens.counts.count(
            corpus, described.tokenizer, described.vocab_size, options.max_tokens, advance
        )
    found.save(options.out)
    print(f"{options.out}: {found.total:,} tokens of {corpus.name}")
    if found.warning:
        print(f"confreg: warning: {found.warning}", file=sys.stderr)


def _recipes(options: argparse.Namespace) -> None:
    from confreg.cli import tables

    tables.print_recipes()


def _models(options: argparse.Namespace) -> None:
    from confreg.cli import listing

    listing.print_models()


def _fetch(options: argparse.Namespace) -> None:
    from confreg.cli import fetching

    fetching.fetch(options.alias, accept=options.accept_licence)


def _verify(options: argparse.Namespace) -> None:
    from confreg.cli import verifying
    from confreg.places import profiles

    profile = profiles.load(options.profile, _pairs(options.overrides, "-P"))
    verifying.verify(options.model, profile, options.dtype, options.adapter)


def _doctor(options: argparse.Namespace) -> None:
    from confreg.cli import tables
    from confreg.places import doctor

    checks = doctor.check(options.profile, _pairs(options.overrides, "-P"), options.model)
    tables.print_checks(checks)
    if not all(check.ok for check in checks):
        sys.exit(2)


def _ndif(options: argparse.Namespace) -> None:
    from confreg.places.ndif import server

    if options.action == "up":
        print("starting an NDIF server, about a minute ...", file=sys.stderr)
        server.up(
            options.models,
            device=options.device,
            dtype=options.dtype,
            sandbox=options.sandbox,
            timeout=options.timeout,
        )
    elif options.action == "down":
        print("ended" if server.down() else "no server was running")
        return
    print(server.status().describe())
