"""Who asks and for what: the NDIF key, and the key by which a server knows a model."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING
from urllib.parse import urlsplit

from confreg.errors import ConfregError
from confreg.places.ndif.http import is_loopback

if TYPE_CHECKING:
    from confreg.models import Model
    from confreg.places.profiles import NdifProfile


def model_key(repository: str, revision: str | None = None) -> str:
    """What NDIF calls a model that generates text.

    Parameters
    ----------
    repository : str
        Hub id, or a folder that the server sees under the same path.
    revision : str, optional
    """
    identity = {"repo_id": repository, "revision": revision, "task": "text-generation"}
    return f"nnsight.modeling.transformers.TransformersModel:{json.dumps(identity)}"


def identify(model: Model, profile: NdifProfile) -> str:
    """Key by which a server knows a model.

    Raises
    ------
    ConfregError
        The model is a folder of this machine, and the server another machine.
    """
    from nnsight.modeling import huggingface

    name = model.nn.repo_id
    if Path(name).is_dir():
        if not is_loopback(urlsplit(profile.host).hostname or ""):
            raise ConfregError(
                f"{model.name} is a folder of this machine, which {profile.host} cannot read. "
                "Name a model on the Hugging Face Hub."
            )
        huggingface._ID_CACHE[name] = name
    try:
        return model.nn.to_model_key()
    except OSError:  # the Hub cannot be reached: the id is taken as it was written
        return model_key(name, model.nn.revision)


def api_key() -> str | None:
    """The NDIF key: NDIF_API_KEY, or what ``nnsight login`` stored. Never from a profile."""
    from nnsight.schema.config import CONFIG

    return CONFIG.API.APIKEY or None
