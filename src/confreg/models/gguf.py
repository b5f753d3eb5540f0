"""GGUF files: parsed once, always dequantised, and nothing of them passed over.

transformers parses a file's metadata anew for the configuration, the tokenizer and the weights,
each time value by value through a memory map. What it does not know of a file, it leaves out with a
line in a log: a scaling of the positions, for one, and the model that is computed is another.
"""

from __future__ import annotations

import math
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from confreg.errors import ConfregError

if TYPE_CHECKING:
    import torch
    from transformers import PretrainedConfig

    from confreg.models.architectures import Architecture

_LOCK = threading.RLock()
_held: dict[tuple[str, int, int], Any] = {}
"""The last file that was parsed, by path, size and time of its last change."""


def _scaling(config: Any, key: str, otherwise: Any) -> Any:
    return (getattr(config, "rope_parameters", None) or {}).get(key, otherwise)


def _head_width(config: Any) -> int:
    given = getattr(config, "head_dim", None)
    return given or config.hidden_size // config.num_attention_heads


_RESTATED: dict[str, Callable[[Any, Any], Any]] = {
    "context_length": lambda config, row: getattr(config, "max_position_embeddings", ...),
    "vocab_size": lambda config, row: config.vocab_size,
    "embedding_length": lambda config, row: config.hidden_size,
    "block_count": lambda config, row: config.num_hidden_layers,
    "feed_forward_length": lambda config, row: row.n_neurons(config),
    "attention.head_count": lambda config, row: config.num_attention_heads,
    "attention.head_count_kv": lambda config, row: getattr(
        config, "num_key_value_heads", config.num_attention_heads
    ),
    "attention.key_length": lambda config, row: _head_width(config),
    "attention.value_length": lambda config, row: _head_width(config),
    "attention.layer_norm_epsilon": lambda config, row: row.norm_eps(config),
    "attention.layer_norm_rms_epsilon": lambda config, row: row.norm_eps(config),
    "attention.causal": lambda config, row: True,
    "attention.sliding_window": lambda config, row: getattr(config, "sliding_window", None),
    "attn_logit_softcapping": lambda config, row: getattr(config, "attn_logit_softcapping", None),
    "final_logit_softcapping": lambda config, row: getattr(config, "final_logit_softcapping", None),
    "logit_scale": lambda config, row: row.readout(config)["scale"],
    "residual_scale": lambda config, row: row.mlp_factor(config),
    "rope.freq_base": lambda config, row: _scaling(config, "rope_theta", None),
    "rope.dimension_count": lambda config, row: int(
        _head_width(config) * _scaling(config, "partial_rotary_factor", 1.0)
    ),
    "rope.scaling.type": lambda config, row: "none",
    "rope.scaling.factor": lambda config, row: 1.0,
    "rope.scaling.attn_factor": lambda config, row: 1.0,
    "expert_count": lambda config, row: 0,
    "expert_used_count": lambda config, row: 0,
    "use_parallel_residual": lambda config, row: getattr(
        config, "use_parallel_residual", row.parallel
    ),
    "tensor_data_layout": lambda config, row: ...,  # how its converter read its source
}
"""What keys that transformers does not read must say, if a file has them: what holds already.

An ellipsis stands for anything.
"""


@contextmanager
def parsed_once() -> Iterator[None]:
    """Let transformers read GGUF files through one parse of each, kept until another file's.

    Without the bar that it draws whether or not bars are wanted.
    """
    import gguf
    from transformers import modeling_gguf_pytorch_utils

    theirs: Any = modeling_gguf_pytorch_utils
    with _LOCK:
        usual, bar = gguf.GGUFReader, theirs.tqdm
        gguf.GGUFReader = _reader  # type: ignore[misc, assignment]
        theirs.tqdm = lambda tensors, **words: tensors
        try:
            yield
        finally:
            gguf.GGUFReader, theirs.tqdm = usual, bar  # type: ignore[misc]


def _reader(path: Any, mode: str = "r") -> Any:
    state = Path(path).stat()
    key = (str(path), state.st_size, state.st_mtime_ns)
    if key not in _held:
        found = _quick()(path, mode)
        _held.clear()
        _held[key] = found
    return _held[key]


def _quick() -> type:
    """A reader whose views are of a plain array: a slice of a memory map is dear, a million are."""
    import numpy as np
    from gguf.gguf_reader import GGUFReader

    class Quick(GGUFReader):
        _plain: np.ndarray | None = None

        def _get(
            self, offset: int, dtype: Any, count: int = 1, override_order: Any = None
        ) -> np.ndarray:
            if self._plain is None:
                self._plain = np.asarray(self.data)
            kind = np.dtype(dtype)
            found = self._plain[offset : offset + kind.itemsize * int(count)].view(kind)
            order = self.byte_order if override_order is None else override_order
            return found if order == "I" else found.view(kind.newbyteorder(order))

    return Quick


def keywords() -> dict[str, Any]:
    """Of ``from_pretrained``: dequantise, whether or not kernels for packed weights are there."""
    from transformers.utils import quantization_config as theirs

    made = getattr(theirs, "GgufConfig", None)  # older versions can do nothing else
    return {} if made is None else {"quantization_config": made(dequantize=True)}


def check_keys(path: Path, config: PretrainedConfig, row: Architecture, name: str) -> None:
    """Refuse a file whose metadata says of the model what its configuration does not.

    Raises
    ------
    ConfregError
        With the key, what it says, and what holds.
    """
    from transformers.integrations.gguf.reader import read_gguf_metadata

    metadata, names = read_gguf_metadata(str(path))
    kind = metadata["general.architecture"]
    taken = _keys_taken(metadata, names, kind, config)
    for key, value in metadata.items():
        if not key.startswith(f"{kind}."):
            continue
        short = key.removeprefix(f"{kind}.")
        if short in taken:
            continue
        known = ""
        if short in _RESTATED:
            holds = _RESTATED[short](config, row)
            if holds is ... or _same(value, holds):
                continue
            known = f" (it takes {holds!r})"
        raise ConfregError(
            f"The GGUF file {name} says {key} = {value!r}, which transformers does not "
            f"read{known}: computed without it, it would be another model. Use the model's "
            "safetensors."
        )


def _keys_taken(
    metadata: Mapping[str, Any], names: tuple[str, ...], kind: str, config: Any
) -> set[str]:
    from transformers.integrations.ggml import GGUF_CONFIG_MAPPING
    from transformers.integrations.gguf import gguf_config_mapping as theirs

    if kind in theirs.GGUF_CONFIG_ARCHS:
        asked = _Asked(metadata)
        theirs.get_gguf_config(asked, names)
        return {key.removeprefix(f"{kind}.") for key in asked.seen}
    called = {kind, config.model_type, config.model_type.removesuffix("_text")}
    rows = [GGUF_CONFIG_MAPPING[name] for name in called if name in GGUF_CONFIG_MAPPING]
    own = type(config)
    return {
        key
        for row in rows
        for key, attribute in row.items()
        # What is put under a name that the configuration does not have is not taken either.
        if attribute is not None and _has(own, attribute)
    }


def _has(kind: type, attribute: str) -> bool:
    if attribute in ("rope_theta", "head_dim"):
        return True
    return (
        attribute in getattr(kind, "attribute_map", {})
        or hasattr(kind, attribute)
        or any(attribute in getattr(base, "__annotations__", {}) for base in kind.__mro__)
    )


class _Asked(dict):
    """Metadata that keep which keys were asked for."""

    def __init__(self, content: Mapping[str, Any]) -> None:
        super().__init__(content)
        self.seen: set[str] = set()

    def __getitem__(self, key: str) -> Any:
        self.seen.add(key)
        return super().__getitem__(key)

    def get(self, key: str, otherwise: Any = None) -> Any:
        self.seen.add(key)
        return super().get(key, otherwise)

    def __contains__(self, key: object) -> bool:
        self.seen.add(str(key))
        return super().__contains__(key)


def _same(value: Any, holds: Any) -> bool:
    if isinstance(value, list):  # a value a layer
        return all(_same(each, holds) for each in value)
    if isinstance(value, int | float) and isinstance(holds, int | float):
        return math.isclose(value, holds, rel_tol=1e-6)
    return value == holds


def check_tensors(path: Path, network: torch.nn.Module, name: str) -> None:
    """Refuse a file with tensors that the model did not take.

    Raises
    ------
    ConfregError
        With the names of the first few.
    """
    import numpy as np
    import torch
    from gguf import dequantize
    from transformers import modeling_gguf_pytorch_utils as theirs

    with _LOCK:
        reader = _reader(path)
    kind = bytes(reader.fields["general.architecture"].parts[-1]).decode()
    config: Any = network.config
    maker = theirs.TENSOR_PROCESSORS.get(kind, theirs.TensorProcessor)
    taken = theirs.get_gguf_hf_weights_map(network, maker(config=config.to_dict()))
    head = network.get_output_embeddings().weight  # type: ignore[operator]
    left = []
    for tensor in reader.tensors:
        if tensor.name in taken:
            continue
        # An unembedding that transformers ties to the embeddings is there all the same.
        if tensor.name == "output.weight" and np.prod(tensor.shape) == head.numel():
            stored = torch.from_numpy(np.array(dequantize(tensor.data, tensor.tensor_type)))
            if torch.equal(stored.to(head.dtype), head.detach().cpu()):
                continue
        left.append(tensor.name)
    if left:
        raise ConfregError(
            f"The GGUF file {name} holds {len(left)} tensors that transformers does not take "
            f"({', '.join(left[:3])}{' ...' if len(left) > 3 else ''}): computed without them, it "
            "would be another model. Use the model's safetensors."
        )
