"""Shows the registry on the Hub, or writes what would be shown to a folder."""

import json
import logging
import tempfile
from pathlib import Path
from typing import NamedTuple

from bot.context import Context
from bot.hub.showcase import README, Shelf, arrange, private_models, push, standing
from bot.showcase import dataset, space
from bot.showcase.cards import dataset_card, space_card
from bot.showcase.collections import shelves
from porting.errors import PortllmError

log = logging.getLogger("portllm")

TITLE = "The registry as it stands"
DATASET, SPACE = "portllm-registry", "portllm"  # repos of the namespace


class Shown(NamedTuple):
    """`changes` counts the files, or items of a Collection, that were other than before."""

    what: str
    name: str
    changes: int
    url: str


def show(context: Context, namespace: str) -> list[Shown]:
    """Bring the data set, the Space and the Collections of `namespace` up to date.

    Raises HubError, or Refused where the token may not; what was done by then stays, and the next
    time goes on from there.
    """
    hub, done = context.hub, []
    with tempfile.TemporaryDirectory(prefix="portllm-showcase-") as folder:
        before = standing(hub, f"{namespace}/{DATASET}", "dataset")
        page = standing(hub, f"{namespace}/{SPACE}", "space")
        written = write(context, Path(folder), namespace, before.card, page.card)
        for what, repo, ours in (("dataset", before, None), ("space", page, space.FOLDER)):
            changes = push(hub, repo, Path(folder, what), TITLE, ours)
            done.append(Shown(what, repo.repo, changes, f"{hub.endpoint}/{what}s/{repo.repo}"))
    for title, url, changes in arrange(hub, namespace, written):
        done.append(Shown("collection", title, changes, url))
    return done


def write(
    context: Context, folder: Path, namespace: str, dataset_says: str = "", space_says: str = ""
) -> list[Shelf]:
    """Write `dataset/`, `space/` and `collections.json` into `folder`.

    Args:
        dataset_says: the card that the data set has now, whose own words are kept.
        space_says: that of the Space.
    """
    hidden = private_models(context.hub)
    tables, pages, name = folder / "dataset", folder / "space", f"{namespace}/{DATASET}"
    tables.mkdir(parents=True)
    pages.mkdir()
    with context.database.session() as session:
        counts = dataset.write(session, tables, hidden)
        wanted = list(shelves(session, hidden))
        found = space.read(session, hidden)
    space.write(found, pages, context.hub.endpoint, name)
    for card, text in (
        (tables / README, dataset_card(dataset_says, name, counts)),
        (pages / README, space_card(space_says, name)),
    ):
        card.write_text(text, encoding="utf-8", errors="surrogateescape")
    shown = {
        each.title: {item.repo: item.note for item in each.items} for each in wanted if each.items
    }
    text = json.dumps(shown, indent=2, ensure_ascii=False) + "\n"
    (folder / "collections.json").write_text(text, encoding="utf-8")
    return wanted


def keep_current(context: Context) -> None:
    """`show` what is to be shown, if anything; what fails is logged, and done the next time."""
    if (namespace := context.settings.showcase) is None or context.is_paused:
        return
    try:
        done = show(context, namespace)
    except PortllmError as error:
        log.warning("The showcase in %s could not be brought up to date: %s", namespace, error)
        return
    changes = sum(each.changes for each in done)
    log.info("The showcase in %s is up to date. Changes: %d.", namespace, changes)
