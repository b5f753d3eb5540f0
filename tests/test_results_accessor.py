"""``ds.confreg``: tables, ranking and selection along any axis."""

import numpy as np
import pytest
import xarray as xr
from report_data import OTHERS, synthetic

import confreg.results.accessor  # noqa: F401  registers ds.confreg
from confreg.errors import ConfregError
from confreg.results import axes, tables
from confreg.results.index import index


@pytest.fixture(scope="module")
def ds():
    return synthetic(layers=(10, 11))


def test_layer_and_index_are_selected_together(ds):
    one = ds.confreg.select(layer=11, index=7)
    assert one["neuron"].item() == "11.7"
    assert "neuron" not in one.dims
    assert ds.confreg.select(neuron="11.7").identical(one)
    assert ds.confreg.select(layer=11).sizes["neuron"] == 30
    some = ds.confreg.select(layer=[10, 11], index=[3, 4], sequence=2)
    assert some["neuron"].values.tolist() == ["10.3", "10.4", "11.3", "11.4"]
    assert set(some["sequence"].values) == {2}


def test_what_cannot_be_selected_is_said(ds):
    with pytest.raises(ConfregError, match=r"No neuron of the dataset has layer=11, index=99\."):
        ds.confreg.select(layer=11, index=99)
    with pytest.raises(ConfregError, match="has no labels 'colour'"):
        ds.confreg.select(colour=1)
    with pytest.raises(ConfregError, match="has no labels 'neuron'"):
        OTHERS["latents"]().confreg.neuron("1.1")


def test_index_beside_the_label(ds, tmp_path):
    found = index(ds)
    assert found.sel(layer=11, index=7)["neuron"].item() == "11.7"
    assert found.sel(neuron="11.7")["index"].item() == 7
    assert found.sel(layer=10)["neuron"].values.tolist() == [f"10.{i}" for i in range(30)]
    assert found.sel(index=[3, 4], layer=11)["neuron"].values.tolist() == ["11.3", "11.4"]
    part = found.isel(neuron=slice(28, 32))
    assert part.sel(layer=11, index=1)["neuron"].item() == "11.1"
    assert "index" not in found.isel(neuron=3).xindexes
    with pytest.raises(KeyError, match="no neuron"):
        found.sel(layer=11, index=99)
    assert float((found["te"] - ds["te"]).sum()) == 0
    assert index(found) is found
    for written in (found.to_zarr, found.to_netcdf):
        path = tmp_path / written.__name__
        written(path)
    again = xr.open_zarr(tmp_path / "to_zarr")
    assert index(again).sel(layer=11, index=7)["neuron"].item() == "11.7"
    assert xr.open_dataset(tmp_path / "to_netcdf")["layer"].values.tolist() == (
        ds["layer"].values.tolist()
    )


def test_tables_of_any_axis():
    latents = OTHERS["latents"]()
    frame = latents.confreg.table()
    assert frame.index.name == "latent"
    np.testing.assert_array_equal(
        frame["effect_mean[margin_total]"], latents["effect_mean"].sel(effect="margin_total")
    )
    assert frame["explanation"].dtype.kind not in "fiu"
    top = latents.confreg.top("loss_total", 3)
    assert top["loss_total"].tolist() == sorted(frame["effect_mean[loss_total]"])[::-1][:3]
    assert latents.confreg.top().index[0] == top.index[0]
    least = latents.confreg.top("density", 2, smallest=True)
    assert least["density"].iloc[0] == float(latents["density"].min())
    digits = OTHERS["digits"]()
    assert digits.confreg.top(axis="image").index.name == "image"
    with pytest.raises(ConfregError, match="Images cannot be ranked by 'te'; there are cross_"):
        digits.confreg.top("te", axis="image")
    with pytest.raises(ConfregError, match="has no axis 'head'; it has"):
        digits.confreg.table("head")
    with pytest.raises(ConfregError, match="no axis with labels"):
        OTHERS["scalars"]().confreg.top()


def test_axes_are_told_by_their_labels():
    strange = OTHERS["strange"]()
    kinds = {str(dim): axes.kind(strange, str(dim)) for dim in strange.sizes}
    assert kinds == {
        "a": "subject", "b": "subject", "c": "subject", "token": "text", "effect": "quantity",
        "other_q": "quantity", "trial": "other", "empty": "subject",
    }  # fmt: skip
    strange["c"].attrs["axis_kind"] = "other"
    assert axes.kind(strange, "c") == "other"
    main = {name: axes.main_subject(make()) for name, make in OTHERS.items()}
    assert main == {
        "steering": "alpha", "latents": "latent", "partners": "neuron", "digits": "neuron",
        "scalars": None, "strange": "a",
    }  # fmt: skip
    assert axes.main_subject(synthetic()) == "neuron"
    assert axes.is_scale(OTHERS["steering"](), "alpha")
    assert not axes.is_scale(OTHERS["latents"](), "latent")


def test_effects_are_written_after_quantity_and_pathway():
    from confreg.report import wording

    assert wording.quantities(OTHERS["latents"](), "effect") == [
        "Δ loss", "Δ loss (norm frozen)", "Δ margin",
    ]  # fmt: skip
    assert wording.quantities(synthetic(), "effect")[:2] == ["Δ loss", "Δ loss (norm frozen)"]
    assert tables.split_column("effect_mean[loss_total]") == ("effect_mean", "loss_total")


def test_universal_neurons_are_ranked_by_their_excess_correlation():
    """Not by whatever number comes first."""
    values = {"w_out_norm": [3.0, 1.0, 2.0], "excess_correlation": [0.1, 0.7, np.nan]}
    found = xr.Dataset(
        {name: ("neuron", v) for name, v in values.items()},
        coords={"neuron": ["0.0", "0.1", "0.2"]},
    )
    assert tables.rank_by(tables.table(found)) == "excess_correlation"
    assert found.confreg.top(n=1).index.tolist() == ["0.1"]
