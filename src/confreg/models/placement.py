"""Where the weights of a model go: one device, several, the disk.

Offloading is accelerate's. What this module adds is a plan that is made and can be read
before anything loads, and that avoids what accelerate and nnsight cannot do together:
embeddings, final norm and unembedding stay on a real device, since inputs are sent to the
first parameter's device, a tied unembedding cannot be read from disk, and all of them are
called by the measurement for every block. Only decoder layers are offloaded.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from confreg.checks import Check
from confreg.errors import ConfregError
from confreg.models.host import available_memory

if TYPE_CHECKING:
    from confreg.models.model import Description
    from confreg.models.sources import Source

CPU_SHARE = 0.6
"""Share of the free memory that weights may take where ``max_memory`` names no limit."""
GPU_SHARE = 0.8


@dataclass(frozen=True)
class Layout:
    """Where every module goes.

    Attributes
    ----------
    devices : dict of str to str
        Path of a module to "cuda:0", "cpu" or "disk"; in the model's order.
    sizes : dict of str to int
        Path of a module to bytes of its weights.
    limits : dict of str to int
        Bytes that weights may take on a device.
    stored : float
        Bytes in the checkpoint per byte in memory: 0.5 for bfloat16 run as float32.
    """

    devices: dict[str, str]
    sizes: dict[str, int]
    limits: dict[str, int]
    stored: float = 1.0

    @property
    def main(self) -> str:
        """The device that computes: the first GPU used, or the CPU."""
        return next((d for d in self.devices.values() if d not in ("cpu", "disk")), "cpu")

    def used(self, device: str) -> int:
        """Bytes of weights that live on a device."""
        return sum(self.sizes[m] for m, d in self.devices.items() if d == device)

    @property
    def read_per_pass(self) -> int:
        """Bytes that one pass reads from disk."""
        return int(self.used("disk") * self.stored)

    @property
    def moved_per_pass(self) -> int:
        """Bytes that one pass copies to a GPU."""
        return 0 if self.main == "cpu" else self.used("cpu") + self.used("disk")


@dataclass(frozen=True)
class Placement:
    """Where the weights of a model go, as a profile says it.

    Attributes
    ----------
    device : str
        For a whole model: "auto" (a GPU if there is one), "cpu", "cuda", "cuda:1".
    device_map : str or dict, optional
        "auto" fills the GPUs, then the CPU's memory, then leaves the rest on disk; a device's
        name puts everything there; a dict names the device of modules by path.
    max_memory : dict of str to int
        Most bytes of weights on "cpu" and on GPUs ("0" or "cuda:0").
    offload_folder : str, optional
        For what accelerate cannot read from safetensors as they are.
    quantization : str, optional
        "int8", "nf4", "fp4" or "fp8".
    dtype : str, optional
    """

    device: str = "auto"
    device_map: str | Mapping[str, str | int] | None = None
    max_memory: Mapping[str, int] = field(default_factory=dict)
    offload_folder: str | None = None
    quantization: str | None = None
    dtype: str | None = None

    def check_quantization(self) -> None:
        """Refuse a quantization that does not exist or whose library is not installed."""
        from nnsight.modeling.quantization import QUANTIZATIONS

        name = self.quantization
        if name not in QUANTIZATIONS:
            raise ConfregError(
                f"There is no quantization {name!r}. There are: {', '.join(QUANTIZATIONS)}."
            )
        if name != "fp8" and importlib.util.find_spec("bitsandbytes") is None:
            raise ConfregError(
                f"Quantization {name!r} needs bitsandbytes: python -m pip install bitsandbytes."
            )

    def plan(self, described: Description) -> Layout:
        """Decide where every module of a model goes.

        Raises
        ------
        ConfregError
            The model cannot be placed like this: what does not fit, or may not be there.
        """
        from confreg.models.model import bytes_per_parameter

        sizes = _bytes(described)
        wanted = self.device if self.device_map is None else self.device_map
        limits = _limits(self.max_memory)
        stored = bytes_per_parameter(described.stored_dtype) / bytes_per_parameter(described.dtype)
        if isinstance(wanted, Mapping):
            return Layout(_named(wanted, sizes, described), sizes, limits, stored)
        if wanted == "auto" and self.device_map is not None:
            return Layout(_fill(sizes, limits, described), sizes, limits, stored)
        device = _device(wanted)
        if self.max_memory and sum(sizes.values()) > limits.get(device, 2**62):
            raise ConfregError(
                f"{described.name} needs {_gb(sum(sizes.values()))} and max_memory allows "
                f"{_gb(limits[device])} on {device}. Use --profile offload."
            )
        return Layout(dict.fromkeys(sizes, device), sizes, limits, stored)

    def keywords(self, described: Description, source: Source) -> dict[str, Any]:
        """Keywords of ``from_pretrained`` that put a model where the plan says.

        Raises
        ------
        ConfregError
            As `plan`; or weights in a format that cannot be read from disk layer by layer.
        """
        layout = self.plan(described)
        devices = set(layout.devices.values())
        if devices == {"cpu"} and self.quantization is None:
            return {}
        if source.gguf and "disk" in devices:
            raise ConfregError(
                f"{described.name} is a GGUF file, which is dequantised in memory as a whole and "
                "cannot be offloaded to disk. Save it as safetensors first "
                "(docs/large-models.md says how)."
            )
        if self.quantization is not None and len(devices) > 1:
            raise ConfregError(
                f"{described.name} does not fit one device quantized to {self.quantization}, and "
                "quantized layers cannot be offloaded. Leave out `quantization`, or raise "
                "max_memory."
            )
        words: dict[str, Any] = {"device_map": dict(layout.devices)}
        if len(devices) == 1:
            words["device_map"] = {"": layout.main}
        if self.offload_folder is not None:
            words["offload_folder"] = self.offload_folder
        return words

    def report(self, described: Description) -> list[Check]:
        """Say where everything would go, what a pass reads, and whether it fits."""
        lines = []
        if self.quantization is not None:
            try:
                self.check_quantization()
                lines.append(Check("quantization", True, f"{self.quantization} is installed"))
            except ConfregError as error:
                lines.append(Check("quantization", False, str(error)))
        try:
            layout = self.plan(described)
        except ConfregError as error:
            return [*lines, Check("placement", False, str(error))]
        return [*lines, *_lines(layout, described)]


def _bytes(described: Description) -> dict[str, int]:
    from confreg.models.model import bytes_per_parameter

    each = bytes_per_parameter(described.dtype)
    # Quantizers leave embeddings, norms and the unembedding in 16 bits.
    outer = max(each, 2.0)
    layers = described.row.layers + "."
    return {
        path: int(count * (each if path.startswith(layers) else outer))
        for path, count in described.sizes.items()
    }


def _device(name: str) -> str:
    """Return the device that a profile's word means, if this machine has it."""
    import torch

    gpus = torch.cuda.device_count() if torch.cuda.is_available() else 0
    if name == "auto":
        return "cuda:0" if gpus else "cpu"
    if name in ("cpu", "disk"):
        return name
    if name.partition(":")[0] == "mps":
        raise ConfregError(
            "Apple's GPU (mps) has no float64, in which effects are added up and errors measured: "
            "use device=cpu."
        )
    number = name.removeprefix("cuda").removeprefix(":") or "0"
    if number.isdigit() and int(number) < gpus:
        return f"cuda:{number}"
    have = ", ".join(["cpu", *(f"cuda:{i}" for i in range(gpus))])
    raise ConfregError(f"There is no device {name!r} here. There are: {have}.")


def _limits(max_memory: Mapping[str, int]) -> dict[str, int]:
    """Bytes of weights per device, GPUs first."""
    import torch

    given = {
        (f"cuda:{key}" if str(key).isdigit() else str(key)): value
        for key, value in max_memory.items()
    }
    gpus = torch.cuda.device_count() if torch.cuda.is_available() else 0
    if unknown := set(given) - {"cpu", *(f"cuda:{i}" for i in range(gpus))}:
        raise ConfregError(
            f"max_memory names {', '.join(sorted(unknown))}, which this machine does not have: "
            f"it has cpu{''.join(f', {i}' for i in range(gpus))}."
        )
    limits = {}
    for i in range(gpus):
        free = int(GPU_SHARE * torch.cuda.mem_get_info(i)[0])
        limits[f"cuda:{i}"] = given.get(f"cuda:{i}", free)
    limits["cpu"] = given.get("cpu", int(CPU_SHARE * available_memory()))
    return limits


def _fill(sizes: dict[str, int], limits: dict[str, int], described: Description) -> dict[str, str]:
    """Fill GPUs, then the CPU's memory; what is left stays on disk."""
    layers = [path for path in sizes if path.startswith(described.row.layers + ".")]
    outer = sum(size for path, size in sizes.items() if path not in layers)
    room = max(sizes[path] for path in layers)  # for a layer on its way through
    need = outer + room
    main = next((d for d, limit in limits.items() if limit >= need), None)
    if main is None:
        raise ConfregError(
            f"{described.name} needs {_gb(need)} on one device for its embeddings, its "
            f"unembedding and one layer at a time; max_memory leaves "
            f"{_gb(max(limits.values()))}. Raise it (-P max_memory.cpu=...), or use a "
            "smaller dtype."
        )
    devices = {path: main for path in sizes if path not in layers}
    # GPUs before the main one are too small to compute on; the CPU is storage beside a GPU.
    order = list(limits)[list(limits).index(main) :]
    left = {device: limits[device] for device in order}
    left[main] -= outer
    if sum(sizes[path] for path in layers) > left[main]:
        left[main] -= room
    # The last layer is the one measured: it gets the best place.
    for path in [layers[-1], *layers[:-1]]:
        device = next((d for d in order if left[d] >= sizes[path]), "disk")
        if device != "disk":
            left[device] -= sizes[path]
        devices[path] = device
    return {path: devices[path] for path in sizes}


def _named(
    wanted: Mapping[str, str | int], sizes: dict[str, int], described: Description
) -> dict[str, str]:
    """Complete a device map written by hand, and refuse what cannot work."""
    placed = {}
    for path in sizes:
        matches = [key for key in wanted if key == "" or f"{path}.".startswith(f"{key}.")]
        if not matches:
            raise ConfregError(
                f"device_map says nothing of {path!r}. Name it, a module above it, or '' for "
                "all that is not named."
            )
        placed[path] = _device(str(wanted[max(matches, key=len)]))
    for key in wanted:
        if key and not any(f"{path}.".startswith(f"{key}.") for path in sizes):
            raise ConfregError(
                f"device_map names {key!r}, which is not placed as a whole in {described.name}. "
                f"There are: {', '.join(_summary(sizes, described))}."
            )
    gpus = [device for device in placed.values() if device not in ("cpu", "disk")]
    for path, device in placed.items():
        if path.startswith(described.row.layers + "."):
            continue
        if device == "disk" or (device == "cpu" and gpus):
            where = gpus[0] if gpus else "cpu"
            raise ConfregError(
                f"device_map puts {path!r} on {device}, where accelerate would hold it without "
                f"storage; embeddings, final norm and unembedding must be on a device that "
                f"computes. Put it on {where}; layers may be anywhere."
            )
    return placed


def _summary(sizes: Mapping[str, int], described: Description) -> Iterator[str]:
    layers = described.row.layers
    for path in sizes:
        if not path.startswith(layers + "."):
            yield path
    yield f"{layers}.0 to {layers}.{described.n_layers - 1}"


def _lines(layout: Layout, described: Description) -> Iterator[Check]:
    total = sum(layout.sizes.values())
    yield Check(
        described.name,
        True,
        f"{described.parameters / 1e9:.2f} billion parameters, {_gb(total)} in {described.dtype}, "
        f"{described.n_layers} layers of {_gb(_layer_bytes(layout, described))}",
    )
    for device in dict.fromkeys(layout.devices.values()):
        names = ", ".join(_ranges(layout, described, device))
        if device == "disk":
            yield Check("disk", True, f"{_gb(layout.read_per_pass)}: {names}")
            continue
        used, limit = layout.used(device), layout.limits.get(device)
        fits = limit is None or used <= limit
        of = "" if limit is None else f" of the {_gb(limit)} allowed"
        yield Check(device, fits, f"{_gb(used)}{of}: {names}")
    cost = f"a pass reads {_gb(layout.read_per_pass)} from disk"
    if layout.moved_per_pass:
        cost += f" and copies {_gb(layout.moved_per_pass)} to {layout.main}"
    if not layout.read_per_pass and not layout.moved_per_pass:
        cost = "a pass reads nothing: all weights stay where they compute"
    yield Check("pass", True, cost)


def _layer_bytes(layout: Layout, described: Description) -> int:
    return layout.sizes[f"{described.row.layers}.{described.n_layers - 1}"]


def _ranges(layout: Layout, described: Description, device: str) -> Iterator[str]:
    """Yield what is on a device: names of single modules, ranges of layers."""
    prefix = described.row.layers + "."
    numbers = []
    for path, at in layout.devices.items():
        if at != device:
            continue
        if path.startswith(prefix):
            numbers.append(int(path.removeprefix(prefix)))
        elif layout.sizes[path]:
            yield path
    start = 0
    for i in range(1, len(numbers) + 1):
        if i == len(numbers) or numbers[i] != numbers[i - 1] + 1:
            first, last = numbers[start], numbers[i - 1]
            yield f"layer {first}" if first == last else f"layers {first} to {last}"
            start = i


def _gb(size: float) -> str:
    return f"{size / 1e9:.2f} GB" if size >= 1e7 else f"{size / 1e6:.2f} MB"
