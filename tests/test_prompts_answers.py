"""How likely answers are, as a whole and against others, and whether predictions are right.

Against plain transformers in float64, on each prompt alone, with its target and with its contrast.
"""

import numpy as np
import oracle
import pytest
import torch
import zoo

import confreg
from confreg.errors import ConfregError

LENGTHS = (3, 19, 8, 5, 12)
TARGETS = (" w7", " w11 w12 w13", " w5 w6", " w8", " w9 w10")
CONTRASTS = (" w20 w21 w22", " w23", None, " w8 w24", " w9 w25")
NEURONS, VALUE = (3, 9), 12.0
MEASURES = ("confidence", "correct", "target_loss", "contrast", "contrast_whole")
EFFECTS = [f"{name}_{pathway}" for name in MEASURES for pathway in ("total", "direct")]


def prompts():
    return [" ".join(f"w{(5 * i + 7 * j) % 90 + 3}" for j in range(n))
            for i, n in enumerate(LENGTHS)]  # fmt: skip


def likeliest(judge, tokenizer, prompt):
    """The token that a model predicts after a prompt, as text."""
    logits, _ = judge.forward(torch.tensor([ids_of(tokenizer, prompt)]))
    return tokenizer.decode([int(logits[0, -1, : zoo.VOCAB].argmax())])


def ids_of(tokenizer, text):
    return [0, *tokenizer(text, add_special_tokens=False)["input_ids"]]


def questions(judge, tokenizer):
    """Of some the model's own prediction is among those that are accepted, but not the first."""
    rows = []
    for i, (prompt, target, contrast) in enumerate(zip(prompts(), TARGETS, CONTRASTS)):
        own = " " + likeliest(judge, tokenizer, prompt).strip()
        accepted = [target, own + " w1", target] if i % 2 else target
        rows.append({"prompt": prompt, "target": accepted, "category": "ab"[i % 2]})
        if contrast:
            rows[-1]["contrast"] = contrast
    return [*rows, {"prompt": "w3 w4 w5 w6", "category": "c"}]


def read(logits, row, following, accepted):
    """The measures of one prompt: log p (length, V) with the target behind it, and the contrast."""
    with_target, with_contrast = logits
    (target, contrast), last = following, row
    p = with_target[last].exp()
    found = {"confidence": p.max().item(), "correct": float(p.argmax().item() in accepted)}

    def said(log_p, ids):
        return sum(log_p[last + k, token].item() for k, token in enumerate(ids))

    found["target_loss"] = -said(with_target, target)
    found["contrast"] = found["contrast_whole"] = float("nan")
    if contrast:
        found["contrast"] = said(with_target, target[:1]) - said(with_target, contrast[:1])
        found["contrast_whole"] = said(with_target, target) - said(with_contrast, contrast)
    return found


def expected(judge, tokenizer, rows, layer, values):
    """(documents, neurons, effects), and of the unedited model (documents, measures)."""
    path = judge.down.format(layer)
    effects, before = [], []
    for question in rows:
        accepted = question["target"]
        accepted = [accepted] if isinstance(accepted, str) else accepted
        prompt = ids_of(tokenizer, question["prompt"])
        ids = [ids_of(tokenizer, question["prompt"] + more)[len(prompt) :] for more in accepted]
        more = question.get("contrast", "")
        contrast = ids_of(tokenizer, question["prompt"] + more)[len(prompt) :]
        last = len(prompt) - 1
        both = [torch.tensor([[*prompt, *each]]) for each in (ids[0], contrast)]
        following, right = (ids[0], contrast), {each[0] for each in ids}

        def measures(edits=None, pinned=(None, None), both=both, following=following,
                     right=right, last=last):  # fmt: skip
            logits = [judge.forward(x, edits, pinned=p)[0][0] for x, p in zip(both, pinned)]
            return read([x.log_softmax(-1) for x in logits], last, following, right)

        clean, scales = measures(), [judge.scale(x) for x in both]
        before.append([clean[name] for name in MEASURES])
        row = []
        for neuron, value in zip(NEURONS, values):
            edits = {path: oracle.setting({neuron: value})}
            after = {"total": measures(edits), "direct": measures(edits, scales)}
            row.append([after[pathway][name] - clean[name]
                        for name in MEASURES for pathway in ("total", "direct")])  # fmt: skip
        effects.append(row)
    return np.array(effects), np.array(before)


def run(checkpoint, rows, out, architecture, layer, recipe="entropy_neurons", **options):
    return confreg.run(
        recipe, model=str(checkpoint(architecture)), text=rows, out=out, progress=False,
        neurons=",".join(f"{layer}.{i}" for i in NEURONS), columns="category",
        **{"ablation": VALUE, "effects": EFFECTS, **options},
    ).load()  # fmt: skip


CASES = [
    ("gpt2", 2, "exact"),
    ("llama", 2, "series"),
    ("llama", 1, "forward"),
    ("gemma2", 2, "exact"),
    pytest.param("gpt2", 2, "series", marks=pytest.mark.slow),
    pytest.param("gpt2", 1, "forward", marks=pytest.mark.slow),
    pytest.param("gemma2", 1, "forward", marks=pytest.mark.slow),
    pytest.param("llama", 2, "exact", marks=pytest.mark.slow),
]


@pytest.mark.parametrize(("architecture", "layer", "engine"), CASES)
def test_every_measure_at_every_kept_position(checkpoint, tmp_path, architecture, layer, engine):
    network, tokenizer = zoo.tiny(architecture)
    judge = oracle.Oracle(network)
    rows = questions(judge, tokenizer)
    ds = run(checkpoint, rows, tmp_path / "o.zarr", architecture, layer, engine=engine)
    truth, before = expected(judge, tokenizer, rows[:-1], layer, (VALUE, VALUE))
    keep = ds["keep"].values
    assert keep.sum() == len(rows)
    assert ds["document"].values[keep].tolist() == list(range(len(rows)))
    assert np.isfinite(truth).sum() == truth.size - 8  # one document has no contrast
    largest = np.nanmax(np.abs(truth), (0, 1))
    assert np.delete(largest, (2, 3)).min() > 1e-3, "an effect that a test can miss"
    assert {0.0, 1.0} == set(before[:, 1]), "some are right and some are not"
    found = ds["effects"].sel(effect=EFFECTS).values[:, keep][:, :-1].transpose(1, 0, 2)
    np.testing.assert_allclose(found, truth, atol=1e-4)
    for column, name in enumerate(MEASURES):
        here = ds[name].values
        np.testing.assert_allclose(here[keep][:-1], before[:, column], atol=1e-4, err_msg=name)
        if name not in ("confidence", "correct"):
            assert np.isnan(here[~keep]).all(), "a sum stands where its first token is predicted"
            assert np.isnan(here[keep][-1]), "a prompt without a target"
            of_it = ds["effects"].sel(effect=f"{name}_total").values
            assert np.isnan(of_it[:, ~keep]).all()
    means = np.nanmean(truth, axis=0)
    np.testing.assert_allclose(
        ds["effect_mean"].sel(effect=EFFECTS[2:]), means[:, 2:], atol=1e-4
    )  # fmt: skip
    assert "14 kept pairs" not in ds.attrs.get("effects_undefined", "")


@pytest.mark.parametrize(("layer", "engine"), [(2, "series"), (1, "forward")])
def test_sums_along_answers_are_the_same_where_tokens_are_left_out(
    checkpoint, tmp_path, layer, engine
):
    """Reduced over tokens, and of kept tokens alone; and with activations replaced by means."""
    network, tokenizer = zoo.tiny("llama")
    judge = oracle.Oracle(network)
    rows = questions(judge, tokenizer)
    options = {"engine": engine, "ablation": "mean"}
    cube = run(checkpoint, rows, tmp_path / "c.zarr", "llama", layer, **options)
    truth, _ = expected(judge, tokenizer, rows[:-1], layer, cube["ablation_value"].values)
    keep = cube["keep"].values
    found = cube["effects"].sel(effect=EFFECTS).values[:, keep][:, :-1].transpose(1, 0, 2)
    np.testing.assert_allclose(found, truth, atol=1e-4)
    reduced = run(
        checkpoint, rows, tmp_path / "r.zarr", "llama", layer, reduce="token", **options
    )  # fmt: skip
    for name in ("effect_mean", "effect_abs_mean"):
        np.testing.assert_allclose(reduced[name], cube[name], atol=1e-6, rtol=1e-4)
    wanted = np.nanmean(np.abs(truth), axis=0)
    mine = reduced["effect_abs_mean"].sel(effect=EFFECTS).values
    np.testing.assert_allclose(mine[:, 2:], wanted[:, 2:], atol=1e-4)
    kept = run(
        checkpoint, rows, tmp_path / "k.zarr", "llama", layer, recipe="calibration",
        **options,
    )  # fmt: skip
    mine = kept["effects"].sel(effect=EFFECTS).values
    np.testing.assert_allclose(
        mine[:, keep], cube["effects"].sel(effect=EFFECTS).values[:, keep], atol=1e-6
    )
    assert np.isnan(mine[:, ~keep]).all()


def test_sets_of_neurons_along_answers(checkpoint, tmp_path):
    network, tokenizer = zoo.tiny("gemma2")
    judge = oracle.Oracle(network)
    rows = questions(judge, tokenizer)
    found = {}
    for engine in ("exact", "forward"):
        ds = confreg.run(
            "group_ablation", model=str(checkpoint("gemma2")), text=rows, engine=engine,
            neurons="2.3,2.9;2.5,2.6", random_sets=1, deviations="3", effects=EFFECTS,
            out=tmp_path / f"{engine}.zarr", progress=False,
        ).load()  # fmt: skip
        found[engine] = ds["effects"].values[:, ds["keep"].values]
    assert np.nanmax(np.abs(found["exact"][..., 4:])) > 1e-3
    np.testing.assert_allclose(found["exact"], found["forward"], atol=1e-4)


@pytest.mark.parametrize(
    ("effects", "rows", "words"),
    [
        (["target_loss_total"], ["w1 w2 w3 w4 w5 w6 w7 w8"], "prompts with a target, and this"),
        (["contrast_total"], [{"prompt": "w1 w2", "target": " w3"}], "a target and a contrast"),
        (["contrast_whole_direct"], [{"prompt": "w1 w2", "target": " w3"}], "a contrast, and"),
    ],
)
def test_a_text_without_answers_is_a_sentence(checkpoint, tmp_path, effects, rows, words):
    with pytest.raises(ConfregError, match=words):
        confreg.run(
            "entropy_neurons", model=str(checkpoint("llama")), text=rows, effects=effects,
            neurons="2.3", sequence_length=16, out=tmp_path / "o.zarr", progress=False,
        )  # fmt: skip
    assert not (tmp_path / "o.zarr").exists()


def test_all_effects_are_those_that_the_text_has(checkpoint, tmp_path):
    ds = confreg.run(
        "group_ablation", model=str(checkpoint("llama")), effects="all", neurons="2.3",
        random_sets=1, deviations="0", text=[{"prompt": "w1 w2 w9", "target": " w3 w4"}],
        out=tmp_path / "o.zarr", progress=False,
    )  # fmt: skip
    names = ds["effect"].values.tolist()
    assert "target_loss_direct" in names
    assert "contrast_total" not in names
