"""What a sweep over all neurons of a last layer costs: ``python -m benchmarks.effects``.

Side by side, in one process and on the same activations:

* ``paper``: the published method from its description: for some neurons at once add δ·w to the
  residual, normalise (with its own and with the frozen scale), unembed, log-softmax;
* ``forward``: every layer run again on one copy of the text a neuron, through nnsight;
* ``exact`` and ``series``: the closed forms of `confreg.effects`, reading weights included.

All four effects each: loss and entropy, total and direct. Methods too slow for all neurons run
on some of them, spread evenly, and are scaled up: the tables say on how many. Repeats interleave
the methods, so that what else the machine does weighs on all of them.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import math
import os
import platform
import statistics
import sys
import threading
import time
from pathlib import Path

import torch

from benchmarks.effects_problems import NAMES, Problem, real_model, synthetic
from confreg import effects as fx

ROOT = Path(__file__).resolve().parents[1]


def main(arguments: list[str] | None = None) -> int:
    options = parse(arguments)
    if importlib.util.find_spec("matplotlib") is None:  # asked for before minutes of measuring
        print("benchmarks.effects: its picture needs matplotlib", file=sys.stderr)
        return 2
    memory = int(options.memory * 1e9)
    found: dict = {"machine": machine(), "memory_budget_gb": options.memory, "problems": []}
    with torch.no_grad():
        small, forward = real_model(128, time.perf_counter)
        some = every(small, 256 if options.quick else small.width)
        sizes = {"paper": options.slow, "exact": 8 * options.slow, "forward": 4}
        check = some[:: max(1, len(some) // options.check)]
        found["problems"].append(
            compare(small, some, check, options.repeats, memory, sizes, forward)
        )
        large = synthetic(options.long, small)
        found["scaling"] = scaling(small, large, memory, options.quick)
        some = every(large, 256 if options.quick else large.width)
        sizes = {"paper": 2, "exact": 8}
        check = some[:: len(some) // 8]
        found["problems"].append(compare(large, some, check, options.repeats, memory, sizes))
    report(found)
    options.out.parent.mkdir(parents=True, exist_ok=True)
    options.out.write_text(json.dumps(found, indent=1) + "\n")
    draw(found, options.out.with_suffix(".png"))
    print(f"\nwritten: {options.out} and {options.out.with_suffix('.png')}")
    return 0


def parse(arguments: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.effects", description=__doc__)
    parser.add_argument("--quick", action="store_true", help="fewer neurons, tokens and repeats")
    parser.add_argument("--repeats", type=int, help="default: 3")
    parser.add_argument("--memory", type=float, default=2.0, help="GB for the closed forms")
    parser.add_argument("--slow", type=int, help="neurons the paper's method runs on (default: 48)")
    parser.add_argument(
        "--check", type=int, help="neurons of SmolLM2 checked in float64 at every token (all)"
    )
    parser.add_argument("--long", type=int, help="tokens for the 7B shape (default: 2048)")
    parser.add_argument("--out", type=Path, default=ROOT / "docs" / "effects.json")
    options = parser.parse_args(arguments)
    quick = {"repeats": 1, "slow": 8, "check": 32, "long": 256}
    full = {"repeats": 3, "slow": 48, "check": 1536, "long": 2048}
    for name, value in (quick if options.quick else full).items():
        if getattr(options, name) is None:
            setattr(options, name, value)
    return options


def machine() -> dict:
    return {
        "cores": len(os.sched_getaffinity(0)), "threads": torch.get_num_threads(),
        "torch": torch.__version__, "python": platform.python_version(),
        "vector": torch.backends.cpu.get_cpu_capability(),
    }  # fmt: skip


def every(problem: Problem, count: int) -> torch.Tensor:
    """``count`` neurons spread evenly over the layer."""
    return torch.arange(count) * problem.width // count


def compare(problem, neurons, check, repeats, memory, sizes, forward=None) -> dict:
    """Time all methods on one problem, and check them against float64."""
    chosen = {name: neurons[:: max(1, len(neurons) // size)][:size] for name, size in sizes.items()}
    chosen["series"] = neurons
    runs = {
        "paper": lambda some: {"effects": paper(problem, some)},
        "exact": lambda some: problem.measure(problem.unit(fx.Exact(), some, memory=memory)),
        "series": lambda some: problem.measure(problem.unit(fx.Series(), some, memory=memory)),
    }
    if forward is not None:
        runs["forward"] = lambda some: through_model(problem, some, forward)
    seconds: dict = {name: [] for name in runs}
    processor: dict = {name: [] for name in runs}
    peak: dict = {}
    results: dict = {}
    for name, run in runs.items():  # once without the clock: whoever looks at memory takes time
        with Peak() as watch:
            run(chosen[name])
        peak[name] = watch.rise
    for _ in range(repeats):
        for name, run in runs.items():
            start = time.perf_counter(), time.process_time()
            results[name] = run(chosen[name])
            seconds[name].append(time.perf_counter() - start[0])
            processor[name].append(time.process_time() - start[1])
    expected = float64(problem, check)
    out: dict = {
        "name": problem.name, "neurons": problem.width, "tokens": problem.tokens,
        "forward_pass_s": problem.forward_seconds, "forward_pass": problem.forward_note,
        "methods": {},
    }  # fmt: skip
    for name in runs:
        each = [s / len(chosen[name]) / problem.tokens for s in seconds[name]]
        both = per_pair(seconds, chosen, "paper"), per_pair(seconds, chosen, name)
        ratios = [a / b for a, b in zip(*both)]
        error = errors(results[name]["effects"], chosen[name], expected, check)
        sweep = statistics.median(each) * problem.tokens * problem.width
        out["methods"][name] = {
            "neurons_timed": len(chosen[name]),
            "us_per_pair": 1e6 * statistics.median(each),
            "sweep_s": sweep,
            "times_faster_than_paper": statistics.median(ratios),
            "times_faster_range": [min(ratios), max(ratios)],
            "times_less_processor": statistics.median(
                a / b
                for a, b in zip(
                    per_pair(processor, chosen, "paper"), per_pair(processor, chosen, name)
                )
            ),
            "processor_us_per_pair": 1e6
            * statistics.median(per_pair(processor, chosen, name))
            / problem.tokens,
            "forward_passes": sweep / problem.forward_seconds,
            "peak_gb": peak[name],
            **error,
        }
        if name == "series":
            share = float(results[name]["recomputed"] / results[name]["pairs"])
            out["methods"][name]["recomputed_share"] = share
    return out


def per_pair(seconds, chosen, name):
    return [s / len(chosen[name]) for s in seconds[name]]


def paper(problem: Problem, neurons: torch.Tensor, at_once: int = 4) -> torch.Tensor:
    """Effects (n, T, 4) the published way; modules of the model throughout."""
    residual, raw = problem.residual[0], problem.raw[0]
    weights = problem.down.weight.T
    clean_loss, clean_entropy = loss_entropy(raw, problem.targets)
    scale = (residual.square().mean(-1, keepdim=True) + problem.eps).sqrt()
    out = torch.empty(len(neurons), len(residual), 4)
    for start in range(0, len(neurons), at_once):
        some = neurons[start : start + at_once]
        delta = problem.values[some] - problem.activation[0][:, some]
        changed = residual + delta.T[:, :, None] * weights[some][:, None]
        ablated = {
            0: problem.norm(changed),
            1: changed / scale * problem.norm.weight,
        }
        for variant, normalised in ablated.items():
            logits = problem.head(normalised)
            loss, entropy = loss_entropy(logits, problem.targets.expand(len(some), -1))
            out[start : start + at_once, :, variant] = loss - clean_loss
            out[start : start + at_once, :, 2 + variant] = entropy - clean_entropy
    return out


def loss_entropy(logits, targets):
    log_p = torch.log_softmax(logits, -1)
    loss = -log_p.gather(-1, targets.clamp_min(0)[..., None])[..., 0]
    return torch.where(targets < 0, torch.nan, loss), -(log_p.exp() * log_p).sum(-1)


def through_model(problem: Problem, neurons: torch.Tensor, forward) -> dict:
    """The engine ``forward``: an nnsight trace over one copy of the text a neuron."""
    import nnsight

    model, inputs = forward
    unit = problem.unit(fx.Forward(), neurons)
    unit.inputs = inputs.repeat(1 + unit.copies, 1)
    readout = {"centred": False, "eps": problem.eps}
    down, norm, head = model.down_proj(-1), model.final_norm, model.unembedding
    site = fx.Site(down, None, None, norm, head, readout=readout, write={"width": problem.width})
    with model.trace(unit.inputs):
        activation = site.neurons.input
        site.neurons.input = unit.edits.apply(activation, unit.copies)
        out = site.measure(unit, activation)
        nnsight.save(out)
    return out


def float64(problem: Problem, neurons: torch.Tensor) -> torch.Tensor:
    """Effects (n, T, 4) in float64 from the model's weights: nothing of `confreg.effects`."""
    residual = problem.residual[0].double()
    gain, unembedding = problem.norm.weight.double(), problem.head.weight.double()
    scale = (residual.square().mean(-1) + problem.eps).sqrt()
    logits = (residual / scale[:, None] * gain) @ unembedding.T
    clean_loss, clean_entropy = loss_entropy(logits, problem.targets)
    weights = problem.down.weight.double().T[neurons]
    delta = (problem.values[neurons] - problem.activation[0][:, neurons]).double().T
    push = (weights * gain) @ unembedding.T
    out = torch.empty(len(neurons), len(residual), 4, dtype=torch.float64)
    for token in range(len(residual)):
        changed = residual[token] + delta[:, token, None] * weights
        after = (changed.square().mean(-1) + problem.eps).sqrt()
        for start in range(0, len(neurons), 4):
            some = slice(start, start + 4)
            for variant, divisor in enumerate((after[some], scale[token].expand_as(after[some]))):
                ablated = push[some] * (delta[some, token] / divisor)[:, None]
                ablated.addcmul_((scale[token] / divisor)[:, None], logits[token])
                ablated -= ablated.amax(-1, keepdim=True)
                at = ablated[:, problem.targets[token]].clone()
                exponential = ablated.exp()
                total = exponential.sum(-1)
                entropy = total.log() - (exponential * ablated).sum(-1) / total
                out[some, token, variant] = total.log() - at - clean_loss[token]
                out[some, token, 2 + variant] = entropy - clean_entropy[token]
    return out


def errors(found, neurons, expected, checked) -> dict:
    """Largest and mean error over the pairs that both hold; None where they share none."""
    place = {n: i for i, n in enumerate(neurons.tolist())}
    both = [(place[n], j) for j, n in enumerate(checked.tolist()) if n in place]
    if not both:
        return {"error_max": None, "error_mean": None, "error_pairs": 0}
    mine, theirs = (torch.tensor(index) for index in zip(*both))
    error = (found[mine].double() - expected[theirs]).abs()
    error = error[~error.isnan()]
    return {
        "error_max": float(error.max()), "error_mean": float(error.mean()),
        "error_pairs": len(both) * found.shape[1],
    }  # fmt: skip


def scaling(small: Problem, large: Problem, memory: int, quick: bool) -> dict:
    """Seconds of ``series`` over a 16-fold range of tokens and of neurons, and the exponents.

    Tokens on SmolLM2; neurons on the 7B shape, up to the whole layer: what a token costs whatever
    the number of neurons is as much as some hundred neurons.
    """
    out = {}
    few, sizes = every(small, 128), [128 * 2**k for k in range(5)]
    cases = {"tokens": (small, [(few, size) for size in sizes])}
    sizes = [large.width // 2**k for k in range(4, -1, -1)]
    tokens = 32 if quick else 128
    cases["neurons"] = (large, [(every(large, size), tokens) for size in sizes])
    for name, (problem, runs) in cases.items():
        points = []
        for neurons, tokens in runs:
            took = []
            for _ in range(1 if quick else 2):
                start = time.perf_counter()
                problem.measure(problem.unit(fx.Series(), neurons, tokens, memory=memory))
                took.append(time.perf_counter() - start)
            points.append([tokens if name == "tokens" else len(neurons), min(took)])
        out[name] = {"on": problem.name, "points": points, "exponent": exponent(points)}
    return out


def exponent(points) -> float:
    """Slope of log seconds against log size, by least squares."""
    x, y = ([math.log(v) for v in column] for column in zip(*points))
    mx, my = statistics.mean(x), statistics.mean(y)
    return sum((a - mx) * (b - my) for a, b in zip(x, y)) / sum((a - mx) ** 2 for a in x)


class Peak:
    """How far the resident set rises inside a ``with``, GB, looked at every 5 ms."""

    def __enter__(self):
        self.rise = 0.0
        self._start = self._resident()
        self._done = threading.Event()
        self._thread = threading.Thread(target=self._watch, daemon=True)
        self._thread.start()
        return self

    def __exit__(self, *_):
        self._done.set()
        self._thread.join()

    def _watch(self):
        while not self._done.wait(0.005):
            self.rise = max(self.rise, self._resident() - self._start)

    @staticmethod
    def _resident() -> float:
        pages = int(Path("/proc/self/statm").read_text().split()[1])
        return pages * os.sysconf("SC_PAGE_SIZE") / 1e9


def report(found: dict) -> None:
    """Print the tables."""
    columns = (
        ("timed on", "neurons_timed", "d"), ("us/pair", "us_per_pair", ".3g"),
        ("sweep s", "sweep_s", ".3g"), ("x paper", "times_faster_than_paper", ".3g"),
        ("x cpu", "times_less_processor", ".3g"), ("forwards", "forward_passes", ".3g"),
        ("max error", "error_max", ".1e"), ("mean", "error_mean", ".1e"), ("GB", "peak_gb", ".2f"),
    )  # fmt: skip
    for problem in found["problems"]:
        print(f"\n{problem['name']}: {problem['neurons']} neurons x {problem['tokens']} tokens")
        print(f"forward pass {problem['forward_pass_s']:.3g} s ({problem['forward_pass']})")
        print(" " * 8 + "".join(f"{title:>11}" for title, _, _ in columns) + "  range of x paper")
        for name, row in problem["methods"].items():
            cells = ["-" if row[k] is None else format(row[k], f) for _, k, f in columns]
            low, high = row["times_faster_range"]
            print(f"{name:>8}" + "".join(f"{c:>11}" for c in cells) + f"  {low:.3g} to {high:.3g}")
        share = problem["methods"]["series"]["recomputed_share"]
        print(f"series left {share:.2%} of the pairs to exact")
    for name, fit in found["scaling"].items():
        print(f"series' seconds grow as {name} ** {fit['exponent']:.3f} ({fit['on']})")


def draw(found: dict, path: Path) -> None:
    """Cost a pair of each method, and how ``series`` scales."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(1, 2, figsize=(10, 3.6), layout="constrained")
    names = ["forward", "paper", "exact", "series"]
    colours = ["#4c6fae", "#c4572e"]
    for k, problem in enumerate(found["problems"]):
        methods = problem["methods"]
        for i, name in enumerate(names):
            if name in methods:
                y = i + 0.2 - 0.4 * k
                value = methods[name]["us_per_pair"]
                label = f"{problem['name']}, {problem['tokens']} tokens" if name == "series" else ""
                axes[0].barh(y, value, 0.38, color=colours[k], label=label or None)
                faster = methods[name]["times_faster_than_paper"]
                note = "" if name == "paper" else f"  {faster:.3g}×"
                axes[0].text(value, y, f" {value:.3g}{note}", va="center", fontsize=8)
    axes[0].set_yticks(range(4), names)
    axes[0].set_xscale("log")
    axes[0].set_xlim(right=axes[0].get_xlim()[1] * 12)
    axes[0].set_xlabel("µs per neuron and token, all four effects (× faster than the paper's)")
    axes[0].legend(fontsize=8, loc="upper right")
    for (name, fit), marker, colour in zip(found["scaling"].items(), "os", colours):
        x, y = zip(*fit["points"])
        start = x[0]
        label = f"{name} from {start}, {fit['on']}: exponent {fit['exponent']:.2f}"
        axes[1].loglog([v / start for v in x], y, marker + "-", color=colour, label=label)
    axes[1].set_xlabel("size, as a multiple of the smallest")
    axes[1].set_ylabel("seconds (series)")
    axes[1].legend(fontsize=8)
    for axis in axes:
        axis.spines[["top", "right"]].set_visible(False)
    figure.savefig(path, dpi=150)
    pyplot.close(figure)


assert NAMES == ("loss_total", "loss_direct", "entropy_total", "entropy_direct")  # `paper`'s order

if __name__ == "__main__":
    raise SystemExit(main())
