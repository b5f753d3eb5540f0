"""What an NDIF server on loopback adds to the same work in this process.

    python -m benchmarks.remote [--model smollm2-135m] [--neurons 29:0-63] [--tokens 128]

Prints the overhead of a request, trusted and sandboxed, throughput with 1, 2 and 4 jobs in
flight, and bytes per neuron, token and effect. Starts a server and ends it.
"""

from __future__ import annotations

import argparse
import os
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from statistics import median
from typing import Any

import torch

import confreg
from confreg import models
from confreg.models import Model
from confreg.places import profiles
from confreg.places.ndif import server
from confreg.places.ndif.client import Client
from confreg.places.profiles import NdifProfile

REPEATS = 5


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", default="smollm2-135m")
    parser.add_argument("--neurons", default="29:0-63")
    parser.add_argument("--tokens", type=int, default=128)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder, running(options.model, Path(folder)) as profile:
        requests(options.model, profile, Path(folder))
        sweep(options, profile, Path(folder))


@contextmanager
def running(model: str, folder: Path) -> Iterator[NdifProfile]:
    """A server that has the model."""
    began = time.perf_counter()
    os.environ["CONFREG_PROFILES"] = str(folder / "profiles")
    status = server.up([model], device="cpu", folder=folder / "server", owner=os.getpid())
    print(f"server up, model loaded      {time.perf_counter() - began:8.1f} s")
    try:
        loaded = profiles.load(str(status.profile), {"poll": 0.02})
        assert isinstance(loaded, NdifProfile)
        yield loaded
    finally:
        server.down(folder / "server")


def requests(name: str, profile: NdifProfile, folder: Path) -> None:
    """One pass over a few tokens, returning one number: here, and as a job."""
    tokens = torch.arange(16)[None]
    here = models.load(name, dtype="float32")
    local = timed(lambda: one_pass(here, tokens))
    print(f"one pass, here               {local:8.3f} s")
    there = models.load(name, dtype="float32", weights=False)
    for mode in ("polled", "websocket", "sandboxed"):
        settings = {"blocking": mode == "websocket", "sandbox": mode == "sandboxed"}
        changed = profile.model_copy(update=settings)
        with Client(changed, there, folder / f"{mode}.jsonl") as client:
            seconds = timed(lambda client=client: one_pass(client.unit(str(time.time())), tokens))
            cost = client.journal.costs()[-1]
        print(
            f"one pass, {mode:<18} {seconds:8.3f} s   overhead {seconds - local:6.3f} s, "
            f"server {cost.seconds:.3f} s, {cost.bytes_up} B up, {cost.bytes_down} B down"
        )


def one_pass(model: Model, tokens: torch.Tensor) -> torch.Tensor:
    unembedding = model.unembedding
    with torch.no_grad(), model.trace(tokens):
        top = unembedding.output.argmax(-1).save()
    return top


def timed(work) -> float:
    """Median seconds, after a first time that warms up."""
    work()
    seconds = []
    for _ in range(REPEATS):
        began = time.perf_counter()
        work()
        seconds.append(time.perf_counter() - began)
    return median(seconds)


def sweep(options: argparse.Namespace, profile: NdifProfile, folder: Path) -> None:
    """Units of 16 tokens, with several jobs in flight; then a whole layer, for its bytes."""
    common: dict[str, Any] = {
        "model": options.model, "neurons": options.neurons, "sequence_length": 16,
        "max_tokens": options.tokens, "dtype": "float32", "progress": False,
    }  # fmt: skip
    small = common | {"memory": "40MB"}
    began = time.perf_counter()
    confreg.run("entropy_neurons", out=folder / "here.zarr", **small)
    print(f"sweep, here                  {time.perf_counter() - began:8.1f} s")
    found = {}
    for width in (1, 2, 4):
        began = time.perf_counter()
        ds = confreg.run(
            "entropy_neurons", out=folder / f"{width}.zarr", profile=profile,
            overrides={"jobs_in_flight": width}, **small,
        )  # fmt: skip
        seconds = time.perf_counter() - began
        jobs = ds.sizes["job"]
        print(f"sweep, {width} in flight           {seconds:8.1f} s   {jobs / seconds:.2f} jobs/s")
        found["units of 16 tokens"] = ds
    whole = common | {"neurons": "all"}
    found["units as large as fit"] = confreg.run(
        "entropy_neurons", out=folder / "whole.zarr", profile=profile, **whole
    )
    for name, ds in found.items():
        up, down = (
            int(ds[f"job_bytes_{way}"].sum()) / ds["effects"].size for way in ("up", "down")
        )
        print(f"{name}: {up:.2f} B up, {down:.2f} B down per neuron × token × effect")


if __name__ == "__main__":
    main()
