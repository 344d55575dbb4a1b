"""What a patch's own repo says of its ports: the generated part of its card, and their chart."""

from sqlalchemy import select

from bot.context import Context
from bot.hub import Hub, HubRepo
from bot.publishing.describe import CARD
from patch_cards import chart, patch_card
from registry.history import history
from registry.models import Patch, Subscription
from registry.records import find_patch


def describe_patch(context: Context, repo: str, target: HubRepo) -> dict[str, bytes]:
    """README.md of the recorded patch in `repo`, and the chart where anything was measured.

    Args:
        target: what stands in `repo`, whose card's own words are kept.

    Raises:
        UsageError: it is not recorded.
        Refused: its card can't be kept.
    """
    with context.database.session() as session:
        patch = find_patch(session, repo)
        mine = select(Subscription.id).join(Patch).where(Patch.repo == repo)
        found = [history(session, id) for id in session.scalars(mine.order_by(Subscription.id))]
    targets = {each.to for moments in found for each in moments}
    public = {to for to in targets if _is_public(context.hub, to)}
    shown = [[each for each in moments if each.to in public] for moments in found]
    longest = max(shown, key=len, default=[])
    drawn = chart.draw(longest[-chart.MOST :])
    facts = patch_card.PatchFacts(
        repo=repo,
        kind=patch.kind,
        portability=patch.portability,
        base_repo=patch.base_repo,
        base_sha=patch.base_sha,
        task=patch.task,
        ports=sorted(
            (each for moments in shown for each in moments),
            key=lambda each: (each.seen_at, each.to),
            reverse=True,
        ),
        has_chart=drawn is not None,
    )
    existing = ""
    if CARD in target.files():
        existing = target.read(CARD, 0, target.files()[CARD].size).decode(errors="surrogateescape")
    readme = patch_card.render(facts, existing).encode(errors="surrogateescape")
    return {CARD: readme, **({chart.NAME: drawn.encode()} if drawn else {})}


def _is_public(hub: Hub, repo: str) -> bool:
    """Whether everybody may know of `repo`; where no port came yet, there is none."""
    return hub.exists(repo) and not hub.facts(repo).private
