"""GGUF files of tiny Llamas, written tensor by tensor."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import zoo


def words() -> list[str]:
    """A byte-level vocabulary with as many tokens as the tiny models have rows."""
    found = ["<s>", "</s>", "a", "b", "ab"]
    return found + [chr(0x100 + i) for i in range(zoo.ROWS - len(found))]


def write(
    path: Path,
    network: Any,
    keys: Mapping[str, str | int | float] | None = None,
    tensors: Mapping[str, np.ndarray] | None = None,
    begins: bool = False,
) -> Path:
    """Write a tiny Llama as a GGUF of 32-bit floats.

    ``keys`` are metadata beside the usual ones, without the architecture's name; ``tensors``
    stand beside the model's; ``begins``: the tokenizer begins sequences with a token.
    """
    config = network.config
    writer = gguf.GGUFWriter(path, "llama")
    writer.add_context_length(config.max_position_embeddings)
    writer.add_embedding_length(config.hidden_size)
    writer.add_block_count(config.num_hidden_layers)
    writer.add_feed_forward_length(config.intermediate_size)
    writer.add_head_count(config.num_attention_heads)
    writer.add_head_count_kv(config.num_key_value_heads)
    writer.add_layer_norm_rms_eps(config.rms_norm_eps)
    writer.add_vocab_size(config.vocab_size)
    for name, value in (keys or {}).items():
        add = {str: writer.add_string, int: writer.add_uint32, float: writer.add_float32}
        add[type(value)](f"llama.{name}", value)
    writer.add_tokenizer_model("gpt2")
    writer.add_token_list(words())
    writer.add_token_merges(["a b"])
    writer.add_token_types([1] * len(words()))
    writer.add_bos_token_id(0)
    writer.add_eos_token_id(1)
    writer.add_add_bos_token(begins)
    names = gguf.get_tensor_name_map(gguf.MODEL_ARCH.LLAMA, config.num_hidden_layers)
    heads = {"q_proj": config.num_attention_heads, "k_proj": config.num_key_value_heads}
    for name, value in network.state_dict().items():
        stem, _, end = name.rpartition(".")
        values = value.float().numpy()
        if rotated := heads.get(stem.rpartition(".")[2]):
            values = _interleaved(values, rotated)
        writer.add_tensor(f"{names.get_name(stem)}.{end}", values)
    for name, values in (tensors or {}).items():
        writer.add_tensor(name, values)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def _interleaved(values: np.ndarray, heads: int) -> np.ndarray:
    """Rows in llama.cpp's order: the two halves that a rotation mixes stand side by side."""
    out, width = values.shape
    return values.reshape(heads, 2, out // heads // 2, width).swapaxes(1, 2).reshape(out, width)
