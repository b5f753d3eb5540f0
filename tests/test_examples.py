"""Recipes as users write them, from the command line, against plain torch and transformers."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import numpy as np
import oracle
import pytest
import resuming
import torch
import zoo
from safetensors.torch import save_file

import confreg
from confreg import cli, models
from confreg.places import profiles

EXAMPLES = Path(__file__).parent.parent / "examples"
KINDS = ["llama", "gpt2", "gemma2"]  # RMSNorm, LayerNorm, and a norm behind the MLP
SIZE = 32
ALPHAS = [-2.0, 0.0, 0.5, 4.0]


@pytest.fixture
def folder(tmp_path, words, monkeypatch):
    """The folder in which commands run: a text, a direction twice, and an autoencoder."""
    monkeypatch.chdir(tmp_path)
    Path("text.txt").write_text("\n".join(words))
    generator = torch.Generator().manual_seed(0)

    def noise(*shape):
        return torch.randn(shape, generator=generator)

    rows = noise(5, SIZE)
    np.save("steer.npy", rows.numpy())
    save_file({"steer": rows}, "steer.safetensors")
    encoder = noise(SIZE, 12) / SIZE**0.5
    sae = {"W_enc": encoder, "b_enc": 0.3 * noise(12), "W_dec": noise(12, SIZE)}
    save_file({**sae, "b_dec": 0.3 * noise(SIZE)}, "sae.safetensors")
    return tmp_path


def line(model: Path, example: str, out: str = "o.zarr", *more: str) -> list[str]:
    """The arguments of ``confreg run`` on one of the examples."""
    return [
        "run", str(EXAMPLES / f"{example}.py"), "--model", str(model), "--text", "text.txt",
        "--out", out, "--sequence-length", "16", "--max-tokens", "60", "--quiet", *more,
    ]  # fmt: skip


def run(model: Path, example: str, *more: str, out: str = "o.zarr"):
    cli.main(line(model, example, out, *more))
    return confreg.open(out).load()


def texts(ds):
    """Every sequence, (1, length), and the part of the dataset that is about it."""
    for s in np.unique(ds["sequence"]):
        here = ds.isel(token=ds["sequence"].values == s)
        yield torch.from_numpy(here["token_id"].values)[None], here


def same(found, expected, tolerance: float, name: str = "") -> None:
    """Equal, and NaN at the same places."""
    found, expected = np.asarray(found), np.asarray(expected)
    np.testing.assert_array_equal(np.isnan(found), np.isnan(expected), err_msg=name)
    np.testing.assert_allclose(found, expected, rtol=0, atol=tolerance, err_msg=name)


# What each example needs to run at all, on tiny models of three layers.
RUNS = {
    "probability": ["--neurons", "1:3-6,2:3-9"],
    "steering": ["-p", "direction=2.7", "-p", "layer=1"],
    "latents": ["-p", "file=sae.safetensors", "-p", "latents=0-6"],
    "correlated_neurons": ["--neurons", "1:0-9", "-p", "other_layer=2"],
}


def arguments(checkpoint, example: str, out: str = "o.zarr", *more: str) -> list[str]:
    """A whole command line of an example."""
    own = list(RUNS[example])
    if example == "correlated_neurons":
        own += ["-p", f"other={checkpoint('gpt2')}"]
    return line(checkpoint("llama"), example, out, *own, *more)


# probability


def probability(logits, ids):
    """The next token's probability, NaN where there is none, and first less second: (length,)."""
    p = logits.softmax(-1)[0]
    correct = p.gather(-1, ids[0].roll(-1)[:, None])[:, 0]
    correct[-1] = torch.nan
    ordered = p.sort(descending=True).values
    return {"probability": correct, "margin": ordered[:, 0] - ordered[:, 1]}


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(
    ("engine", "layer"), [("auto", 2), ("exact", 2), ("forward", 2), ("auto", 1), ("forward", 0)]
)
def test_probabilities_are_the_oracle_s(checkpoint, folder, kind, engine, layer):
    ds = run(
        checkpoint(kind), "probability", "--engine", engine, "--neurons", f"{layer}:3-6",
        "-p", f"layer={layer}",
    )  # fmt: skip
    names = [f"{m}_{p}" for m in ("probability", "margin") for p in ("total", "direct")]
    assert ds["effect"].values.tolist() == names
    assert (ds.attrs["engine"] == "forward") == (layer < 2 or engine == "forward")
    judge = oracle.Oracle(zoo.tiny(kind)[0])
    down = judge.down.format(layer)
    seen = torch.cat([judge.activations(ids, layer).flatten(0, -2) for ids, _ in texts(ds)])
    same(ds["ablation_value"], seen[:, 3:7].mean(0), 1e-5)
    for ids, here in texts(ds):
        clean, scale = judge.scaled(ids)
        before = probability(clean, ids)
        for i, value in enumerate(ds["ablation_value"].values):
            edits = {down: oracle.setting({3 + i: float(value)})}
            for pathway, pinned in (("total", None), ("direct", scale)):
                after = probability(judge.forward(ids, edits, pinned=pinned)[0], ids)
                for name in before:
                    mine = here["effects"].isel(neuron=i).sel(effect=f"{name}_{pathway}")
                    same(mine, after[name] - before[name], 1e-5, f"{name}_{pathway}")
    # Measures of one's own are kept of the unedited model too, and carry their words.
    assert ds["probability"].attrs == {
        "long_name": "probability of the correct token",
        "units": "1",
    }
    assert float(abs(ds["effects"]).max()) > 1e-3
    judged = [probability(judge.forward(ids)[0], ids) for ids, _ in texts(ds)]
    for name in ("probability", "margin"):
        same(ds[name], torch.cat([each[name] for each in judged]), 1e-5, name)
    kept = ds["effects"].isel(token=ds["keep"].values)
    same(ds["effect_abs_mean"], abs(kept).mean("token"), 1e-6)


# steering


STEERED = [(kind, layer, "1.7") for kind in KINDS for layer in (0, 1, 2)]
STEERED += [("llama", 1, "steer.npy:3"), ("llama", 1, "steer.safetensors:3")]


@pytest.mark.parametrize(("kind", "layer", "given"), STEERED)
def test_steering_adds_multiples_of_a_direction(checkpoint, folder, kind, layer, given):
    ds = run(
        checkpoint(kind), "steering", "-p", f"direction={given}", "-p", f"layer={layer}",
        "-p", "alphas=" + ",".join(map(str, ALPHAS)),
    )  # fmt: skip
    judge = oracle.Oracle(zoo.tiny(kind)[0])
    if given == "1.7":
        weight = judge.network.get_submodule(judge.down.format(1)).weight
        w = weight[7] if kind == "gpt2" else weight[:, 7]
    else:
        w = torch.from_numpy(np.load("steer.npy")[3])
    w = w.double()
    same(ds["direction"], w, 1e-6)
    assert ds["alpha"].values.tolist() == ALPHAS
    names = ["entropy_total", "loss_total", "norm_scale_total"]
    assert ds["effect"].values.tolist() == names
    for ids, here in texts(ds):
        for alpha in ALPHAS:
            path = judge.layer.format(layer)
            truth = judge.edited(ids, path, lambda x, alpha=alpha: x + alpha * w)
            for name in names:
                mine = here["effects"].sel(alpha=alpha, effect=name)
                same(mine, truth[name], 2e-4 if name == "norm_scale_total" else 1e-4, name)
    change = abs(ds["effects"]).max("token")
    assert (change.sel(alpha=0.0) == 0).all()
    assert (change.sel(alpha=4.0) > 1e-2).all()


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ("nonsense", "'nonsense' is not understood"),
        ("9.2", "layer 9"),
        ("1.999", "1.999"),
        ("steer.npy:7", "out of bounds"),
        ("none.npy", "none.npy"),
        ("narrow.npy", "width"),
    ],
)
def test_a_wrong_direction_is_a_sentence(checkpoint, folder, capsys, given, said):
    np.save("narrow.npy", np.ones((1, 7)))
    with pytest.raises(SystemExit) as status:
        run(checkpoint("llama"), "steering", "-p", f"direction={given}", "-p", "layer=1")
    assert status.value.code == 2
    error = capsys.readouterr().err
    assert said in error
    assert "Traceback" not in error


# latents


@pytest.mark.parametrize("kind", [*KINDS, "olmo2"])
@pytest.mark.parametrize("value", [0.0, 1.5])
def test_latents_by_three_engines_and_the_oracle(checkpoint, folder, kind, value):
    from safetensors.torch import load_file

    found = {
        engine: run(
            checkpoint(kind), "latents", "--engine", engine, "-p", "file=sae.safetensors",
            "-p", "latents=2-9", "-p", f"value={value}", out=f"{engine}.zarr",
        )
        for engine in ("series", "exact", "forward")
    }  # fmt: skip
    ds = found["forward"]
    assert ds["latent"].values.tolist() == list(range(2, 10))
    for engine in ("series", "exact"):
        assert found[engine].attrs["engine"] == engine
        same(found[engine]["effects"], ds["effects"], 1e-4, engine)
        same(found[engine]["effect_mean"], ds["effect_mean"], 1e-4, engine)
    judge = oracle.Oracle(zoo.tiny(kind)[0])
    sae = {name: tensor.double() for name, tensor in load_file("sae.safetensors").items()}
    for ids, here in texts(ds):
        for latent in ds["latent"].values:

            def edit(x, latent=latent):
                z = (x - sae["b_dec"]) @ sae["W_enc"][:, latent] + sae["b_enc"][latent]
                return x + (value - z.relu())[..., None] * sae["W_dec"][latent]

            truth = judge.edited(ids, judge.norm, edit)
            for name in ds["effect"].values:
                mine = here["effects"].sel(latent=latent, effect=name)
                same(mine, truth[name], 1e-4, name)
    assert (abs(ds["effects"]).max(["latent", "token"]) > 0.1).all()


def test_latents_are_chosen_as_the_recipe_says(checkpoint, folder, capsys):
    given = ["-p", "file=sae.safetensors", "--max-tokens", "20"]
    assert run(checkpoint("llama"), "latents", *given, out="a.zarr").sizes["latent"] == 12
    one = run(checkpoint("llama"), "latents", *given, "-p", "latents=7", out="b.zarr")
    assert one["latent"].values.tolist() == [7]
    for wrong in (["-p", "latents=7"], [*given, "-p", "latents=7-12"], ["-p", "file=no.st"]):
        with pytest.raises(SystemExit) as status:
            run(checkpoint("llama"), "latents", *wrong, out="c.zarr")
        assert status.value.code == 2
        assert "Traceback" not in capsys.readouterr().err


# correlated neurons


@pytest.mark.parametrize(("mine", "theirs"), [("llama", "gpt2"), ("gemma2", "llama")])
def test_correlations_are_numpy_s(checkpoint, folder, mine, theirs):
    ds = run(
        checkpoint(mine), "correlated_neurons", "--neurons", "1:0-9",
        "-p", f"other={checkpoint(theirs)}", "-p", "other_layer=0",
    )  # fmt: skip
    seen = []
    for kind, layer in ((mine, 1), (theirs, 0)):
        judge = oracle.Oracle(zoo.tiny(kind)[0])
        every = [judge.activations(ids, layer).flatten(0, -2) for ids, _ in texts(ds)]
        seen.append(torch.cat(every)[ds["keep"].values].T.numpy())
    a, b = seen[0][:10], seen[1]
    same(ds["correlation"], np.corrcoef(a, b)[:10, 10:], 1e-5)
    assert (ds.sizes["neuron"], ds.sizes["partner"]) == (10, 48)
    assert ds["partner"].values[:2].tolist() == ["0.0", "0.1"]
    assert "token" not in ds["product"].dims


def test_a_model_with_itself(checkpoint, folder):
    own = ["-p", f"other={checkpoint('llama')}"]
    whole = run(checkpoint("llama"), "correlated_neurons", *own, out="a.zarr")
    same(np.diag(whole["correlation"]), np.ones(48), 1e-6)
    np.testing.assert_allclose(whole["correlation"], whole["correlation"].T, atol=1e-6)
    cut = run(checkpoint("llama"), "correlated_neurons", *own, "--unit-tokens", "16", out="b.zarr")
    plan = confreg.plan(
        EXAMPLES / "correlated_neurons.py", model=str(checkpoint("llama")), text="text.txt",
        other=str(checkpoint("llama")), sequence_length=16, max_tokens=60, unit_tokens=16,
    )  # fmt: skip
    assert plan.layout("moments").counts == (1, 4)
    same(cut["correlation"], whole["correlation"], 1e-6)


def test_neurons_of_two_layers_are_read_in_their_own(checkpoint, folder):
    own = ["-p", f"other={checkpoint('llama')}", "-p", "other_layer=2"]
    both = run(checkpoint("llama"), "correlated_neurons", *own, "--neurons", "1:4-6,2:0-9")
    assert both["neuron"].values.tolist()[2:4] == ["1.6", "2.0"]
    same(np.diag(both["correlation"].isel(neuron=slice(3, None))), np.ones(10), 1e-6)
    assert (abs(both["correlation"][:3]) < 0.999).all()


def test_models_of_other_tokens_are_a_sentence(checkpoint, folder, capsys):
    zoo.save("llama", folder / "other", vocab_size=140)
    zoo.tokenizer(80).save_pretrained(folder / "other")
    with pytest.raises(SystemExit) as status:
        run(checkpoint("llama"), "correlated_neurons", "-p", "other=other")
    assert status.value.code == 2
    assert "other tokens than" in capsys.readouterr().err


# digits


def digits(*more: str, out: str = "o.zarr"):
    cli.main(["run", str(EXAMPLES / "digits.py"), "--out", out, "--quiet", *more])
    return confreg.open(out).load()


def test_digits_are_plain_torch_s(tmp_path, monkeypatch):
    from confreg.recipe import find

    monkeypatch.chdir(tmp_path)
    ds = digits("-p", "images=60")
    assert dict(ds["effects"].sizes) == {"neuron": 32, "image": 60, "effect": 3}
    network = find(EXAMPLES / "digits.py").model()._module
    pixels, shown = torch.tensor(_digits().data / 16).float(), torch.tensor(_digits().target)
    assert (network(pixels).argmax(-1) == shown).double().mean() > 0.95
    np.testing.assert_array_equal(ds["digit"], shown[:60])
    hidden = network[1](network[0](pixels))
    losses = torch.nn.functional.cross_entropy
    before = network[2](hidden[:60])
    same(ds["loss"], losses(before, shown[:60], reduction="none"), 1e-5)
    for neuron in range(32):
        changed = hidden[:60].clone()
        changed[:, neuron] = hidden[:, neuron].mean()
        after = network[2](changed)
        truth = {
            "loss_total": losses(after, shown[:60], reduction="none")
            - losses(before, shown[:60], reduction="none"),
            "entropy_total": torch.distributions.Categorical(logits=after).entropy()
            - torch.distributions.Categorical(logits=before).entropy(),
            "top1_total": (after.argmax(-1) != before.argmax(-1)).float(),
        }
        for name, expected in truth.items():
            same(ds["effects"].sel(neuron=neuron, effect=name), expected, 1e-5, name)
    assert float(abs(ds["effects"].sel(effect="loss_total")).max()) > 0.1


def _digits():
    from sklearn.datasets import load_digits

    return load_digits()


def test_digits_are_planned_and_replaced(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    digits("-p", "images=40")
    with pytest.raises(SystemExit):
        digits("-p", "images=41")
    assert "images" in capsys.readouterr().err
    assert digits("-p", "images=41", "--overwrite").sizes["image"] == 41
    cli.main(["plan", str(EXAMPLES / "digits.py")])
    said = capsys.readouterr().out
    assert "200 images" in said
    assert "32 neurons" in said


@pytest.mark.slow
def test_digits_are_killed(tmp_path):
    own = ["run", str(EXAMPLES / "digits.py"), "--out", "o.zarr", "--quiet", "-p", "images=40"]
    resuming.survives(own, tmp_path, tmp_path / "o.zarr")


# all of them


@pytest.mark.parametrize("example", RUNS)
def test_plans_say_passes_and_sizes(checkpoint, folder, capsys, example):
    whole = arguments(checkpoint, example)
    whole[0] = "plan"
    whole.remove("--quiet")
    cli.main(whole)
    said = " ".join(capsys.readouterr().out.split())
    for word in ("through the model", "on disk", "in memory", "beside the model", "60 in"):
        assert word in said
    assert not Path("o.zarr").exists()


@pytest.mark.parametrize("example", RUNS)
def test_options_work_as_with_any_recipe(checkpoint, folder, capsys, example):
    cli.main(arguments(checkpoint, example))
    first = confreg.open("o.zarr").load()
    assert first.sizes["token"] == 60
    assert first.attrs["seed"] == 0
    other = arguments(checkpoint, example, "o.zarr", "--max-tokens", "40", "--seed", "3")
    with pytest.raises(SystemExit) as status:
        cli.main(other)
    assert status.value.code == 2
    said = capsys.readouterr().err
    assert "seed: 0 there, 3 now" in said
    assert "--overwrite" in said
    cli.main([*other, "--overwrite"])
    second = confreg.open("o.zarr").load()
    assert (second.sizes["token"], second.attrs["seed"]) == (40, 3)
    with pytest.raises(SystemExit) as status:
        cli.main(arguments(checkpoint, example, "b.zarr", "-p", "colour=red"))
    assert status.value.code == 2
    assert "no parameter 'colour'" in capsys.readouterr().err


@pytest.mark.slow
@pytest.mark.parametrize("example", RUNS)
def test_killed_at_random_moments(checkpoint, folder, example):
    small = ("--unit-tokens", "16", "--unit-copies", "3", "--engine", "auto")
    own = arguments(checkpoint, example, "o.zarr", *small)
    resuming.survives(own, folder, folder / "o.zarr")


@pytest.mark.slow
@pytest.mark.parametrize("example", RUNS)
def test_ctrl_c_leaves_a_store_that_resumes(checkpoint, folder, example):
    small = ("--unit-tokens", "16", "--unit-copies", "3")
    resuming.stops(arguments(checkpoint, example, "o.zarr", *small), folder, folder / "o.zarr")
    assert confreg.open("o.zarr").attrs["complete"] == 1


@pytest.mark.slow
@pytest.mark.parametrize("example", RUNS)
def test_offloaded_as_in_memory(checkpoint, folder, example):
    placement = profiles.load("offload", {"max_memory.cpu": "80kB"}).placement()
    for kind in ("llama", "gpt2"):
        layout = placement.plan(models.describe(str(checkpoint(kind))))
        assert layout.read_per_pass > 0, "a layer that is not on the disk"
    cli.main(arguments(checkpoint, example, "memory.zarr"))
    away = ["--profile", "offload", "-P", "max_memory.cpu=80kB"]
    cli.main(arguments(checkpoint, example, "offload.zarr", *away))
    inside, outside = (confreg.open(f"{name}.zarr").load() for name in ("memory", "offload"))
    assert outside.attrs["profile"] == "offload"
    for name, array in inside.data_vars.items():
        if array.dtype.kind == "f":
            np.testing.assert_allclose(
                outside[name], array, rtol=1e-4, atol=1e-5, err_msg=str(name)
            )


@pytest.mark.slow
@pytest.mark.parametrize("example", [*RUNS, "digits"])
def test_from_a_shell(checkpoint, folder, example):
    """As users run it, and bit by bit what it gives in this process."""
    if example == "digits":
        own = ["run", str(EXAMPLES / "digits.py"), "--out", "o.zarr", "--quiet"]
    else:
        own = arguments(checkpoint, example)
    done = subprocess.run(
        [sys.executable, "-m", "confreg.cli", *own], capture_output=True, text=True, cwd=folder
    )
    assert (done.returncode, done.stderr) == (0, "")
    shell = resuming.digest(folder / "o.zarr")
    Path("o.zarr").rename("shell.zarr")
    cli.main(own)
    assert resuming.digest(folder / "o.zarr") == shell
