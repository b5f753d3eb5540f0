"""Profiles: where a recipe runs. One TOML file each, typed and validated."""

from __future__ import annotations

import importlib
import os
import tomllib
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal
from urllib.parse import urlsplit

import platformdirs
from pydantic import BaseModel, ByteSize, ConfigDict, Field, TypeAdapter, ValidationError

from confreg.errors import ConfregError

if TYPE_CHECKING:
    from confreg.models.placement import Placement


class _Profile(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)

    name: str = ""
    description: str = ""
    dtype: str | None = None


class LocalProfile(_Profile):
    """In this process: a whole model on one device, or placed by accelerate."""

    kind: Literal["local"] = "local"
    device: str = "auto"
    device_map: str | dict[str, str | int] | None = None
    max_memory: dict[str, ByteSize] = Field(default_factory=dict)
    offload_folder: str | None = None
    quantization: str | None = None

    def placement(self) -> Placement:
        """Where the weights go, as `confreg.models.load` takes it."""
        from confreg.models.placement import Placement

        return Placement(
            device=self.device,
            device_map=self.device_map,
            max_memory={k: int(v) for k, v in self.max_memory.items()},
            offload_folder=self.offload_folder,
            quantization=self.quantization,
            dtype=self.dtype,
        )


class NdifProfile(_Profile):
    """On an NDIF server.

    ``deadline`` is the client's own, in seconds per job; ``trusted`` says that pickles from
    this host may be loaded.
    """

    kind: Literal["ndif"]
    host: str
    deadline: float = Field(default=1800, gt=0)
    retries: int = Field(default=4, ge=0)
    poll: float = Field(default=1.0, gt=0)
    jobs_in_flight: int = Field(default=2, ge=1)
    memory: ByteSize = ByteSize(4_000_000_000)
    max_result: ByteSize = ByteSize(200_000_000)
    blocking: bool = False
    sandbox: bool = False
    trusted: bool = False
    allow_http: bool = False

    @property
    def is_public(self) -> bool:
        """Whether it is the public service, which asks everyone for a key."""
        return (urlsplit(self.host).hostname or "").endswith("ndif.us")

    @property
    def is_sandboxed(self) -> bool:
        """Whether blocks run without the weights, as they always do on the public service."""
        return self.sandbox or self.is_public


Profile = LocalProfile | NdifProfile
_PROFILE: TypeAdapter[Profile] = TypeAdapter(
    Annotated[LocalProfile | NdifProfile, Field(discriminator="kind")]
)


def folders() -> list[Path]:
    """Where profiles are looked for: the user's own folder, then those that ship."""
    own = os.environ.get("CONFREG_PROFILES")
    user = Path(own) if own else platformdirs.user_config_path("confreg") / "profiles"
    return [user, *map(Path, importlib.import_module("confreg.remote_conf").__path__)]


def names() -> list[str]:
    """Names of all profiles that can be given to ``--profile``."""
    return sorted({f.stem for folder in folders() for f in folder.glob("*.toml")})


def load(profile: str | Path | Profile, overrides: Mapping[str, Any] | None = None) -> Profile:
    """A profile by name or path, with single values overridden.

    Parameters
    ----------
    profile : str, Path or Profile
        A name searched in `folders`, or the path of a TOML file.
    overrides : mapping, optional
        Dotted names to values: ``{"max_memory.cpu": "6GB"}``.

    Raises
    ------
    ConfregError
        No such profile, or a value that does not fit: what and where.
    """
    if isinstance(profile, LocalProfile | NdifProfile):
        name, values = profile.name, profile.model_dump(mode="json")
    else:
        path = _find(str(profile))
        name = path.stem
        try:
            values = tomllib.loads(path.read_text(encoding="utf-8"))
        except (OSError, ValueError, RecursionError) as error:
            raise ConfregError(f"Profile {str(path)!r} is not valid TOML: {error}.") from None
    for dotted, value in (overrides or {}).items():
        _override(values, dotted, value)
    values.setdefault("name", name)
    try:
        return _PROFILE.validate_python(values)
    except ValidationError as error:
        raise ConfregError(f"Profile {name!r}: {_first(error)}") from None


def _find(profile: str) -> Path:
    if profile.endswith(".toml") or "/" in profile:
        path = Path(profile).expanduser()
        if not path.is_file():
            raise ConfregError(f"There is no profile file {profile!r}.")
        return path
    for folder in folders():
        if (folder / f"{profile}.toml").is_file():
            return folder / f"{profile}.toml"
    raise ConfregError(
        f"There is no profile {profile!r}. There are: {', '.join(names())}; "
        f"your own go into {str(folders()[0])!r}, or give the path of a TOML file."
    )


def _override(values: dict[str, Any], dotted: str, value: Any) -> None:
    *parents, last = dotted.split(".")
    for key in parents:
        inner = values.setdefault(key, {})
        if not isinstance(inner, dict):
            raise ConfregError(f"-P {dotted}: {key!r} is a single value, it has no parts.")
        values = inner
    values[last] = value


def _first(error: ValidationError) -> str:
    first = error.errors()[0]
    # The first location is the tag of the union, which the user did not write.
    where = ".".join(str(part) for part in first["loc"][1:]) or "kind"
    known = sorted({*LocalProfile.model_fields, *NdifProfile.model_fields} - {"name"})
    if first["type"] == "extra_forbidden":
        return f"there is no setting {where!r}; there are {', '.join(known)}."
    return f"{where!r}: {first['msg']} (it was {first['input']!r})."
