"""How a patch moves to a new base: files in, files out. No Hub, no database, no clock."""

from porting.base.classify import Change, classify
from porting.base.layout import Layout, TensorInfo, read_layout
from porting.errors import HubError, PortllmError, Refused, UsageError
from porting.merge import Port, merge, merge_all
from porting.patch.adapter import Adapter, read_adapter
from porting.patch.updates import LoraPair
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
    "Port",
    "PortllmError",
    "Refused",
    "Source",
    "TensorInfo",
    "UsageError",
    "classify",
    "merge",
    "merge_all",
    "plan",
    "read_adapter",
    "read_layout",
    "repoint",
]
