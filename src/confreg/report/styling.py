"""How the report's figures look."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import plotly.graph_objects as go


def styled(figure: go.Figure) -> go.Figure:
    """Give a figure the page's axes, font and transparent ground."""
    axis = {
        "gridcolor": "rgba(128,138,150,.22)",
        "linecolor": "rgba(128,138,150,.6)",
        "zeroline": False,
        "showline": True,
        "ticks": "outside",
        "ticklen": 4,
        "tickcolor": "rgba(128,138,150,.6)",
        "automargin": True,
    }
    figure.update_xaxes(**axis)
    figure.update_yaxes(**axis)
    return figure.update_layout(
        template="none",
        paper_bgcolor="rgba(0,0,0,0)",
        plot_bgcolor="rgba(0,0,0,0)",
        font={"family": "Inter, system-ui, sans-serif", "size": 12.5},
        margin={"l": 56, "r": 16, "t": 40, "b": 48},
        height=420,
        showlegend=False,
        hoverlabel={"align": "left"},
        dragmode="zoom",
    )


def legend(figure: go.Figure) -> go.Figure:
    """Show a figure's legend above it."""
    return figure.update_layout(
        showlegend=True, legend={"orientation": "h", "y": 1.02, "yanchor": "bottom", "x": 0}
    )
