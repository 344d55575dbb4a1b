"""A port's own words: verdict and card say what the evidence in the lock says, or are named."""

import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import pytest
from hypothesis import HealthCheck, assume, given, settings
from hypothesis import strategies as st

from bot.hub import HubRepo
from bot.trust import takeback, verify
from bot.trust.verify import HOME, check_claims
from judging.evidence import Evidence, Measured
from judging.policy import VerdictPolicy
from judging.verdict import judge
from localhub.server import Server
from patch_cards import lock
from patch_cards.card import BEGIN, END, notices
from porting.errors import Refused
from tests.judged import PATCH, Judged

COUNT = 200
RIGHT = {"before": 0, "old": 180, "new": 60, "port": 178}
EVIDENCE = Evidence(
    own=Measured(
        task="sides",
        digest="0" * 64,
        total=COUNT,
        metric="accuracy",
        items=list(range(1, COUNT + 1)),
        results={arm: [1] * right + [0] * (COUNT - right) for arm, right in RIGHT.items()},
    )
)
OWN = "\nAn owner's words: 97 % on my own items.\n"
FEW = settings(max_examples=30, deadline=None, suppress_health_check=list(HealthCheck))


@dataclass
class Published:
    """A port with evidence, whose card its owner has written to, and the one before it."""

    judged: Judged
    target: str
    first: str
    second: str

    @property
    def port(self) -> HubRepo:
        return self.judged.publisher.state(self.target)

    @property
    def card(self) -> str:
        return self.port.read("README.md", 0, self.port.files()["README.md"].size).decode()

    def claims(self, card: str | None = None, **changes: Any) -> list[str]:
        """Against what is published, with another card or lock."""
        locked = lock.read(self.port)
        data = locked.model_dump() | changes
        return check_claims(self.port, lock.Lock(**data), self.card if card is None else card)


@pytest.fixture(scope="module")
def published(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Published]:
    folder = tmp_path_factory.mktemp("judged")
    with Server(folder / "hub") as server:
        judged = Judged(server, folder)
        licence = {"README.md": b"---\nlicense: mit\nlanguage: en\n---\n"}
        judged.patch_sha = judged.push(PATCH, licence)
        into = judged.subscribe(target := judged.target())
        keys = []
        for _ in range(2):
            keys.append(key := judged.judge(into, "publish"))
            verdict = judge(EVIDENCE, VerdictPolicy())
            assert verdict.action == "publish"
            judged.change(key, evidence=EVIDENCE.model_dump(), verdict=verdict.model_dump())
            judged.publish(key)
        found = Published(judged, target, *keys)
        before, end, after = found.card.partition(END)
        head, begin, generated = before.partition(BEGIN)
        head = head.replace("tags:\n", "tags:\n- mine\n").replace("---\n", "---\nmine: 1\n", 1)
        words = f"{head}{OWN}{begin}{generated}{end}{after}{OWN}"
        judged.push(target, {"README.md": words.encode()})
        yield found
        judged.context.database.close()


def test_a_card_with_its_owners_words_is_what_the_evidence_says(published: Published) -> None:
    assert OWN in published.card and "89.0" in published.card
    assert not re.search(r"\b178\b", published.card)
    assert published.claims() == []


@pytest.fixture
def known_facts(published: Published, monkeypatch: pytest.MonkeyPatch) -> Published:
    """The Hub is asked for what the card shows just once."""
    kept = []
    real = verify.card_facts

    def once(*args: Any, **named: Any) -> Any:
        if not kept:
            kept.append(real(*args, **named))
        return kept[0]

    monkeypatch.setattr(verify, "card_facts", once)
    port = published.port
    monkeypatch.setattr(Published, "port", port)
    monkeypatch.setattr(Published, "card", published.card)
    return published


@FEW
@given(data=st.data())
def test_whatever_is_changed_between_the_markers_is_found(
    known_facts: Published, data: st.DataObject
) -> None:
    card = known_facts.card
    start, end = card.index(BEGIN) + len(BEGIN), card.index(END)
    at = data.draw(st.integers(start, end - 1))
    letter = data.draw(st.sampled_from("0987.+-% x\n|"))
    assume(card[at] != letter)
    (claim,) = known_facts.claims(f"{card[:at]}{letter}{card[at + 1 :]}")
    assert "its card is not what the lock's evidence says: the line" in claim


@FEW
@given(words=st.text(max_size=60), is_below=st.booleans())
def test_whatever_is_written_outside_is_the_owners(
    known_facts: Published, words: str, is_below: bool
) -> None:
    assume(BEGIN not in words and END not in words)
    before, begin, after = known_facts.card.partition(BEGIN)
    card = before + begin + after + words if is_below else before + words + begin + after
    assert known_facts.claims(card) == []


@pytest.mark.parametrize(
    ("old", "new", "said"),
    [
        ("value: 0.89", "value: 0.98", "its metadata (model-index)"),
        ("- vendor/base", "- vendor/other", "its metadata (base_model)"),
        ("license: mit", "license: apache-2.0", "its metadata (license)"),
        ("89.0 %", "98.0 %", "89.0"),
        (END, "", "is missing"),
    ],
)
def test_what_was_changed_is_named(published: Published, old: str, new: str, said: str) -> None:
    card = published.card
    old = old if old in card else old.replace(" %", "")
    assert old in card
    try:
        (claim,) = published.claims(card.replace(old, new))
    except Refused as error:
        claim = str(error)
    assert said in claim


def test_a_verdict_that_the_evidence_does_not_give_is_named(published: Published) -> None:
    strict = VerdictPolicy(minimum_gain=0.9).model_dump()
    (claim,) = published.claims(verdict_policy=strict)
    assert "its lock gives the verdict publish" in claim and "the evidence there reject" in claim
    trusted = {"action": "publish", "reason": "Trust me."}
    claims = published.claims(verdict=trusted)
    assert len(claims) == 2 and "Trust me." in claims[0] and "Trust me." in claims[1]
    worse = EVIDENCE.model_copy(deep=True)
    assert worse.own
    worse.own.results["port"] = [1.0] * 100 + [0.0] * 100
    claims = published.claims(evidence=worse.model_dump())
    assert len(claims) == 2 and "did not survive" in claims[0]
    with pytest.raises(Refused, match=r"of portllm\.lock\.json is damaged"):
        published.claims(evidence={"own": {"task": "sides"}})


def test_who_asks_though_the_evidence_would_let_it_pass_lies_not(published: Published) -> None:
    verdict = lock.read(published.port).verdict
    asked = {"action": "ask", "reason": f"{verdict['reason']} This token may not write there."}
    claims = published.claims(verdict=asked)
    assert len(claims) == 1 and "its card" in claims[0]  # which has the other verdict


def test_it_holds_where_a_mirror_is_asked(published: Published) -> None:
    endpoint = published.judged.context.hub.endpoint
    assert endpoint in published.card
    assert published.claims(published.card.replace(endpoint, HOME)) == []
    assert published.claims(published.card.replace(endpoint, "https://elsewhere.example"))


def test_it_holds_after_a_rollback_and_a_withdrawal(published: Published) -> None:
    judged = published.judged
    assert takeback.rollback(judged.context, published.target) == (
        published.second,
        published.first,
    )
    former = HubRepo(
        judged.context.hub, published.target, judged.read(published.first).published_sha or ""
    )
    assert lock.read(published.port) == lock.read(former)
    assert published.claims() == [] and OWN in published.card
    takeback.withdraw(judged.context, published.first, "It leaks.")
    assert published.claims() == []
    (notice,) = notices(published.card)
    assert notice.startswith("**Withdrawn:**") and notice.endswith("It leaks.")
