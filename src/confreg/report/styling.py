"""How figures look: the one palette, and the page's axes, font and ground.

The figures of ``docs/figures`` use the same colours.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import plotly.graph_objects as go

BLUE, RED, GOLD, GREEN, GREY = "#3e7cb1", "#d1364f", "#d9a441", "#5ab4a0", "#94a3b8"
VIOLET, SLATE, SAND = "#8a5fb5", "#64748b", "#e0b040"

CHOSEN, CONTROL = RED, GREY
"""What is looked at, and the random controls that it is compared with."""

FIRST, SECOND, OTHERWISE = BLUE, RED, GOLD
"""Occurrences of a text: the first, the second, and a second that goes on otherwise."""

CYCLE = (BLUE, RED, GOLD, GREEN, VIOLET, SLATE)
"""Lines of one plot, in this order."""

SHARES = [[0, GREY], [0.4, GOLD], [1, RED]]
"""Shares from 0 to 1, and every other colour scale without a sign."""

LAYERS = [[0, BLUE], [0.35, GREEN], [0.65, SAND], [1, RED]]
"""Layers, from the first to the last."""

SIGNED = [[0, "#2670c4"], [0.25, "#8fb6de"], [0.5, "#f4f4f1"], [0.75, "#eca283"], [1, "#de5424"]]
"""Changes: below 0, none, above 0."""

CHANGES = [[0, BLUE], [0.5, "#b4bac2"], [1, "#de5424"]]
"""The same for points, which must be seen where there is no change."""

UNSIGNED = [[0, "#f4f4f1"], [0.25, "#b9d3e8"], [0.6, "#4a86bd"], [1, "#173a66"]]
"""Cells of a heat map that has no negative number."""


def faint(colour: str, share: float = 0.16) -> str:
    """Return a colour of the palette let through, as plotly writes it."""
    red, green, blue = (int(colour[i : i + 2], 16) for i in (1, 3, 5))
    return f"rgba({red},{green},{blue},{share})"


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
