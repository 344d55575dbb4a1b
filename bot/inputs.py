"""What a port is made of, and the sandbox's order for it: no more is fetched than it reads."""

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

from bot.files import base_files, files_with, patch_files
from bot.hub import HubRepo
from bot.sandbox import Report
from porting import Adapter, FileEntry, Folder, Plan, plan, read_adapter
from porting.counterparts import counterparts
from porting.plan import Policy

Place = Folder | HubRepo
Wanted = Literal["merged", "adapter", "both"]


@dataclass(frozen=True)
class Inputs:
    """The new base, the patch, the base it was trained on where known, and what is wanted."""

    new: Place
    patch: Place
    old: Place | None
    form: Wanted
    policy: Policy | None

    @cached_property
    def plan(self) -> Plan:
        """The dry run, from headers alone; of a merged model where both forms are wanted."""
        return plan(
            self.new,
            self.patch,
            as_="adapter" if self.form == "adapter" else "merged",
            old_base=self.old,
            policy=self.policy,
        )

    def order(self, out: Path, report: Report, hashed: bool = True) -> dict[str, Any]:
        """The order that makes this port in `out`, once everything that it reads is here."""
        order: dict[str, Any] = {
            "do": "port",
            "form": self.form,
            "policy": self.plan.policy,
            "patch": _local(self.patch, patch_files(self.patch), report),
            "out": str(out),
            "hashed": hashed,
        }
        if isinstance(self.new, HubRepo):
            order |= {"base_repo": self.new.repo, "base_sha": self.new.sha}
        compared = needs_old_base(read_adapter(self.patch), self.policy)
        if self.form != "adapter":
            order["base"] = _local(self.new, base_files(self.new), report)
        elif compared or self.plan.rewrites:
            touched = (touch.tensor.file for touch in self.plan.touched)
            order["base"] = _local(self.new, files_with(self.new, touched), report)
        if self.old is not None and compared:
            before = (touch.old.file for touch in self.plan.touched if touch.old)
            order["old_base"] = _local(self.old, files_with(self.old, before), report)
        return order

    def forecast_order(self, report: Report) -> dict[str, Any]:
        """The order that forecasts this port, once the files with what it touches are here."""
        touched = self.plan.touched
        order: dict[str, Any] = {
            "do": "forecast",
            "policy": self.plan.policy,
            "patch": _local(self.patch, patch_files(self.patch), report),
        }
        files = (touch.tensor.file for touch in touched)
        order["base"] = _local(self.new, files_with(self.new, files), report)
        if self.old is not None:
            places = (*counterparts(touched, self.old), *(touch.old for touch in touched))
            before = (place.file for place in places if place)
            order["old_base"] = _local(self.old, files_with(self.old, before), report)
        return order


def needs_old_base(found: Adapter, policy: str | None) -> bool:
    """Whether only the base that the patch was trained on gives it a meaning."""
    return found.old_base_field is not None or (found.portability == "C" and policy == "freeze")


def _local(place: Place, files: Mapping[str, FileEntry], report: Report) -> str:
    if isinstance(place, Folder):
        return str(place.path.resolve())
    report(f"fetching {place.name}, files", 0, len(files))
    return str(place.fetch(files))


def base_folder(base: Place) -> Path:
    """The folder in which all that is loaded of a base lies."""
    return base.path.resolve() if isinstance(base, Folder) else base.fetch(base_files(base))


def patch_folder(patch: Place) -> Path:
    """The folder in which all that is read of a patch lies."""
    return patch.path.resolve() if isinstance(patch, Folder) else patch.fetch(patch_files(patch))
