"""What the network looks like: architecture table, loading, readout."""

from confreg.models.architectures import Architecture
from confreg.models.loading import describe, load
from confreg.models.lookup import table
from confreg.models.model import Description, Model

__all__ = ["Architecture", "Description", "Model", "describe", "load", "table"]
