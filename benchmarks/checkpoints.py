"""Random checkpoints of Llama's architecture, of any size, written shard by shard."""

from __future__ import annotations

import json
import math
import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors.torch import save_file

from confreg.errors import ConfregError


@dataclass(frozen=True)
class Shape:
    """Sizes of a Llama."""

    layers: int
    width: int
    neurons: int
    heads: int
    vocab: int

    @property
    def parameters(self) -> int:
        layer = 4 * self.width**2 + 3 * self.width * self.neurons + 2 * self.width
        return self.layers * layer + 2 * self.vocab * self.width + self.width


SHAPES = {
    "7b": Shape(32, 4096, 11008, 32, 32000),
    "small": Shape(8, 1024, 4096, 16, 32000),  # 200 million parameters
}


POOL = 2**26 + 1


def write(folder: Path, shape: Shape, dtype: torch.dtype = torch.bfloat16, seed: int = 0) -> int:
    """Write a checkpoint and its tokenizer into ``folder``; return its bytes of weights.

    One layer is in memory at a time.

    Raises
    ------
    ConfregError
        The disk has no room for it.
    """
    size = shape.parameters * dtype.itemsize
    folder.mkdir(parents=True, exist_ok=True)
    free = shutil.disk_usage(folder).free
    if free < size + 2**30:
        raise ConfregError(
            f"The checkpoint takes {size / 1e9:.1f} GB and {folder} has {free / 1e9:.1f} GB free. "
            "Name a folder on a larger disk with --folder."
        )
    noise = _Noise(dtype, seed)
    weight_map: dict[str, str] = {}
    for number, names in enumerate(_shards(shape)):
        shard = f"model-{number:05d}.safetensors"
        tensors = {name: noise.tensor(dims) for name, dims in names.items()}
        save_file(tensors, folder / shard, metadata={"format": "pt"})
        weight_map |= dict.fromkeys(tensors, shard)
    index = {"metadata": {"total_size": size}, "weight_map": weight_map}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    _configure(folder, shape, dtype)
    return size


def _shards(shape: Shape) -> Iterator[dict[str, tuple[int, ...]]]:
    """Names and dims of the tensors of each shard: the outer ones, then layer by layer."""
    d, n = shape.width, shape.neurons
    outer: dict[str, tuple[int, ...]] = {
        "model.embed_tokens.weight": (shape.vocab, d),
        "model.norm.weight": (d,),
        "lm_head.weight": (shape.vocab, d),
    }
    yield outer
    for i in range(shape.layers):
        prefix = f"model.layers.{i}."
        layer: dict[str, tuple[int, ...]] = {
            f"{prefix}self_attn.{p}_proj.weight": (d, d) for p in "qkvo"
        }
        layer |= {f"{prefix}mlp.{p}_proj.weight": (n, d) for p in ("gate", "up")}
        layer[f"{prefix}mlp.down_proj.weight"] = (d, n)
        layer |= {f"{prefix}{p}_layernorm.weight": (d,) for p in ("input", "post_attention")}
        yield layer


class _Noise:
    """Normal noise, drawn once and read from a random place for every tensor.

    Drawing each of seven billion numbers would take longer than the run that is measured.
    """

    def __init__(self, dtype: torch.dtype, seed: int) -> None:
        self.generator = torch.Generator().manual_seed(seed)
        self.pool = torch.randn(POOL, generator=self.generator).to(dtype)

    def tensor(self, dims: tuple[int, ...]) -> torch.Tensor:
        count = math.prod(dims)
        start = int(torch.randint(POOL, (), generator=self.generator))
        pieces, left = [], count
        while left:
            piece = self.pool[start : start + left]
            pieces.append(piece)
            start, left = 0, left - len(piece)
        noise = torch.cat(pieces).view(dims)
        # Norms around 1; matrices that keep the size of what they multiply.
        return noise.mul_(0.1).add_(1) if len(dims) == 1 else noise.mul_(0.8 / dims[-1] ** 0.5)


def _configure(folder: Path, shape: Shape, dtype: torch.dtype) -> None:
    from transformers import LlamaConfig

    LlamaConfig(
        architectures=["LlamaForCausalLM"],
        vocab_size=shape.vocab,
        hidden_size=shape.width,
        intermediate_size=shape.neurons,
        num_hidden_layers=shape.layers,
        num_attention_heads=shape.heads,
        max_position_embeddings=4096,
        tie_word_embeddings=False,
        dtype=str(dtype).removeprefix("torch."),
    ).save_pretrained(folder)
    _tokenizer(shape.vocab).save_pretrained(folder)


def _tokenizer(size: int):
    """Words of the default text, filled up to ``size`` with names that no text has."""
    import re
    from pydoc_data.topics import topics

    from tokenizers import Regex, Tokenizer, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    words = dict.fromkeys(re.findall(r"\w+|[^\w\s]", "\n".join(topics.values())))
    vocabulary = ["<unk>", "<s>", "</s>", *words][:size]
    vocabulary += [f"<filler {i}>" for i in range(size - len(vocabulary))]
    raw = Tokenizer(
        models.WordLevel({word: i for i, word in enumerate(vocabulary)}, unk_token="<unk>")
    )
    raw.pre_tokenizer = pre_tokenizers.Split(Regex(r"\w+|[^\w\s]"), "removed", invert=True)
    return PreTrainedTokenizerFast(
        tokenizer_object=raw, bos_token="<s>", eos_token="</s>", unk_token="<unk>"
    )
