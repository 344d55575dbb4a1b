"""What a port is made of, and the sandbox's order for it: no more is fetched than it reads."""

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

from bot.hub import HubRepo
from bot.making.files import base_files, files_with, patch_files
from bot.making.sandbox import Report, silent
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
            "patch": str(patch_folder(self.patch, report)),
            "out": str(out),
            "hashed": hashed,
        }
        if isinstance(self.new, HubRepo):
            order |= {"base_repo": self.new.repo, "base_sha": self.new.sha}
        compared = needs_old_base(read_adapter(self.patch), self.policy)
        if self.form != "adapter":
            order["base"] = str(base_folder(self.new, report))
        elif compared or self.plan.rewrites:
            touched = (touch.tensor.file for touch in self.plan.touched)
            order["base"] = str(_shards(self.new, touched, report))
        if self.old is not None and compared:
            before = (touch.old.file for touch in self.plan.touched if touch.old)
            order["old_base"] = str(_shards(self.old, before, report))
        return order

    def forecast_order(self, report: Report) -> dict[str, Any]:
        """The order that forecasts this port, once the files with what it touches are here."""
        touched = self.plan.touched
        order: dict[str, Any] = {
            "do": "forecast",
            "policy": self.plan.policy,
            "patch": str(patch_folder(self.patch, report)),
        }
        files = (touch.tensor.file for touch in touched)
        order["base"] = str(_shards(self.new, files, report))
        if self.old is not None:
            places = (*counterparts(touched, self.old), *(touch.old for touch in touched))
            before = (place.file for place in places if place)
            order["old_base"] = str(_shards(self.old, before, report))
        return order


def needs_old_base(found: Adapter, policy: str | None) -> bool:
    """Whether only the base that the patch was trained on gives it a meaning."""
    return found.old_base_field is not None or (found.portability == "C" and policy == "freeze")


def base_folder(base: Place, report: Report = silent) -> Path:
    """The folder in which all that is loaded of a base lies."""
    return _local(base, base_files, report)


def patch_folder(patch: Place, report: Report = silent) -> Path:
    """The folder in which all that is read of a patch lies."""
    return _local(patch, patch_files, report)


def _shards(base: Place, shards: Iterable[str], report: Report) -> Path:
    """The folder in which these files of a base lie."""
    return _local(base, lambda place: files_with(place, shards), report)


def _local(place: Place, files: Callable[[Place], Mapping[str, FileEntry]], report: Report) -> Path:
    if isinstance(place, Folder):
        return place.path.resolve()
    wanted = files(place)
    report(f"fetching {place.name}, files", 0, len(wanted))
    return place.fetch(wanted)
