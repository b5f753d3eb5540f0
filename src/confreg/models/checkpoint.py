"""A checkpoint's files: whole before they are read, and used up afterwards.

transformers reports what a file lacks in a log, and what a model did not take nowhere. Here a
folder's files are looked at before anything is read, so that an error names the file; and once a
model is there, what the files hold and the model did not take is refused by name.
"""

from __future__ import annotations

import json
import zipfile
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from confreg.errors import ConfregError

if TYPE_CHECKING:
    import torch
    from transformers import PretrainedConfig

    from confreg.models.architectures import Architecture
    from confreg.models.sources import Source

AGAIN = "Copy or download it again."
CLOSE = 1e-2
"""How far a stored table may be from what the model computes: bfloat16 rounds to 0.4 %."""


def check_json(source: Source) -> None:
    """Refuse a folder of which a file is no JSON, by the file's name."""
    if source.local and not source.gguf:
        for name in ("config.json", "tokenizer_config.json", "generation_config.json"):
            file = Path(source.path) / name
            if file.is_file() and not isinstance(_json(file, source.name), dict):
                raise ConfregError(f"{name} of {source.name} is no JSON object. {AGAIN}")


def check_adapters(source: Source) -> None:
    """Refuse a model beside which an adapter lies.

    Raises
    ------
    ConfregError
    """
    from transformers.utils.peft_utils import find_adapter_config_file

    if source.gguf:
        return
    # transformers applies an adapter that lies there if peft is installed, and else does not.
    if find_adapter_config_file(source.path, revision=source.revision):
        raise ConfregError(
            f"{source.name} holds a model and an adapter (adapter_config.json): which of the two "
            "is meant cannot be known. Put the adapter's files into a folder of their own, name "
            "the model without them, and the adapter with --adapter if it is to be applied."
        )


def check_kernels(config: PretrainedConfig, source: Source) -> None:
    """Refuse a configuration that names code of the Hub to compute with.

    Raises
    ------
    ConfregError
    """
    for part in ("attn", "experts"):
        named = getattr(config, f"_{part}_implementation", None)
        if "/" in str(named):
            raise ConfregError(
                f"The configuration of {source.name} names the code {named!r} of the Hub to "
                f"compute with. confreg never runs a model's own code: take {part}_implementation "
                "out of config.json."
            )


def check_files(source: Source) -> None:
    """Refuse a folder whose files of weights are not whole.

    Raises
    ------
    ConfregError
        A file that is missing, cut off or damaged, by name.
    """
    if source.local and not source.gguf:
        for file in weight_files(Path(source.path), source.name):
            _whole(file, source.name)


def weight_files(folder: Path, name: str) -> list[Path]:
    """The files of weights that transformers reads of a folder, in its order of preference.

    Parameters
    ----------
    folder : Path
    name : str
        Of the model, for the sentence of an error.

    Raises
    ------
    ConfregError
        There are none, or an index names a file that is not there.
    """
    from transformers.utils import (
        SAFE_WEIGHTS_INDEX_NAME,
        SAFE_WEIGHTS_NAME,
        WEIGHTS_INDEX_NAME,
        WEIGHTS_NAME,
    )

    for whole, index in (
        (SAFE_WEIGHTS_NAME, SAFE_WEIGHTS_INDEX_NAME),
        (WEIGHTS_NAME, WEIGHTS_INDEX_NAME),
    ):
        if (folder / whole).is_file():
            return [folder / whole]
        if (folder / index).is_file():
            return _shards(folder, index, name)
    raise ConfregError(
        f"The folder {name} holds no weights: neither {SAFE_WEIGHTS_NAME} nor {WEIGHTS_NAME}, "
        "whole or in shards with an index."
    )


def _shards(folder: Path, index: str, name: str) -> list[Path]:
    content = _json(folder / index, name)
    places = content.get("weight_map") if isinstance(content, dict) else None
    if not isinstance(places, dict) or not places:
        raise ConfregError(f"{index} of {name} has no weight_map. {AGAIN}")
    files = [folder / file for file in sorted(set(places.values()))]
    if lost := [file.name for file in files if not file.is_file()]:
        raise ConfregError(
            f"{name} lacks {len(lost)} of its {len(files)} files of weights ({lost[0]}"
            f"{' ...' if len(lost) > 1 else ''}), which {index} names. {AGAIN}"
        )
    return files


def _json(file: Path, name: str) -> Any:
    try:
        return json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise ConfregError(f"{file.name} of {name} is not JSON ({error}). {AGAIN}") from error


def _whole(file: Path, name: str) -> None:
    """Refuse a file of weights that ends too early; its tensors are not read."""
    if file.suffix == ".safetensors":
        from safetensors import SafetensorError, safe_open

        try:
            with safe_open(file, "pt"):
                return
        except (SafetensorError, OSError, ValueError) as error:
            reason = str(error)
    else:
        with file.open("rb") as stream:
            beginning = stream.read(2)
        # An older format is one pickle, of which nothing but reading it tells whether it is whole.
        if beginning == b"\x80\x02" or zipfile.is_zipfile(file):
            return
        reason = "it has no directory at its end"
    size = file.stat().st_size
    raise ConfregError(
        f"{file.name} of {name} is empty, cut off or damaged ({size:,} bytes: {reason}). {AGAIN}"
    )


def check_taken(
    network: torch.nn.Module, found: Mapping[str, Any], source: Source, row: Architecture
) -> None:
    """Refuse a model that took less, or other, than its checkpoint holds.

    Parameters
    ----------
    network : torch.nn.Module
    found : mapping
        What transformers says of its loading: keys that are missing, unexpected, of another shape.
    source : Source
    row : Architecture
        Of the model's family.

    Raises
    ------
    ConfregError
        With the names of the first few.
    """
    # transformers fills these with random numbers, and says so where nobody looks.
    if missing := sorted(found["missing_keys"]):
        raise ConfregError(
            f"{source.name} lacks {len(missing)} of the weights that {row.title} has "
            f"({_some(missing)}): it is incomplete, or its configuration is of another model."
        )
    if shapes := sorted(found["mismatched_keys"]):
        key, stored, wanted = shapes[0]
        raise ConfregError(
            f"{len(shapes)} of the weights of {source.name} have other shapes than its "
            f"configuration says ({key} is {tuple(stored)}, not {tuple(wanted)}): config.json is "
            "of another model."
        )
    if errors := found.get("error_msgs"):
        first = str(next(iter(errors))).strip().splitlines()[0]
        raise ConfregError(f"The weights of {source.name} cannot be converted: {first}")
    unexpected = sorted(found["unexpected_keys"])
    spare = {
        name
        for name, stored in _stored(source, set(unexpected).__contains__)
        if _is_mask(stored, network)
    }
    spare |= {name for name in unexpected if name.startswith(row.left_out)}
    if unexpected := [name for name in unexpected if name not in spare]:
        raise ConfregError(
            f"{source.name} holds {len(unexpected)} weights that {row.title} does not take "
            f"({_some(unexpected)}): computed without them it would be another model than was "
            "saved. Its configuration is of another model, or the checkpoint has parts that "
            "transformers does not know."
        )
    _check_tables(network, source)


def _check_tables(network: torch.nn.Module, source: Source) -> None:
    """Refuse stored tables that transformers passes over and computes anew, where they differ.

    Those are rotary frequencies and positions, which older checkpoints hold for every layer.
    """
    import torch

    computed: dict[str, list[torch.Tensor]] = {}
    for name, buffer in network.named_buffers():
        if buffer.device.type != "meta":
            computed.setdefault(_tail(name), []).append(buffer)
    parameters = {name for name, _ in network.named_parameters()}

    def wanted(name: str) -> bool:
        return name not in parameters and _tail(name) in computed

    for name, stored in _stored(source, wanted):
        alike = [each for each in computed[_tail(name)] if each.shape == stored.shape]
        if alike and not any(
            torch.allclose(each.cpu().float(), stored.float(), rtol=CLOSE, atol=1e-6)
            for each in alike
        ):
            raise ConfregError(
                f"{source.name} holds {name}, which differs from what transformers computes in its "
                "place from config.json: the configuration does not say how the model was made "
                "(a scaling of its positions, perhaps)."
            )


def _is_mask(stored: torch.Tensor, network: torch.nn.Module) -> bool:
    """Whether it is a constant of older checkpoints: who may attend to whom, or what hides others.

    A mask is causal, and of all positions before or of as many as the configuration says.
    """
    import torch

    if stored.numel() == 1:
        return stored.item() <= -1e4
    length = stored.shape[-1] if stored.dim() else 0
    if stored.dim() < 2 or stored.numel() != length**2 or stored.shape[-2] != length:
        return False
    mask = stored.reshape(length, length)
    own = (getattr(network.config, name, None) for name in ("window_size", "sliding_window"))
    windows = {length, *own}
    seen = int(mask[-1].count_nonzero())
    band = torch.ones(length, length, dtype=torch.bool).tril().triu(1 - seen)
    return seen in windows and torch.equal(mask, band.to(mask.dtype))


def _stored(source: Source, wanted: Callable[[str], bool]) -> Iterator[tuple[str, torch.Tensor]]:
    """Yield tensors of a checkpoint by name, on this machine or in the Hub's cache."""
    import torch
    from safetensors import safe_open
    from transformers.utils.hub import cached_file

    if source.gguf:
        return
    config = cached_file(source.path, "config.json", revision=source.revision)
    for file in weight_files(Path(config or source.path).parent, source.name):
        if file.suffix == ".safetensors":
            with safe_open(file, "pt") as weights:
                for name in filter(wanted, weights.keys()):
                    yield name, weights.get_tensor(name)
        else:
            content = torch.load(file, weights_only=True, map_location="cpu")
            yield from ((name, content[name]) for name in filter(wanted, content))


def _tail(name: str) -> str:
    return ".".join(name.split(".")[-2:])


def _some(names: list[str]) -> str:
    return ", ".join(names[:3]) + (" ..." if len(names) > 3 else "")
