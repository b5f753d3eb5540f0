"""``ds.confreg``: questions that people ask a dataset."""

from __future__ import annotations

from typing import TYPE_CHECKING

import xarray as xr

from confreg.errors import ConfregError

if TYPE_CHECKING:
    import pandas as pd

TABLE_COLUMNS = ("te", "de", "mediated", "te_mediated", "w_out_norm", "logit_var", "null_fraction")


@xr.register_dataset_accessor("confreg")
class Accessor:
    """Selection and ranking of neurons; every method returns new objects."""

    def __init__(self, ds: xr.Dataset) -> None:
        self._ds = ds

    def neuron(self, label: str) -> xr.Dataset:
        """One neuron, by its label ``"layer.index"``.

        Raises
        ------
        ConfregError
            The dataset has no such neuron.
        """
        labels = self._ds["neuron"].values
        found = (labels == label).nonzero()[0]
        if len(found) == 0:
            raise ConfregError(
                f"The dataset has no neuron {label!r}; it has {len(labels)}, from "
                f"{labels[0]!r} to {labels[-1]!r}."
            )
        return self._ds.isel(neuron=int(found[0]))

    def layer(self, layer: int) -> xr.Dataset:
        """The neurons of one layer.

        Raises
        ------
        ConfregError
            The dataset has no neuron of that layer.
        """
        here = self._ds["layer"].values == layer
        if not here.any():
            layers = sorted(set(self._ds["layer"].values.tolist()))
            raise ConfregError(f"The dataset has no neuron of layer {layer}; it has {layers}.")
        return self._ds.isel(neuron=here)

    def top(self, by: str = "te_mediated", n: int = 10, smallest: bool = False) -> pd.DataFrame:
        """The ``n`` neurons with the largest (or smallest) value of a per-neuron variable.

        Parameters
        ----------
        by : str
            ``"te"``, ``"de"``, ``"mediated"``, ``"w_out_norm"``, …, or the name of an effect,
            which ranks by its mean absolute value over kept tokens.
        n : int
        smallest : bool

        Returns
        -------
        pandas.DataFrame
            One row a neuron, strongest first, indexed by label.

        Raises
        ------
        ConfregError
            The dataset has no such per-neuron variable or effect.
        """
        table = self.table()
        if by not in table and by in self._ds.get("effect", []):
            table[by] = self._ds["effect_abs_mean"].sel(effect=by).values
        if by not in table:
            raise ConfregError(
                f"Neurons cannot be ranked by {by!r}; there are {', '.join(table.columns)}."
            )
        ranked = table.sort_values(by, ascending=smallest, kind="stable")
        return ranked.head(n)

    def table(self) -> pd.DataFrame:
        """Every per-neuron variable as a column, one row a neuron (or set of neurons)."""
        subject = "set" if "set" in self._ds.dims else "neuron"
        one = self._ds[[v for v in self._ds.data_vars if self._ds[v].dims == (subject,)]]
        frame = one.reset_coords(drop=True).to_dataframe()
        first = [c for c in TABLE_COLUMNS if c in frame]
        return frame.reindex(columns=[*first, *(c for c in frame if c not in first)])

    def kept(self) -> xr.Dataset:
        """The tokens over which reductions run."""
        return self._ds.isel(token=self._ds["keep"].values)
