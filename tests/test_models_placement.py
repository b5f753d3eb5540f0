"""Where weights go, and that a model which is offloaded measures what it does in memory."""

from __future__ import annotations

import pytest
import torch
import tracing
import zoo

from confreg import models
from confreg.errors import ConfregError
from confreg.models import host
from confreg.models.placement import Placement


def layer_bytes(described: models.Description) -> int:
    return 4 * described.sizes[f"{described.row.layers}.0"]


def outer_bytes(described: models.Description) -> int:
    return described.bytes - 3 * layer_bytes(described)


@pytest.fixture(scope="module")
def half(tmp_path_factory):
    """A checkpoint in bfloat16."""
    return str(zoo.save("llama", tmp_path_factory.mktemp("half"), dtype=torch.bfloat16))


@pytest.fixture
def llama(checkpoint):
    return models.describe(str(checkpoint("llama")))


def all_layers_on_disk(described, folder=None):
    device_map = {"": "cpu", described.row.layers: "disk"}
    return Placement(device_map=device_map, offload_folder=folder)


# Their weights are not in memory what they are in files: accelerate writes them anew.
CONVERTED = {"olmo_hybrid"}


@pytest.mark.parametrize("architecture", zoo.EVERY)
def test_offloaded_equals_in_memory(checkpoint, tmp_path, architecture):
    folder = str(checkpoint(architecture))
    placed = all_layers_on_disk(models.describe(folder))
    if architecture in CONVERTED:
        with pytest.raises(ConfregError, match="-P offload_folder=FOLDER"):
            models.load(folder, placed)
        placed = all_layers_on_disk(models.describe(folder), str(tmp_path))
    offloaded = models.load(folder, placed)
    inside = models.load(folder)
    ids, values = zoo.tokens(), torch.linspace(-1, 1, 7)
    for layer, engine in ((-1, "exact"), (-1, "series"), (0, "forward")):
        unit = tracing.unit_of(ids, values, inside.layer(layer), engine)
        mine, expected = (tracing.measure(m, unit)["effects"] for m in (offloaded, inside))
        assert expected.nan_to_num().abs().max() > 0.01
        torch.testing.assert_close(mine, expected, rtol=0, atol=1e-5, equal_nan=True)
    meta = {n for n, p in offloaded.nn._module.named_parameters() if p.is_meta}
    assert meta
    assert all(name.startswith(offloaded.description.row.layers) for name in meta)


def test_auto_keeps_what_is_called_and_the_measured_layer_in_memory(llama):
    limit = outer_bytes(llama) + int(2.5 * layer_bytes(llama))
    layout = Placement(device_map="auto", max_memory={"cpu": limit}).plan(llama)
    on_disk = [path for path, device in layout.devices.items() if device == "disk"]
    assert on_disk == ["model.layers.0", "model.layers.1"]
    assert layout.read_per_pass == 2 * layer_bytes(llama)
    assert next(iter(layout.devices.values())) == "cpu"


def test_auto_uses_no_disk_when_all_fits(llama):
    layout = Placement(device_map="auto", max_memory={"cpu": llama.bytes}).plan(llama)
    assert set(layout.devices.values()) == {"cpu"}
    assert layout.read_per_pass == 0


def test_auto_refuses_what_cannot_hold_the_embeddings_and_a_layer(llama):
    with pytest.raises(ConfregError, match=r"embeddings.*max_memory"):
        Placement(device_map="auto", max_memory={"cpu": outer_bytes(llama)}).plan(llama)


def test_one_device_refuses_a_model_that_is_too_large(llama):
    with pytest.raises(ConfregError, match="--profile offload"):
        Placement(device="cpu", max_memory={"cpu": llama.bytes - 1}).plan(llama)


@pytest.mark.parametrize(
    ("device_map", "message"),
    [
        ({"": "disk"}, "'model.embed_tokens' on disk"),
        ({"": "cpu", "lm_head": "disk"}, "'lm_head' on disk"),
        ({"": "cpu", "model.norm": "disk"}, "'model.norm' on disk"),
        ({"model.layers": "disk"}, "says nothing of 'model.embed_tokens'"),
        ({"": "cpu", "model.layer": "disk"}, "names 'model.layer'"),
        ({"": "cpu", "model.layers.0": "cuda:7"}, "no device 'cuda:7'"),
        ("balanced", "no device 'balanced'"),
    ],
)
def test_maps_that_cannot_work_are_refused(llama, device_map, message):
    with pytest.raises(ConfregError, match=message):
        Placement(device_map=device_map).plan(llama)


def test_memory_of_a_device_that_is_not_there_is_refused(llama):
    with pytest.raises(ConfregError, match="max_memory names cuda:7"):
        Placement(device_map="auto", max_memory={"7": 1}).plan(llama)


def test_a_checkpoint_held_wider_is_read_as_narrow_as_it_is(half):
    described = models.describe(half, dtype="float32")
    layout = all_layers_on_disk(described).plan(described)
    assert layout.read_per_pass == 3 * layer_bytes(described) // 2


def test_bfloat16_on_disk_computes_in_float32(half):
    described = models.describe(half, dtype="float32")
    offloaded = models.load(half, all_layers_on_disk(described), dtype="float32")
    inside = models.load(half, dtype="float32")
    with offloaded.trace(zoo.tokens()):
        mine = offloaded.unembedding.output.save()
    assert mine.dtype == torch.float32
    torch.testing.assert_close(mine, inside.nn._module(zoo.tokens()).logits, rtol=0, atol=1e-5)


def test_report_says_where_each_layer_goes_and_what_a_pass_reads(llama):
    limit = outer_bytes(llama) + int(2.5 * layer_bytes(llama))
    lines = Placement(device_map="auto", max_memory={"cpu": limit}).report(llama)
    text = {line.name: line.sentence for line in lines}
    assert all(line.ok for line in lines)
    assert "model.embed_tokens" in text["cpu"]
    assert "layer 2" in text["cpu"]
    assert text["disk"].endswith("layers 0 to 1")
    assert "reads 0.06 MB from disk" in text["pass"]


def test_report_says_what_does_not_fit(llama):
    lines = Placement(device_map="auto", max_memory={"cpu": 10}).report(llama)
    assert [line.ok for line in lines] == [False]


def test_quantization_is_refused_by_name(llama):
    with pytest.raises(ConfregError, match=r"no quantization 'int3'.*nf4"):
        models.load(llama.name, Placement(quantization="int3"))


def test_quantization_that_is_not_installed_is_refused(llama, monkeypatch):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(ConfregError, match="pip install bitsandbytes"):
        models.load(llama.name, Placement(quantization="nf4"))


def test_a_limit_of_the_group_counts_and_its_page_cache_does_not(tmp_path, monkeypatch):
    group = tmp_path / "memory" / "job" / "step"
    group.mkdir(parents=True)
    (group.parent / "memory.limit_in_bytes").write_text("1000\n")
    (group.parent / "memory.usage_in_bytes").write_text("900\n")
    (group.parent / "memory.stat").write_text("total_active_file 100\ntotal_inactive_file 50\n")
    monkeypatch.setattr(host, "CGROUPS", tmp_path)
    files = ("memory.limit_in_bytes", "memory.usage_in_bytes")
    cache = ("total_active_file", "total_inactive_file")
    monkeypatch.setattr(host, "_groups", lambda: iter([(group, *files, cache)]))
    assert host.available_memory() == 250


@pytest.mark.parametrize("name", ["mps", "mps:0"])
def test_a_device_without_float64_is_refused(llama, name):
    with pytest.raises(ConfregError, match=r"mps.* has no float64.*device=cpu"):
        Placement(device=name).plan(llama)
