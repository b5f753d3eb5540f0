"""A whole layer of experts, each evaluated where tokens are routed to it, against everywhere.

python -m benchmarks.experts [--rounds 3]

A model of Qwen 3 MoE's form with random weights: 16 experts of 256 neurons, of which a token has
two experts, and a vocabulary of 8,192. Both sides run in turn, in one process; what is printed are
medians and the ratio with its range. Both give the same numbers, which is printed too.
"""

from __future__ import annotations

import argparse
import statistics
import time
from typing import Any

import torch
from confreg.recipes.entropy_neurons import ablate

from confreg import effects as fx
from confreg.effects.engines import closed
from confreg.effects.observed import spans
from confreg.models import Model

EXPERTS, EACH, CHOSEN, VOCABULARY = 16, 256, 2, 8192
LENGTHS = {"series": 256, "exact": 32}


def model() -> Model:
    """A model with random weights."""
    from tokenizers import Tokenizer, models
    from transformers import PreTrainedTokenizerFast, Qwen3MoeConfig, Qwen3MoeForCausalLM

    torch.manual_seed(0)
    config = Qwen3MoeConfig(
        vocab_size=VOCABULARY, hidden_size=256, num_hidden_layers=2, num_attention_heads=4,
        num_key_value_heads=2, head_dim=64, num_experts=EXPERTS, num_experts_per_tok=CHOSEN,
        moe_intermediate_size=EACH, norm_topk_prob=True,
    )  # fmt: skip
    network = Qwen3MoeForCausalLM(config)
    words = {f"w{i}": i for i in range(VOCABULARY)}
    tokenizer = Tokenizer(models.WordLevel(words, unk_token="w0"))
    return Model.wrap(network, PreTrainedTokenizerFast(tokenizer_object=tokenizer))


def unit(engine: Any, length: int) -> fx.Unit:
    """Every neuron of the last layer, set to a tenth, at every token."""
    ids = torch.randint(0, VOCABULARY, (1, length))
    targets = ids.roll(-1, 1).flatten()
    tokens = fx.Tokens(ids, torch.arange(ids.numel()), targets, torch.ones_like(targets).bool())
    index = torch.arange(EXPERTS * EACH)
    edits = fx.Replace(index, torch.full((len(index),), 0.1))
    chosen = (fx.loss.total, fx.loss.direct, fx.entropy.total)
    return fx.Unit(tokens, edits, engine, chosen, layer=1, memory=2**30)


def everywhere(observed: Any, size: int, seen: torch.Tensor) -> list[slice]:
    """Edits as they come, so that some of each chunk are there at every token."""
    return spans(len(observed.edits), size)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=3)
    rounds = parser.parse_args().rounds
    network, sides = model(), {"where routed": closed.chunks_of_edits, "everywhere": everywhere}
    for name, engine in (("series", fx.Series()), ("exact", fx.Exact())):
        torch.manual_seed(0)
        work = unit(engine, LENGTHS[name])
        seconds: dict[str, list[float]] = {side: [] for side in sides}
        found = {}
        for _ in range(rounds):
            for side, way in sides.items():
                closed.chunks_of_edits = way
                started = time.perf_counter()
                with torch.no_grad():
                    found[side] = ablate(network, work)["effects"]
                seconds[side].append(time.perf_counter() - started)
        apart = float((found["where routed"] - found["everywhere"]).abs().max())
        ratios = [b / a for a, b in zip(*seconds.values())]
        medians = ", ".join(f"{s} {statistics.median(t):.2f} s" for s, t in seconds.items())
        print(
            f"{name}: {medians}; {statistics.median(ratios):.1f} times as fast "
            f"({min(ratios):.1f} to {max(ratios):.1f}); largest difference {apart:.1e} nats"
        )


if __name__ == "__main__":
    main()
