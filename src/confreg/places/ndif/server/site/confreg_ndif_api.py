"""NDIF's API, importable by uvicorn as ``confreg_ndif_api:app``."""
# pyright: reportMissingImports=false, reportAttributeAccessIssue=false

# nnsight mounts `.save` on every object, after which anyio cannot build the classes that it
# imports on the first upload over 1 MB. They are built here first.
import anyio._backends._asyncio
import anyio.abc._sockets  # noqa: F401
from ndif.services.api.app import app  # noqa: F401
