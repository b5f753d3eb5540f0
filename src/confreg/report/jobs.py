"""The part of the page about the jobs of a server."""

from __future__ import annotations

from typing import TYPE_CHECKING

from confreg.report import figures
from confreg.report.sections import Figure, Options, Section, has, section
from confreg.report.wording import number

if TYPE_CHECKING:
    import xarray as xr


@section(needs={}, last=True)
def jobs(ds: xr.Dataset, options: Options) -> Section | None:
    """Show what remote jobs sent, received and computed."""
    names = [n for n in ("job_bytes_up", "job_bytes_down", "job_seconds") if has(ds, n, ("job",))]
    if not names:
        return None
    parts = [f"{ds.sizes['job']} jobs"]
    for name, verb in (("job_bytes_up", "sent"), ("job_bytes_down", "received")):
        if name in names:
            parts.append(f"{number(float(ds[name].sum()) / 1e6)} MB {verb}")
    if "job_seconds" in names:
        parts.append(f"{number(float(ds['job_seconds'].sum()))} s of the server's time")
    figure = Figure("jobs", figures.jobs(ds), "Size and server time of every job.")
    lead = ", ".join(parts) + "."
    return Section("jobs", "Remote jobs", lead, [figure], shows=frozenset(names))
