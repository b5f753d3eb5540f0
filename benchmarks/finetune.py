"""A few steps of fine-tuning on one text, for something to compare a model with.

    python -m benchmarks.finetune runs/tuned --steps 30
    confreg run entropy_neurons --out runs/base.zarr
    confreg run entropy_neurons --model runs/tuned --out runs/tuned.zarr
    confreg compare runs/base.zarr runs/tuned.zarr -o compare.html

It is no instruction tuning: AdamW on the next token of plain text, every weight but the embeddings.
It is a stand-in for a base model and its chat model.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import torch

from confreg import models, tokens
from confreg.models.quiet import quiet


def finetune(
    model: str, out: Path, steps: int, rate: float, length: int, rows: int, text: str | None
) -> list[float]:
    """Train, save the model and its tokenizer in a folder, and return the loss at each step."""
    loaded = models.load(model, dtype="float32")
    network = loaded.nn._module
    torch.manual_seed(0)
    network.requires_grad_(True)
    network.get_input_embeddings().requires_grad_(False)
    corpus = tokens.read(text)
    table = tokens.lay_out(corpus, loaded.tokenizer, length, 4 * steps * rows * length)
    ids = [torch.tensor(row) for row in table.sequences if len(row) == length]
    order = torch.randperm(len(ids), generator=torch.Generator().manual_seed(0)).tolist()
    free = [p for p in network.parameters() if p.requires_grad]
    optimiser = torch.optim.AdamW(free, lr=rate, weight_decay=0.0)
    losses = []
    for step in range(steps):
        chosen = [order[(step * rows + i) % len(order)] for i in range(rows)]
        batch = torch.stack([ids[i] for i in chosen])
        loss = network(input_ids=batch, labels=batch, use_cache=False).loss
        optimiser.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(free, 1.0)
        optimiser.step()
        losses.append(float(loss.detach()))
        print(f"step {step + 1} of {steps}: loss {losses[-1]:.3f}", flush=True)
    network.requires_grad_(False)
    if getattr(network.config, "quantization_config", None) is not None:
        del network.config.quantization_config
    with quiet():
        network.save_pretrained(out)
        loaded.tokenizer.save_pretrained(out)
    return losses


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    add = parser.add_argument
    add("out", type=Path)
    add("--model", default="smollm2-135m")
    add("--steps", type=int, default=30)
    add("--rate", type=float, default=2e-5)
    add("--length", type=int, default=128)
    add("--rows", type=int, default=2)
    add("--text")
    given = parser.parse_args()
    finetune(given.model, given.out, given.steps, given.rate, given.length, given.rows, given.text)


if __name__ == "__main__":
    main()
