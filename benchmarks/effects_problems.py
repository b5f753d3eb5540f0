"""The last layers that `benchmarks.effects` measures on: a real model's, and one of 7B shape."""

from __future__ import annotations

import pydoc_data.topics
from dataclasses import dataclass
from typing import Any

import torch

from confreg import effects as fx


@dataclass
class Problem:
    """One last layer on some tokens: modules, and what the model did."""

    name: str
    down: Any
    norm: Any
    head: Any
    activation: torch.Tensor  # (1, T, width)
    residual: torch.Tensor  # (1, T, d)
    raw: torch.Tensor  # (1, T, V)
    targets: torch.Tensor  # (T,)
    values: torch.Tensor  # (width,)
    eps: float
    forward_seconds: float  # of the model on these tokens
    forward_note: str

    @property
    def width(self) -> int:
        return self.activation.shape[-1]

    @property
    def tokens(self) -> int:
        return self.activation.shape[1]

    def unit(self, engine: Any, neurons: torch.Tensor, tokens: int | None = None, **options):
        """A `Unit` over ``tokens`` tokens, going round the text where there are fewer."""
        positions = torch.arange(tokens or self.tokens) % self.tokens
        targets = self.targets[positions]
        text = fx.Tokens(
            torch.zeros(1, self.tokens, dtype=torch.int64), positions, targets, targets >= 0
        )
        edits = fx.Replace(neurons, self.values[neurons])
        return fx.Unit(text, edits, engine, EFFECTS, **options)

    def measure(self, unit: fx.Unit) -> dict:
        """The closed forms' whole work, reading the weights included."""
        site = fx.Site(
            Read(self.down), None, None, Read(self.norm, self.residual),
            Read(self.head, found=self.raw), readout={"centred": False, "eps": self.eps},
            write={"width": self.width},
        )  # fmt: skip
        return site.measure(unit, self.activation)


class Read:
    """A module with what went into it and came out of it."""

    def __init__(self, module: Any, given: Any = None, found: Any = None) -> None:
        self.module, self.input, self.output = module, given, found

    def __call__(self, x: torch.Tensor) -> torch.Tensor:
        return self.module(x)


EFFECTS = (fx.loss.total, fx.loss.direct, fx.entropy.total, fx.entropy.direct)
NAMES = tuple(effect.name for effect in EFFECTS)


def real_model(tokens: int, clock) -> tuple[Problem, Any]:
    """SmolLM2-135M on the beginning of Python's help topics."""
    from confreg import models

    model = models.load("smollm2-135m")
    text = "\n".join(pydoc_data.topics.topics.values())
    ids = [model.tokenizer.bos_token_id, *model.tokenizer(text[: 12 * tokens])["input_ids"]]
    inputs = torch.tensor([ids[:tokens]])
    down, norm, head = model.down_proj(-1), model.final_norm, model.unembedding
    saved = {}
    hooks = [
        down._module.register_forward_hook(lambda m, i, o: saved.update(activation=i[0])),
        norm._module.register_forward_hook(lambda m, i, o: saved.update(residual=i[0])),
        head._module.register_forward_hook(lambda m, i, o: saved.update(raw=o)),
    ]
    network = model.nn._module
    seconds = []
    with torch.no_grad():
        for _ in range(4):
            start = clock()
            network(inputs)
            seconds.append(clock() - start)
    for hook in hooks:
        hook.remove()
    targets = torch.cat((inputs[0, 1:], torch.tensor([-1])))
    problem = Problem(
        "SmolLM2-135M", down._module, norm._module, head._module, **saved, targets=targets,
        values=saved["activation"][0].mean(0), eps=model.readout["eps"],
        forward_seconds=min(seconds[1:]), forward_note="measured",
    )  # fmt: skip
    return problem, (model, inputs)


def synthetic(
    tokens: int, like: Problem, width: int = 11008, d: int = 4096, vocabulary: int = 32000
):
    """A last layer of Llama-2-7B's shape, scaled so that it looks like a trained one.

    Random weights; logits with the spread of a trained model's (entropy near 3 nats). A neuron's
    activations have the heavy tails that the real model's have: they are the real ones, resampled.
    """
    generator = torch.Generator().manual_seed(0)

    def normal(*shape):
        return torch.randn(*shape, generator=generator)

    norm = torch.nn.RMSNorm(d, eps=1e-5)
    head = torch.nn.Linear(d, vocabulary, bias=False)
    down = torch.nn.Linear(width, d, bias=False)
    with torch.no_grad():
        head.weight.normal_(0, 3.2 / d**0.5, generator=generator)
        down.weight.normal_(0, 1 / d**0.5, generator=generator)
        # Neurons' pushes on the logits relative to the residual, as in the real model.
        pick = torch.randint(like.width, (width,), generator=generator)
        rows = torch.randint(like.tokens, (tokens,), generator=generator)
        real = like.activation[0]
        unit = like.down.weight.norm(dim=0) / like.residual[0].norm(dim=-1).median()
        activation = (real * unit)[rows][:, pick] * d**0.5
        residual = normal(tokens, d) + activation @ down.weight.T * 0.1
        raw = head(norm(residual))
    targets = torch.distributions.Categorical(logits=raw).sample()
    gemm = _gemm_seconds()
    return Problem(
        "7B shape (synthetic)", down, norm, head, activation[None], residual[None], raw[None],
        targets, activation.mean(0), 1e-5, 2 * 6.74e9 * tokens * gemm,
        "2 x 6.74e9 operations a token at the measured speed of a matrix product",
    )  # fmt: skip


def _gemm_seconds() -> float:
    """Seconds an operation of a large float32 matrix product."""
    import time

    a, b = torch.randn(1024, 4096), torch.randn(4096, 4096)
    a @ b
    start = time.perf_counter()
    for _ in range(3):
        a @ b
    return (time.perf_counter() - start) / 3 / (2 * 1024 * 4096 * 4096)
