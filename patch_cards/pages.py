"""The registry as HTML: pure, for the server and for a folder of files alike.

Everything that is shown may come from a stranger: it is escaped, and what is Markdown is cleaned.
"""

from collections.abc import Callable
from dataclasses import dataclass
from datetime import datetime
from functools import cached_property
from typing import Any, get_args
from urllib.parse import quote, urlencode

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup

from judging.arms import ARMS, figure
from judging.policy import Action
from patch_cards.chart import draw
from registry.models import PortState
from registry.views import (
    BaseRow,
    BaseView,
    Page,
    PatchRow,
    PatchView,
    PortRow,
    PortView,
    ReleaseRow,
    StatusView,
)

CLASSES = {
    "A": "additive: it can be moved to any base of the same shapes",
    "B": "starts from the base's own weights: it is converted, then moved",
    "C": "not additive: what it means on a new base is the subscriber's choice",
    "D": "can't be merged: it is copied, pointed at the new base",
}
# A state is told by its word and its sign; the colour only repeats it.
SIGNS = {
    "good": ("\u2713", ("published", "publish", "up to date")),
    "ask": ("?", ("asked", "ask", "judged", "declined")),
    "bad": ("\u2715", ("rejected", "reject", "refused", "failed", "withdrawn", "blocked")),
    "busy": ("\u2026", ("running", "queued", "waiting", "classifying")),
}
STYLE = "style.css"


@dataclass(frozen=True)
class Site:
    """Where the pages are, and what answers there.

    Attributes:
        link: the address of a page by its path: "" (home), "patch/OWNER/NAME", "base/OWNER/NAME",
            "port/KEY", "style.css", and, where it is `live`, "ports", "bases", "status" and "api",
            elsewhere the lists "patches", "bases" and "tasks", and "records".
        hub: the address of the Hub.
        live: whether a server answers: it searches, filters and turns pages.
    """

    link: Callable[[str], str]
    hub: str
    live: bool = True

    def home(self, patches: Page[PatchRow], ports: list[PortRow], releases: list[ReleaseRow],
             bases: list[BaseRow], asked: dict[str, str]) -> str:  # fmt: skip
        """`asked` is what was searched for, as far as given: q, base, task, state and verdict."""
        return self._page("home.html", patches=patches, ports=ports, releases=releases,
                          bases=bases, asked=asked, states=list(PortState),
                          verdicts=get_args(Action))  # fmt: skip

    def patch(self, view: PatchView) -> str:
        charts = {each.id: draw(each.moments) for each in view.subscriptions.items}
        return self._page("patch.html", view=view, charts=charts)

    def base(self, view: BaseView) -> str:
        return self._page("base.html", view=view)

    def bases(self, rows: Page[BaseRow]) -> str:
        return self._page("bases.html", rows=rows)

    def port(self, view: PortView) -> str:
        return self._page("port.html", view=view)

    def ports(self, rows: Page[PortRow], asked: dict[str, str]) -> str:
        return self._page("ports.html", rows=rows, asked=asked)

    def status(self, view: StatusView) -> str:
        return self._page("status.html", view=view)

    def api(self, operations: list[tuple[str, str, str]]) -> str:
        """`operations` are method, path and summary of each."""
        return self._page("api.html", operations=operations)

    def index(
        self, title: str, groups: list[tuple[str, list[PatchRow]]], others: dict[str, str]
    ) -> str:
        """A page of a list of patches; `others` are all of its pages, by path, and from where."""
        return self._page("index.html", title=title, groups=groups, others=others)

    def error(self, title: str, detail: str) -> str:
        return self._page("error.html", title=title, detail=detail)

    def _page(self, template: str, **data: Any) -> str:
        return self._templates.get_template(template).render(**data)

    @cached_property
    def _templates(self) -> Environment:
        made = Environment(
            loader=PackageLoader("patch_cards", "templates/web"),
            undefined=StrictUndefined,
            autoescape=True,
            trim_blocks=True,
            lstrip_blocks=True,
        )
        made.filters |= {"moment": _moment, "sign": _sign, "image": _image, "result": _result}
        made.globals |= {
            "live": self.live,
            "hub": self._hub,
            "to": self._to,
            "is_web": _is_web,
            "arms": ARMS,
            "classes": CLASSES,
            "style": STYLE,
        }
        return made

    def _to(self, *parts: str, **query: Any) -> str:
        """The address of a page."""
        asked = urlencode({name: value for name, value in query.items() if value})
        return self.link(quote("/".join(parts))) + (f"?{asked}" if asked else "")

    def _hub(self, repo: str, sha: str | None = None) -> str:
        return f"{self.hub}/{quote(repo)}" + (f"/tree/{quote(sha, safe='')}" if sha else "")


def style() -> str:
    loader = PackageLoader("patch_cards", "templates/web")
    return loader.get_source(Environment(autoescape=True), STYLE)[0]


def _moment(at: datetime | None) -> Markup:
    if at is None:
        return Markup("\u2013")
    return Markup('<time datetime="{}">{}</time>').format(
        at.isoformat(timespec="seconds"), f"{at:%Y-%m-%d %H:%M} UTC"
    )


def _sign(state: str) -> Markup:
    kind, sign = next(
        ((kind, sign) for kind, (sign, states) in SIGNS.items() if state in states), ("", "\u2013")
    )
    return Markup('<span class="state {}"><span aria-hidden="true">{}</span> {}</span>').format(
        kind, sign, state
    )


def _image(svg: str) -> str:
    """As the address of an image: a page that allows no styles of its own can show it."""
    return "data:image/svg+xml," + quote(svg)


def _result(found: tuple[float, float, float], metric: str) -> str:
    mean, low, high = (figure(value, metric) for value in found)
    return f"{mean} ({low} to {high})"


def _is_web(url: str | None) -> bool:
    """Whether it may be a link: no other scheme is."""
    return url is not None and url.startswith(("https://", "http://"))
