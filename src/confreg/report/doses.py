"""The part of the page about doses: effects by what neurons are fixed to."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from confreg.report.figures import effect_words
from confreg.report.sections import Figure, Options, Section, section
from confreg.report.styling import CONTROL, CYCLE, faint, legend, styled
from confreg.report.wording import in_units
from confreg.results import axes

if TYPE_CHECKING:
    import plotly.graph_objects as go
    import xarray as xr


@section(
    needs={
        "response": ("curve", "value", "effect"),
        "response_abs": ("curve", "value", "effect"),
        **dict.fromkeys(("curve_kind", "curve_control"), ("curve",)),
    },
)
def doses(ds: xr.Dataset, options: Options) -> Section:
    """Show dose-response curves of chosen sets against their random ones."""
    random = int((ds["curve_kind"].values == "random").sum())
    chosen = ds.sizes["curve"] - random
    lead = (
        f"Mean effect over kept tokens by what the neurons are fixed to: {chosen} chosen "
        f"{'set' if chosen == 1 else 'sets'}, and {random} random ones as thin lines."
    )
    shown = [
        Figure(f"dose-{name}", curves(ds, name), f"{effect_words(ds, name)[0]}, by value.")
        for name in map(str, ds["effect"].values)
    ]
    return Section("doses", "Dose and response", lead, shown)


def curves(ds: xr.Dataset, effect: str) -> go.Figure:
    """Draw the mean effect by value: a line a set, thin ones for random sets.

    Needs ``response (curve, value, effect)`` and the coordinates ``curve_kind``, ``curve_control``.
    """
    import plotly.graph_objects as go

    scale = axes.is_scale(ds, "value")
    x = ds["value"].values if scale else np.array(axes.texts(ds, "value"))
    table = ds["response"].sel(effect=effect).transpose("curve", "value").values
    kinds, control = ds["curve_kind"].values, ds["curve_control"].values
    figure = go.Figure()
    several = len(set(control.tolist())) > 1
    for row in np.argsort(kinds == "chosen", kind="stable"):
        is_chosen = kinds[row] == "chosen"
        colour = CYCLE[(1 + int(control[row])) % len(CYCLE)]
        faded = faint(colour, 0.3) if several else CONTROL
        figure.add_trace(
            go.Scatter(
                x=x,
                y=table[row],
                name=str(ds["curve"].values[row]),
                mode="lines+markers" if is_chosen else "lines",
                line={"color": colour if is_chosen else faded, "width": 2.2 if is_chosen else 0.8},
                showlegend=bool(is_chosen),
                hovertemplate="%{x}: %{y:.4g}",
            )
        )
    name, unit = effect_words(ds, effect)
    figure.update_xaxes(title="fixed to")
    figure.update_yaxes(title=in_units(f"mean {name}", unit))
    return legend(styled(figure))
