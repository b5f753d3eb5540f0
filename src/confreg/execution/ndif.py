"""Client of NDIF servers (being written)."""

from __future__ import annotations

import json


def model_key(repository: str, revision: str | None = None) -> str:
    """What NDIF calls a model that generates text."""
    identity = {"repo_id": repository, "revision": revision, "task": "text-generation"}
    return f"nnsight.modeling.transformers.TransformersModel:{json.dumps(identity)}"
