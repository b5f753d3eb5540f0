"""What ablations do to accuracy and calibration, with intervals over documents.

The numbers of docs/calibration.md:

    confreg run group_ablation ... --effects confidence_total correct_total --out runs/q.zarr
    python -m benchmarks.calibration runs/q.zarr chosen-0 --by category

Documents are drawn with replacement, 2,000 times, the same ones before and after; an interval is
from the 2.5th to the 97.5th percentile of the change.
"""

from __future__ import annotations

import argparse

import numpy as np
import xarray as xr

import confreg
from confreg.derive.reliability import NUMBERS, scores

SHOWN = [name for name in NUMBERS if name != "calibration_tokens"]


def changes(ds: xr.Dataset, entry: str, draws: int, seed: int) -> dict[str, tuple[float, ...]]:
    """Each number before and after, and the interval of its change."""
    dim = str(ds["effects"].dims[0])
    kept = ds["keep"].values & np.isfinite(ds["correct"].values)
    effects = ds["effects"].sel({dim: entry}).values[kept]
    names = ds["effect"].values.tolist()
    before = [ds[name].values[kept].astype(np.float64) for name in ("confidence", "correct")]
    after = [b + effects[:, names.index(f"{n}_total")]
             for b, n in zip(before, ("confidence", "correct"))]  # fmt: skip
    documents = ds["document"].values[kept]
    members = [np.flatnonzero(documents == d) for d in np.unique(documents)]
    generator, drawn = np.random.default_rng(seed), []
    for _ in range(draws):
        picked = generator.integers(len(members), size=len(members))
        some = np.concatenate([members[i] for i in picked])
        one, other = (scores(each[0][some], each[1][some]) for each in (before, after))
        drawn.append([getattr(other, name) - getattr(one, name) for name in SHOWN])
    low, high = np.percentile(drawn, (2.5, 97.5), axis=0)
    one, other = scores(before[0], before[1]), scores(after[0], after[1])
    return {
        name: (getattr(one, name), getattr(other, name), low[i], high[i])
        for i, name in enumerate(SHOWN)
    }


def show(ds: xr.Dataset, entry: str, draws: int, seed: int) -> None:
    """Print a line a number, with what random sets have of it where there are any."""
    dim = str(ds["effects"].dims[0])
    is_random = ds["set_kind"].values == "random" if "set_kind" in ds.coords else None
    for name, (before, after, low, high) in changes(ds, entry, draws, seed).items():
        said = f"{name:16} {before:7.3f} {after:7.3f}   change {low:7.3f} to {high:7.3f}"
        if is_random is not None and is_random.any():
            values = ds[name].values[is_random]
            said += "   random " + ", ".join(
                f"{value:.3f}" for value in (values.min(), np.median(values), values.max())
            )
        if f"{name}_p_random" in ds:
            said += f"   p {float(ds[f'{name}_p_random'].sel({dim: entry})):.2f}"
        print(said)


def main() -> None:
    """Print the page's tables of a store."""
    parser = argparse.ArgumentParser(description=str(__doc__).splitlines()[0])
    parser.add_argument("store")
    parser.add_argument("entry", help="a set, or a neuron")
    parser.add_argument("--by", help="a label: accuracy and confidence of each of its values")
    parser.add_argument("--draws", type=int, default=2000)
    parser.add_argument("--seed", type=int, default=0)
    given = parser.parse_args()
    ds = confreg.open(given.store).load()
    show(ds, given.entry, given.draws, given.seed)
    if given.by:
        kept = ds["keep"].values & np.isfinite(ds["correct"].values)
        for value in np.unique(ds[given.by].values[kept]):
            some = kept & (ds[given.by].values == value)
            correct, sure = (ds[name].values[some] for name in ("correct", "confidence"))
            print(f"{value!s:12} {some.sum():4} {correct.mean():6.2f} {sure.mean():6.3f}")


if __name__ == "__main__":
    main()
