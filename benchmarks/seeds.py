"""Two small language models from two seeds: are any of their neurons universal?

    python -m benchmarks.seeds [--steps 600] [--tokens 20000] [--out FOLDER]

Trains GPT-2s of three layers of 384 neurons on Python's help topics, from two seeds, which draw the
weights and the order of the text, and matches their neurons on text that neither was trained on.
The control is the same before training: models of two seeds that have learnt nothing. Prints what
docs/universal_neurons.md says. Takes some two minutes on two cores.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from pathlib import Path

import numpy as np
import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from tokenizers.trainers import BpeTrainer
from transformers import GPT2Config, GPT2LMHeadModel, PreTrainedTokenizerFast

import confreg
from confreg import tokens

LENGTH, BATCH, VOCABULARY = 64, 16, 1024
HELD_OUT = 8  # every eighth document


def main() -> None:
    """Train, match, and print."""
    parser = argparse.ArgumentParser(description=str(__doc__).splitlines()[0])
    parser.add_argument("--steps", type=int, default=600)
    parser.add_argument("--tokens", type=int, default=20_000)
    parser.add_argument("--above", type=float, default=0.2, help="excess of neurons with traits")
    parser.add_argument("--out", type=Path, help="keep models and stores here")
    given = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="confreg-seeds-") as temporary:
        folder = given.out or Path(temporary)
        documents = list(tokens.read().documents())
        seen = [d for i, d in enumerate(documents) if i % HELD_OUT]
        other = documents[::HELD_OUT]
        tokenizer = spelled(seen)
        stream = torch.tensor(tokenizer("\n".join(seen), verbose=False)["input_ids"])
        for steps in (0, given.steps):
            paths = []
            for seed in (0, 1):
                began = time.perf_counter()
                network, loss = trained(stream, steps, seed)
                paths.append(folder / f"seed{seed}-steps{steps}")
                network.save_pretrained(paths[-1])
                tokenizer.save_pretrained(paths[-1])
                seconds = time.perf_counter() - began
                print(f"seed {seed}, {steps} steps: loss {loss:.3f}, {seconds:.0f} s", flush=True)
            ds = confreg.run(
                "universal_neurons", model=paths[0], other=(str(paths[1]),), text=other,
                sequence_length=LENGTH, max_tokens=given.tokens, dtype="float32", progress=False,
                above=given.above, overwrite=True, out=folder / f"universal-{steps}.zarr",
            )  # fmt: skip
            show(ds.load(), given.above)


def spelled(documents: list[str]) -> PreTrainedTokenizerFast:
    """A byte-level BPE of the text."""
    core = Tokenizer(models.BPE())
    core.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    core.decoder = decoders.ByteLevel()
    core.train_from_iterator(
        documents,
        BpeTrainer(
            vocab_size=VOCABULARY, special_tokens=["<|endoftext|>"], show_progress=False,
            initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        ),
    )  # fmt: skip
    return PreTrainedTokenizerFast(
        tokenizer_object=core, bos_token="<|endoftext|>", eos_token="<|endoftext|>"
    )


def trained(stream: torch.Tensor, steps: int, seed: int) -> tuple[GPT2LMHeadModel, float]:
    """A model, and its mean loss over the last fifty steps."""
    torch.manual_seed(seed)
    draw = torch.Generator().manual_seed(seed)
    network = GPT2LMHeadModel(
        GPT2Config(
            vocab_size=VOCABULARY, n_positions=LENGTH, n_embd=96, n_layer=3, n_head=4,
            resid_pdrop=0, embd_pdrop=0, attn_pdrop=0, bos_token_id=0, eos_token_id=0,
        )
    )  # fmt: skip
    optimiser = torch.optim.AdamW(network.parameters(), lr=2e-3, weight_decay=0.1)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimiser, 2e-3, total_steps=max(steps, 2))
    losses = []
    for _ in range(steps):
        starts = torch.randint(len(stream) - LENGTH, (BATCH,), generator=draw)
        batch = torch.stack([stream[start : start + LENGTH] for start in starts.tolist()])
        loss = network(batch, labels=batch).loss
        optimiser.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(network.parameters(), 1.0)
        optimiser.step()
        schedule.step()
        losses.append(loss.item())
    return network.eval(), float(np.mean(losses[-50:])) if losses else float("nan")


def show(ds, above: float) -> None:
    """Print what was found."""
    excess, layer = ds["excess_correlation"].values, ds["layer"].values
    match, baseline = ds["match_correlation"].values[:, 0], ds["match_baseline"].values[:, 0]
    floor = float(ds["chance_floor"][0])
    print(f"  {int(ds['keep'].sum()):,} kept tokens, chance floor {floor:.3f}")
    for one in np.unique(layer):
        here = layer == one
        counts = ", ".join(f"{(excess[here] > at).sum()} above {at}" for at in (0.5, above))
        same = (ds["match_layer"].values[here, 0] == one).mean()
        print(
            f"  layer {one}: excess of {here.sum()}: {counts}; median "
            f"{np.median(excess[here]):.3f}, largest {excess[here].max():.3f}; match "
            f"{np.median(match[here]):.3f}, baseline {np.median(baseline[here]):.3f}; in the same "
            f"layer {same:.0%}"
        )
    for name, mean, p in zip(
        ds["trait"].values, ds["trait_percentile"].values, ds["trait_p"].values, strict=True
    ):
        print(f"  {name}: percentile {mean:.0f}, p {p:.1e}")


if __name__ == "__main__":
    main()
