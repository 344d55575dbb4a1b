"""The registry on the Hub: what is shown is what is public, once, and as it stands."""

import random
import re
from collections.abc import Iterator
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pyarrow.parquet as pq
import pytest
from huggingface_hub import CommitOperationAdd, HfApi
from hypothesis import given
from hypothesis import strategies as st
from sqlalchemy import select

from bot.context import Context
from bot.hub import Hub, HubPublisher
from bot.publishing.dry_run import rehearsal
from bot.settings import Settings
from bot.showcase import collections, dataset, space
from bot.showcase.show import keep_current, show, write
from localhub.server import Server
from patch_cards.card import END, render
from registry.database import Database
from registry.models import Base, Patch, Port, PortState, Record, Release, Rule, Subscription
from registry.views import Line
from tests.postgres import Postgres, postgres
from tests.serving import until
from tests.test_cards import facts
from tests.world import Portllm

__all__ = ["postgres"]  # pytest finds the fixture here

WHEN = datetime(2026, 1, 1, tzinfo=UTC)
SECRET = {"owner/patch-1", "owner/ported-2", "vendor/base-1"}  # private on the Hub
REPOS = [f"owner/{what}-{n}" for what in ("patch", "ported") for n in range(6)]
REPOS += [f"vendor/base-{n}" for n in range(3)]


def sha(*of: object) -> str:
    return f"{random.Random(repr(of)).getrandbits(160):040x}"


def fill(database: Database, seed: int) -> None:
    """Six patches, one of them private in the records, each with a subscription or two."""
    draw = random.Random(seed)
    rows: list[Record] = []
    for n in range(3):
        rows.append(
            Base(
                id=n + 1, rule=Rule.REF, repo=f"vendor/base-{n}", ref="main",
                head_repo=f"vendor/base-{n}", head_ref="main", head_sha=sha("base", n, 2),
            )
        )  # fmt: skip
        rows += [
            Release(
                id=10 * n + month + 1, base_id=n + 1, from_repo=f"vendor/base-{n}",
                from_ref="main", from_sha=sha("base", n, month), repo=f"vendor/base-{n}",
                ref="main", sha=sha("base", n, month + 1), change="weights", reason="Moved.",
                seen_at=WHEN + timedelta(days=month),
            )
            for month in range(2)
        ]  # fmt: skip
    for n in range(6):
        base = n % 3
        rows.append(
            Patch(
                id=n + 1, repo=f"owner/patch-{n}", owner="owner", sha=sha("patch", n),
                kind="LoRA", portability="A", base_repo=f"vendor/base-{base}",
                base_sha=sha("base", base, 0), license="mit", evaluation=None,
                task=draw.choice(["tickets", None]), private=n == 5, added_at=WHEN,
            )
        )  # fmt: skip
        rows.append(
            Subscription(
                id=n + 1, patch_id=n + 1, base_id=base + 1, to_repo=f"owner/ported-{n}",
                form="adapter", from_repo=f"vendor/base-{base}", from_sha=sha("base", base, 0),
                settled_repo=f"vendor/base-{base}", settled_sha=sha("base", base, 0),
                notify={"webhook": "https://secret.example"}, created_at=WHEN,
            )
        )  # fmt: skip
        for month in range(2):
            state = draw.choice([PortState.PUBLISHED, PortState.PUBLISHED, PortState.WITHDRAWN,
                                 PortState.REJECTED, PortState.WAITING])  # fmt: skip
            judged = state != PortState.WAITING
            rows.append(
                Port(
                    key=f"port-{n}{month}", subscription_id=n + 1,
                    release_id=10 * base + month + 1, job={"to_repo": f"owner/ported-{n}"},
                    state=state, reason=f"It is {state}.",
                    evidence=evidence(draw) if judged else None,
                    verdict={"action": "publish", "reason": f"Good {n}{month}."}
                    if judged else None,
                    created_at=WHEN, due_at=WHEN, updated_at=WHEN,
                    published_at=WHEN if state == PortState.PUBLISHED else None,
                )
            )  # fmt: skip
    with database.session() as session:
        for kind in (Base, Patch, Release, Subscription, Port):
            session.add_all(row for row in rows if isinstance(row, kind))
            session.flush()


def evidence(draw: random.Random) -> dict[str, Any]:
    results = {arm: " ".join(draw.choices("01", k=30)) for arm in ("before", "old", "new", "port")}
    own = {"task": "t", "digest": "d", "total": 30, "metric": "accuracy",
           "items": " ".join(map(str, range(20))), "results": results}  # fmt: skip
    return {"own": own, "looks": 1, "forecast": {"total": {"ratio": 2.5}}}


@pytest.fixture
def context(hub: Server, tmp_path: Path) -> Iterator[Context]:
    """A registry whose repos are on the Hub, some of them private."""
    token = hub.add_user("owner", orgs=("vendor", "shop"))
    api = HfApi(endpoint=hub.endpoint, token=token)
    api.create_repo("owner/first")
    hub.copy("owner/first", REPOS)
    for repo in SECRET:
        api.update_repo_settings(repo, private=True)
    home = Settings(home=tmp_path / "home", showcase="shop")
    home.home.mkdir()
    reader = Hub(hub.endpoint, token)
    database = Database(home.registry_url)
    fill(database, 1)
    yield Context(reader, HubPublisher(reader), database, home)
    database.close()


def tables(folder: Path) -> dict[str, list[dict[str, Any]]]:
    return {name: pq.read_table(folder / f"{name}.parquet").to_pylist() for name in dataset.QUERIES}


@pytest.mark.parametrize("seed", range(3))
def test_the_tables_are_what_is_public(tmp_path: Path, seed: int) -> None:
    """Against the records read one by one."""
    database = Database(f"sqlite:///{tmp_path / 'registry.db'}")
    fill(database, seed)
    with database.session() as session:
        counts = dataset.write(session, tmp_path, SECRET)
        patches = {each.id: each for each in session.scalars(select(Patch))}
        shown = {n: p for n, p in patches.items()
                 if not p.private and SECRET.isdisjoint((p.repo, p.base_repo))}  # fmt: skip
        followed = [
            each for each in session.scalars(select(Subscription))
            if each.patch_id in shown and SECRET.isdisjoint((each.base.repo, each.to_repo))
        ]  # fmt: skip
        public = {s.base_id for s in session.scalars(select(Subscription)) if not s.patch.private}
        bases = {n for n in public if session.get_one(Base, n).repo not in SECRET}
        ports = [each for each in session.scalars(select(Port))
                 if each.subscription_id in {one.id for one in followed}]  # fmt: skip
    found = tables(tmp_path)
    assert {name: len(rows) for name, rows in found.items()} == counts
    assert {row["repo"]: row["task"] for row in found["patches"]} == {
        patch.repo: patch.task for patch in shown.values()
    }
    assert {row["id"] for row in found["bases"]} == bases
    assert {row["base_id"] for row in found["releases"]} == bases
    assert {row["id"] for row in found["subscriptions"]} == {each.id for each in followed}
    assert {row["key"]: row["state"] for row in found["ports"]} == {
        port.key: port.state for port in ports
    }
    by_key = {port.key: port for port in ports}
    for row in found["ports"]:
        port = by_key[row["key"]]
        if port.evidence is None:
            assert row["verdict"] is row["port"] is row["task"] is None
            continue
        results = port.evidence["own"]["results"]["port"].split()[:20]
        assert row["port"] == pytest.approx(results.count("1") / 20)
        assert 0 <= row["port_low"] <= row["port"] <= row["port_high"] <= 1
        assert (row["verdict"], row["moved"], row["items"]) == ("publish", 2.5, 20)
    assert "secret" not in repr(found)


def test_equal_records_give_equal_bytes_whatever_holds_them(
    tmp_path: Path, postgres: Postgres, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(dataset, "ROWS", 2)
    contents = []
    shared = postgres.create("showcase").replace("postgresql:", "postgresql+psycopg:")
    for name, url in (("one", f"sqlite:///{tmp_path / 'registry.db'}"), ("two", shared)):
        folder = tmp_path / name
        folder.mkdir()
        database = Database(url)
        fill(database, 1)
        with database.session() as session:
            dataset.write(session, folder, set())
            wanted = list(collections.shelves(session, set()))
        database.close()
        contents.append((wanted, {p.name: p.read_bytes() for p in folder.glob("*.parquet")}))
        assert pq.ParquetFile(folder / "ports.parquet").num_row_groups == 5
    assert contents[0] == contents[1]


def test_the_datasets_library_reads_every_table(context: Context, tmp_path: Path) -> None:
    from datasets import load_dataset  # seconds to import

    write(context, tmp_path / "out", "shop")
    folder = tmp_path / "out" / "dataset"
    for name, rows in tables(folder).items():
        loaded = load_dataset(str(folder), name, split="train", cache_dir=str(tmp_path / "cache"))
        assert list(loaded) == rows


def test_the_pages_lead_somewhere_and_name_nothing_private(
    context: Context, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("bot.showcase.space.ROWS", 2)  # so that the lists have several pages
    write(context, tmp_path / "out", "shop")
    root = tmp_path / "out" / "space"
    pages = {path.relative_to(root).as_posix(): path.read_text() for path in root.rglob("*.html")}
    names = {name.removeprefix("pages/").removesuffix(".html") for name in pages}
    shown = [f"owner/patch-{n}" for n in (0, 2, 3)]
    assert {name for name in names if name.startswith("patch/")} == {f"patch/{n}" for n in shown}
    assert {"base/vendor/base-0", "base/vendor/base-2", "patches-2", "index"} <= names
    hidden = re.compile("|".join(map(re.escape, (*SECRET, "owner/patch-5", "vendor/base-1"))))
    inside, outside = set(), set()
    for name, html in pages.items():
        assert not hidden.search(html), name
        for found in re.findall(r"<a [^>]*href=\"[^\"]*\"[^>]*>", html):
            link = re.search(r'href="([^"#]*)', found)[1]
            if "://" in link:
                outside.add(link)
                assert 'target="_blank"' in found
            elif link:
                inside.add((root / name).parent.joinpath(link).resolve())
    assert all(file.is_file() for file in inside)
    assert {path.name for path in inside} > {"patches-2.html", "tasks.html", "index.html"}
    assert f"{context.hub.endpoint}/owner/ported-0" in outside


@given(st.text('\n\t\r\b\f\x01 :("\\', max_size=3), st.sampled_from(["bot/secret", "new/no-1.b"]))
def test_a_name_is_found_whatever_stands_before_it(before: str, name: str) -> None:
    line = Line(at=WHEN, attempt=1, step=None, blame=None, text=f"It is{before}{name}")
    assert name in space._names(line) or not before


def held(context: Context) -> dict[str, dict[str, str | None]]:
    api = context.hub.api
    return {
        found.title: {item.item_id: item.note for item in api.get_collection(found.slug).items}
        for found in api.list_collections(owner="shop")
    }


def test_collections_are_kept_current(hub: Server, context: Context) -> None:
    with context.database.session() as session:
        wanted = {
            shelf.title: {item.repo: item.note for item in shelf.items}
            for shelf in collections.shelves(session, SECRET)
            if shelf.items
        }
    show(context, "shop")
    assert held(context) == wanted
    text = repr(wanted)
    assert "Good" in text
    assert not [repo for repo in (*SECRET, "owner/patch-5") if f"'{repo}'" in text]
    with context.database.session() as session:
        for port in session.scalars(select(Port).where(Port.state == PortState.WITHDRAWN)):
            newest = port.key.endswith("1")
            assert not newest or port.job["to_repo"] not in text

    # Its owner's own: an item, and a note.
    title = next(iter(wanted))
    api = context.hub.api
    slug = next(each.slug for each in api.list_collections(owner="shop") if each.title == title)
    api.add_collection_item(slug, "owner/first", "model", note="Mine")
    with context.database.session() as session:
        gone = next(repo for repo in wanted[title] if repo.startswith("owner/patch"))
        session.scalars(select(Patch).where(Patch.repo == gone)).one().private = True
    show(context, "shop")
    now = held(context)[title]
    assert now.pop("owner/first") == "Mine"
    assert gone not in now and now.items() < wanted[title].items()


def test_nothing_new_makes_no_commit_and_hardly_a_request(hub: Server, context: Context) -> None:
    first = show(context, "shop")
    assert all(each.changes for each in first)
    until(lambda: len(list(hub.traffic.of("/api/collections/", "PATCH"))) == 2)  # its last ones
    hub.traffic.clear()
    assert [each.changes for each in show(context, "shop")] == [0, 0]
    assert {each.method for each in hub.traffic.of("")} <= {"GET", "HEAD"}
    assert len(list(hub.traffic.of("/api/collections"))) == 1


def test_broken_off_anywhere_it_is_done_once(hub: Server, context: Context) -> None:
    """Requests fail, and answers get lost after the Hub has done what they asked."""
    for fault in ({"status": 500}, {"cut": 1}):
        for path in ("/api/repos/create", "/commit/main", "/api/collections$", "/items"):
            hub.faults.add(path, method="POST", **fault)
            keep_current(context)  # logs it
    show(context, "shop")
    assert [each.changes for each in show(context, "shop")] == [0, 0]
    titles = [each.title for each in context.hub.api.list_collections(owner="shop")]
    assert len(titles) == len(set(titles)) == 2


def test_many_changes_are_made_bit_by_bit(
    context: Context, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("bot.hub.showcase.MOST_CHANGES", 3)
    seen = []
    while (done := show(context, "shop")[2:]) and sum(each.changes for each in done):
        seen.append(sum(each.changes for each in done))
        assert len(seen) < 9
    monkeypatch.undo()
    assert show(context, "shop")[2:] == [] and max(seen) == 3
    with context.database.session() as session:
        wanted = {shelf.title: {item.repo: item.note for item in shelf.items}
                  for shelf in collections.shelves(session, SECRET) if shelf.items}  # fmt: skip
    assert held(context) == wanted


def test_its_owners_words_survive(context: Context) -> None:
    show(context, "shop")
    api, name = context.hub.api, "shop/portllm-registry"
    file = api.hf_hub_download(name, "README.md", repo_type="dataset")
    card = Path(file).read_text().replace("- portllm\n", "- portllm\n- ours\nlicense: mit\n", 1)
    card += "\nOur own words.\n"
    added = CommitOperationAdd("README.md", card.encode())
    api.create_commit(name, [added], commit_message="Ours", repo_type="dataset")
    with context.database.session() as session:
        session.get_one(Base, 1).head_sha = "f" * 40
    assert show(context, "shop")[0].changes == 1  # the table of the bases, not the card
    file = api.hf_hub_download(name, "README.md", repo_type="dataset")
    assert Path(file).read_text() == card and card.endswith(f"{END}\n\nOur own words.\n")


def test_pages_of_what_is_withdrawn_go(context: Context) -> None:
    def pages() -> set[str]:
        return set(context.hub.api.list_repo_files("shop/portllm", repo_type="space"))

    show(context, "shop")
    added = CommitOperationAdd("mine.html", b"<p>Mine</p>")
    context.hub.api.create_commit("shop/portllm", [added], commit_message="Mine", repo_type="space")
    before = pages()
    with context.database.session() as session:
        session.get_one(Patch, 1).private = True
    show(context, "shop")
    assert before - pages() > {"pages/patch/owner/patch-0.html"}
    assert "mine.html" in pages() and "pages/patch/owner/patch-3.html" in pages()


def test_the_command_previews_and_shows(
    hub: Server, context: Context, tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    endpoint = SimpleNamespace(ENDPOINT=hub.endpoint)
    monkeypatch.setattr("bot.hub.client.constants", endpoint)
    monkeypatch.setattr("bot.logs.set_up", lambda: None)
    monkeypatch.setenv("HF_TOKEN", str(context.hub.token))
    monkeypatch.setenv("PORTLLM_HOME", str(context.settings.home))
    portllm = Portllm(capsys, monkeypatch)
    portllm("showcase", "--out", tmp_path / "out", code=2)  # nobody is named
    files = portllm.json("showcase", "--to", "shop", "--out", tmp_path / "out")
    assert {Path(each["file"]).name for each in files} > {"ports.parquet", "index.html"}
    portllm("showcase", "--to", "shop", "--out", tmp_path / "out", code=2)  # it is not empty
    assert not context.hub.api.repo_exists("shop/portllm", repo_type="space")
    monkeypatch.setenv("PORTLLM_SHOWCASE", "shop")
    shown = portllm.json("showcase")
    assert [each["what"] for each in shown] == ["dataset", "space", "collection", "collection"]
    assert context.hub.api.repo_exists("shop/portllm", repo_type="space")
    portllm("showcase", "--to", "stranger", code=3)


def test_a_bot_keeps_it_current_and_is_not_stopped_by_it(
    hub: Server, context: Context, caplog: pytest.LogCaptureFixture
) -> None:
    with rehearsal(context) as pretended:
        keep_current(pretended)  # a dry run shows nothing
    keep_current(replace(context, settings=Settings(home=context.settings.home)))  # off by default
    assert not context.hub.api.repo_exists("shop/portllm", repo_type="space")
    keep_current(context)
    assert context.hub.api.repo_exists("shop/portllm", repo_type="space")
    hub.faults.add("/api/whoami-v2", status=500)
    keep_current(context)
    assert "could not be brought up to date" in caplog.text


def test_ports_are_found_by_the_tags_of_their_cards(hub: Server) -> None:
    """With the stock client."""
    api = HfApi(endpoint=hub.endpoint, token=hub.add_user("owner"))
    cards = {
        "owner/adapter": render(facts()),
        "owner/merged": render(facts("merged", new_repo="vendor/other", kind="dora")),
        "owner/other": "---\nlicense: mit\n---\n",
    }
    for repo, card in cards.items():
        api.create_repo(repo)
        added = CommitOperationAdd("README.md", card.encode())
        api.create_commit(repo, [added], commit_message="A card")

    def found(*tags: str) -> set[str]:
        return {model.id for model in api.list_models(filter=list(tags))}

    assert found("portllm") == {"owner/adapter", "owner/merged"}
    assert found("portllm", "dora") == {"owner/merged"}
    assert found("portllm", "base_model:adapter:vendor/base") == {"owner/adapter"}
    assert found("portllm", "base_model:vendor/other", "license:mit") == {"owner/merged"}
    assert found(f"base-{'b' * 7}") == {"owner/adapter", "owner/merged"}
