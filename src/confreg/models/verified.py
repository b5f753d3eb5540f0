"""What was verified on this machine: one file a model, in the user's cache."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from confreg.models.embedded import cache_folder

if TYPE_CHECKING:
    from confreg.models.agreement import Compared
    from confreg.models.model import Description


def folder() -> Path:
    """Where the files are."""
    return cache_folder() / "verified"


def keep(
    model: Description,
    found: Sequence[Compared],
    versions: Mapping[str, str],
    where: Mapping[str, str],
) -> dict[str, Any]:
    """Write down what was compared of a model; returns the record.

    Parameters
    ----------
    model : Description
    found : sequence of Compared
    versions : mapping
        Of the packages that computed it.
    where : mapping
        ``adapter`` that was attached, "" for none, and ``host``, "local" for this machine. The
        same model elsewhere is another record.
    """
    record = {
        "model": model.name,
        "revision": model.revision,
        **where,
        "architecture": model.architecture,
        "row": model.row.origin or "tested",
        "dtype": model.dtype,
        "ok": all(c.ok for c in found),
        "compared": [
            {"part": c.name, "difference": c.difference, "largest": c.largest, "ok": c.ok}
            for c in found
            if c.is_compared
        ],
        "versions": dict(versions),
    }
    name = hashlib.sha256(f"{title(record)}@{model.revision}".encode()).hexdigest()[:16]
    file = folder() / f"{name}.json"
    file.parent.mkdir(parents=True, exist_ok=True)
    partial = file.with_suffix(".partial")
    partial.write_text(json.dumps(record, indent=1))
    partial.replace(file)
    return record


def title(record: Mapping[str, Any]) -> str:
    """What a record is of: the model, and where there are such its adapter and its host."""
    host = record.get("host", "local")
    parts = [
        record["model"],
        f" + {record['adapter']}" if record.get("adapter") else "",
        f" at {host}" if host != "local" else "",
    ]
    return "".join(parts)


def every() -> list[dict[str, Any]]:
    """What was written down, by the model's name; files that cannot be read are left out."""
    found = []
    for file in folder().glob("*.json"):
        try:
            record = json.loads(file.read_text())
            found.append(record | {"largest": _largest(record)})
        except (OSError, ValueError, KeyError, TypeError):
            continue
    return sorted(found, key=lambda record: str(record["model"]))


def _largest(record: dict[str, Any]) -> float:
    """The largest difference between engines, in nats."""
    return max(
        (c["difference"] for c in record["compared"] if c["part"] in ("exact", "series")),
        default=float("nan"),
    )
