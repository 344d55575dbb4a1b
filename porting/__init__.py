"""How a patch moves to a new base: files in, files out. No Hub, no database, no clock."""

from porting.adapter import Adapter, LoraPair, read_adapter
from porting.classify import Change, classify
from porting.errors import HubError, PortllmError, Refused, UsageError
from porting.layout import Layout, TensorInfo, read_layout
from porting.merge import merge
from porting.plan import Plan, plan
from porting.repoint import repoint
from porting.source import FileEntry, Folder, Source

__all__ = [
    "Adapter",
    "Change",
    "FileEntry",
    "Folder",
    "HubError",
    "Layout",
    "LoraPair",
    "Plan",
    "PortllmError",
    "Refused",
    "Source",
    "TensorInfo",
    "UsageError",
    "classify",
    "merge",
    "plan",
    "read_adapter",
    "read_layout",
    "repoint",
]
