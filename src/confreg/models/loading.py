"""`load` and `describe`: a model, or what can be said of it without its weights."""

from __future__ import annotations

import copy
import functools
import re
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Any

from confreg.errors import ConfregError, said
from confreg.models import adapters, gguf, prequantized
from confreg.models.checkpoint import (
    check_adapters,
    check_files,
    check_json,
    check_kernels,
    check_taken,
)
from confreg.models.classes import auto_class, task_of, weightless
from confreg.models.model import Description, Model, describe_config
from confreg.models.quiet import quiet
from confreg.models.sources import Source, locate
from confreg.progress import waiting

if TYPE_CHECKING:
    import torch

    from confreg.models.architectures import Architecture
    from confreg.models.placement import Placement


OWN_CODE = {"trust_remote_code": False}
"""Code in a model's folder is never run, and nothing is asked at a prompt."""


def describe(name: str, revision: str | None = None, dtype: str | None = None) -> Description:
    """Say what a model is from its configuration and its tokenizer alone.

    Parameters
    ----------
    name : str
        As for `load`.
    revision : str, optional
        Of a Hub id.
    dtype : str, optional
        In place of the checkpoint's own.

    Raises
    ------
    ConfregError
        The model cannot be found or reached, has no tokenizer, or has an architecture that
        confreg does not measure.
    """
    return _describe(locate(name, revision), dtype)


def load(
    name: str,
    profile: Placement | None = None,
    dtype: str | None = None,
    revision: str | None = None,
    weights: bool = True,
    described: Description | None = None,
    adapter: str | None = None,
) -> Model:
    """Load a model for tracing.

    Parameters
    ----------
    name : str
        ``smollm2-135m``; a folder with safetensors or one GGUF; a GGUF file; a Hugging Face
        id, ``owner/model`` or ``owner/model@revision``.
    profile : Placement, optional
        Where the weights go; by default all on the CPU.
    dtype : str, optional
        "float32", "bfloat16", "float16", or a quantization ("int8", "nf4", "fp4", "fp8").
        Default: the profile's, else the checkpoint's own.
    revision : str, optional
        Of a Hub id.
    weights : bool
        False for a remote run: only the structure is built, on the meta device.
    described : Description, optional
        What `describe` said of the same model, so that it is not found out again.
    adapter : str, optional
        A folder or a Hugging Face id: an adapter that is attached to the weights.

    Raises
    ------
    ConfregError
        As for `describe`; a dtype that does not exist, or weights that cannot be read.
    """
    from nnsight import TransformersModel

    if profile is not None and profile.quantization is not None:
        profile.check_quantization()
    source = locate(name, revision)
    computed = dtype or (profile.dtype if profile is not None else None)
    computed = computed and _check_dtype(computed)
    held = (profile.quantization if profile is not None else None) or computed
    described = described or _describe(source, held)
    if not weights:
        with quiet(), _named(source, "structure"):
            nn = TransformersModel(
                source.path,
                revision=None if source.local else source.revision,
                task=task_of(described.row.model_type),
                tokenizer=described.tokenizer,
                dtype=held or "auto",
                **OWN_CODE,
            )
        return Model(nn, described)
    network = _read(source, described, profile, computed)
    network.eval().requires_grad_(False)
    if adapter is not None:
        with quiet():
            adapters.attach(network, adapter, source.name)
    with quiet():
        nn = TransformersModel(network, task="text-generation", tokenizer=described.tokenizer)
    return Model(nn, described)


def _describe(source: Source, dtype: str | None) -> Description:
    if dtype is not None:
        dtype = _check_dtype(dtype)
    with waiting(f"reading the configuration and the tokenizer of {source.name}"):
        return _found_out(source, dtype)


def _found_out(source: Source, dtype: str | None) -> Description:
    from confreg.models import lookup

    config = _configuration(source)
    # The architecture is checked before anything else of the model is fetched.
    with _named(source, "structure"):
        network = functools.cache(lambda: weightless(config))
        row = lookup.find(config, source.name, network)
        sizes = module_sizes(network(), row)
    if source.gguf:
        gguf.check_keys(Path(source.path) / source.gguf, config, row, source.name)
        dtype = dtype or "float32"  # what transformers dequantises to
    elif prequantized.is_prequantized(config):
        _check_plain(dtype, source)
        prequantized.prepare(config, source.name)
    return describe_config(
        config,
        _tokenizer(source),
        source.name,
        source.revision if source.local else _commit(source),
        dtype,
        sizes,
        row,
    )


def _configuration(source: Source) -> Any:
    """A model's configuration, with what lies beside it looked at."""
    from transformers import AutoConfig

    check_json(source)
    with quiet(), _parsed(source), _named(source, "configuration"):
        config = AutoConfig.from_pretrained(source.path, **source.keywords(), **OWN_CODE)
        check_adapters(source)
        check_kernels(config, source)
    return config


def _read(
    source: Source, described: Description, profile: Placement | None, computed: str | None
) -> Any:
    """Read the weights, and put them where the profile says."""
    import torch
    from nnsight.modeling.quantization import resolve_load_kwargs

    check_files(source)
    words: dict[str, Any] = {"dtype": described.dtype, **source.keywords(), **OWN_CODE}
    words["ignore_mismatched_sizes"] = True  # else a report in a log, and no name in the error
    if computed and computed != described.dtype:
        words["compute_dtype"] = computed  # of a quantized model
    if profile is not None:
        words |= profile.keywords(described, source)
    packed = False
    if source.gguf:
        # A copy: transformers writes into it what becomes of the weights.
        words |= {"config": copy.deepcopy(described.config), **gguf.keywords()}
    elif prequantized.is_prequantized(config := _configuration(source)):
        packed = True
        prequantized.prepare(config, source.name)
        words["config"] = config
        if len(words.setdefault("device_map", {"": "cpu"})) > 1:
            raise ConfregError(
                f"{source.name} is quantized, and its weights are made plain as they are read: "
                "they must fit one device and cannot stay on disk. Use the model that it was made "
                "from."
            )
    with quiet(), _parsed(source), _named(source, "weights"):
        loaded: Any = auto_class(described.row.model_type).from_pretrained(
            source.path, output_loading_info=True, **resolve_load_kwargs(words)
        )
    network, found = loaded
    if source.gguf:
        gguf.check_tensors(Path(source.path) / source.gguf, network, source.name)
    check_taken(network, found, source, described.row)
    if packed:
        with quiet(), _named(source, "weights"):
            network = prequantized.finish(network, getattr(torch, described.dtype), source.name)
    return network


def _check_plain(dtype: str | None, source: Source) -> None:
    from nnsight.modeling.quantization import QUANTIZATIONS

    if dtype in QUANTIZATIONS:
        raise ConfregError(
            f"{source.name} is quantized already, and its weights are made plain as they are read: "
            f"leave out {dtype}, or use the model that it was made from."
        )


def _commit(source: Source) -> str | None:
    """Return the commit that a Hub id's revision stands for, from the path of its cached file."""
    from transformers.utils.hub import cached_file

    file = cached_file(source.path, "config.json", revision=source.revision)
    commit = re.search(r"snapshots/([0-9a-f]{40})/", Path(file or "").as_posix())
    return commit[1] if commit else source.revision


def _tokenizer(source: Source) -> Any:
    from transformers import AutoTokenizer

    with quiet(), _parsed(source), _named(source, "tokenizer"):
        return AutoTokenizer.from_pretrained(source.path, **source.keywords(), **OWN_CODE)


def _parsed(source: Source) -> AbstractContextManager[None]:
    return gguf.parsed_once() if source.gguf else nullcontext()


@contextmanager
def _named(source: Source, part: str) -> Iterator[None]:
    """Turn whatever the Hub and transformers raise into one sentence about ``source``."""
    try:
        yield
    except ConfregError:
        raise
    except Exception as error:  # torch's, safetensors', tokenizers', pickle's, anyone's
        raise ConfregError(_sentence(source, part, error)) from error


def _sentence(source: Source, part: str, error: BaseException) -> str:
    from huggingface_hub import constants

    kinds = set()
    cause: BaseException | None = error
    while cause is not None:
        kinds |= {kind.__name__ for kind in type(cause).__mro__}
        cause = cause.__cause__ or cause.__context__
    name = source.name + (f"@{source.revision}" if source.revision and not source.local else "")
    first = said(error)
    if "offload_folder" in str(error):
        return (
            f"The weights of {name} are converted as they are read, so layers cannot stay in its "
            "files: say where accelerate may write them, -P offload_folder=FOLDER."
        )
    if "trust_remote_code" in str(error):
        return (
            f"{name} is made of code that lies beside its weights. confreg never runs code of a "
            "model's own: use a model, or a copy of it, whose config.json names an architecture "
            "of transformers."
        )
    if source.local:
        return f"The {part} of {name} cannot be read from {source.path}: {first}"
    if "GatedRepoError" in kinds:
        return (
            f"{name} is gated on the Hugging Face Hub: accept its conditions on its page, then "
            "log in with `hf auth login` or set HF_TOKEN."
        )
    if "RevisionNotFoundError" in kinds:
        return f"The Hugging Face Hub has no revision {source.revision!r} of {source.path}."
    if "RepositoryNotFoundError" in kinds or "HFValidationError" in kinds:
        return (
            f"There is no model {name!r}: it is no folder here, and the Hugging Face Hub has no "
            "such id (or it is private: log in with `hf auth login`)."
        )
    if constants.HF_HUB_OFFLINE:
        return (
            f"{name} is not in the local Hugging Face cache, and HF_HUB_OFFLINE forbids asking "
            "the Hub. Unset it, or name a local folder."
        )
    if kinds & {"LocalEntryNotFoundError", "ConnectError", "ConnectionError", "TimeoutException"}:
        return (
            f"The Hugging Face Hub cannot be reached, and the {part} of {name} is not in the "
            "local cache. Check the network, or use a local folder or `smollm2-135m`."
        )
    return f"The {part} of {name} cannot be loaded: {first}"


def _check_dtype(dtype: str) -> str:
    from nnsight.modeling.quantization import QUANTIZATIONS

    dtype = {"bf16": "bfloat16", "fp16": "float16", "half": "float16", "fp32": "float32"}.get(
        dtype, dtype
    )
    known = ["float32", "bfloat16", "float16", *QUANTIZATIONS]
    if dtype not in known:
        raise ConfregError(f"There is no dtype {dtype!r}. There are: {', '.join(known)}.")
    return dtype


def module_sizes(network: torch.nn.Module, row: Architecture) -> dict[str, int]:
    """Count the parameters of every module that is placed as a whole.

    Those are each decoder layer and, outside the layers, every smallest module that owns
    parameters or buffers (embeddings, final norm, unembedding, rotary tables, a vision tower),
    and parameters of what is above them. A tied unembedding counts 0.
    """
    sizes: dict[str, int] = {}
    seen: set[int] = set()

    def visit(path: str, module: torch.nn.Module) -> None:
        inner = row.layers.startswith(path + ".") or path == "" or path == row.layers
        if inner:
            for child, part in module.named_children():
                visit(f"{path}.{child}" if path else child, part)
            for name, own in module.named_parameters(recurse=False):
                sizes[f"{path}.{name}".removeprefix(".")] = own.numel()
            return
        parameters = [p for p in module.parameters() if id(p) not in seen]
        seen.update(map(id, parameters))
        sizes[path] = sum(p.numel() for p in parameters)

    visit("", network)
    return sizes
