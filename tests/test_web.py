"""What `portllm serve` shows: escaped, nothing private, and changed only with the token."""

import html
import re
import shutil
from collections.abc import Iterator
from itertools import product
from pathlib import Path
from typing import Any, get_args

import httpx
import pytest
from fastapi.testclient import TestClient
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from markupsafe import escape

from bot.serve.app import create_app
from bot.watching.watch import _see
from judging.policy import Action
from patch_cards.pages import Site
from porting.errors import HubError
from registry.history import Figure, Moment
from registry.models import Base, Patch, Port, PortState, Release, Rule, Subscription, now
from registry.views import (
    BaseRow,
    BaseView,
    Followed,
    Line,
    Page,
    PatchRow,
    PatchView,
    PortRow,
    PortView,
    ReleaseRow,
    StatusView,
    Task,
)
from tests.web import BASE, MARK, PATCH, TOKEN, Furnished, furnish, key

BEARER = {"Authorization": f"Bearer {TOKEN}"}
GET = [
    *("/", "/?q=lora", f"/?base={BASE}", "/?task=tickets", "/bases", "/ports", "/status", "/api"),
    *(f"/patch/{PATCH}", f"/base/{BASE}", f"/ports?patch={PATCH}", "/nowhere"),
    *("/api/patches", "/api/bases", "/api/ports", "/api/status", "/api/search?q=a"),
    *(f"/api/patches/{PATCH}", f"/api/bases/{BASE}"),
    *(f"/api/ports?state={state}" for state in PortState),
    *(f"/?state={state}" for state in PortState),
    *(f"{page}?verdict={action}" for page in ("/", "/ports") for action in get_args(Action)),
]
HIDDEN = [
    *(f"/patch/{MARK}/{MARK}-lora", f"/base/v/{MARK}", f"/?q={MARK}", f"/?base=v/{MARK}"),
    *(f"/?task={MARK}", f"/ports?patch={MARK}/{MARK}-lora", f"/api/search?q={MARK}"),
]


@pytest.fixture(scope="module")
def furnished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    home = tmp_path_factory.mktemp("furnished")
    place = Furnished(home)
    furnish(place)
    place.database.close()
    return home


@pytest.fixture
def place(furnished: Path, tmp_path: Path) -> Furnished:
    return Furnished(shutil.copytree(furnished, tmp_path / "home"))


@pytest.fixture
def web(place: Furnished) -> Iterator[TestClient]:
    yield TestClient(create_app(place.context, None))


def ports_of(place: Furnished, private: bool) -> list[str]:
    with place.database.session() as session:
        mine = session.query(Port.key).join(Subscription).join(Patch)
        return [key for (key,) in mine.filter(Patch.private == private)]


def test_nothing_of_a_private_patch_is_shown_without_the_token(
    web: TestClient, place: Furnished
) -> None:
    for path in GET:
        assert MARK not in web.get(path).text, path
    for path in HIDDEN:  # what was asked is said again, and nothing else
        assert MARK not in re.sub(rf"(v/)?{MARK}(/{MARK}-lora)?", "", web.get(path).text, count=5)
    for name in ports_of(place, private=False):
        for path in (f"/port/{name}", f"/api/ports/{name}", f"/api/ports/{name}/log"):
            answer = web.get(path)
            assert answer.status_code == 200 and MARK not in answer.text
    hidden = ports_of(place, private=True)
    assert hidden
    for name in hidden:
        for path in (f"/port/{name}", f"/api/ports/{name}", f"/api/ports/{name}/log"):
            assert web.get(path).status_code == 404
            assert web.get(path, headers=BEARER).status_code == 200
    for path in HIDDEN[:2]:
        assert web.get(path).status_code == 404
        assert web.get(path, headers=BEARER).status_code == 200


def test_what_is_counted_is_what_is_shown(web: TestClient, place: Furnished) -> None:
    for headers, expected in ({}, 1), (BEARER, 2):
        releases = web.get(f"/api/bases/{BASE}", headers=headers).json()["releases"]["items"]
        counts = [each["verdicts"] for each in releases if each["verdicts"].get("publish")]
        assert counts and all(each["publish"] == expected for each in counts)
        for release in releases:
            of = f"/api/ports?release={release['id']}"
            passed = web.get(f"{of}&verdict=publish", headers=headers).json()["items"]
            assert len(passed) == release["verdicts"].get("publish", 0)
            failed = web.get(f"{of}&state=failed", headers=headers).json()["items"]
            assert {each["state"] for each in failed} <= {"failed"}
        status = web.get("/api/status", headers=headers).json()
        assert status["counts"]["failed"] == len(status["failed"]) == expected - 1
        assert bool(status["worker_names"]) == (expected == 2)
    assert "hooks.example" not in web.get(f"/patch/{PATCH}", headers=BEARER).text
    shown = web.get(f"/api/patches/{MARK}/{MARK}-lora", headers=BEARER)
    assert shown.status_code == 200 and "hooks.example" not in shown.text


TAG = re.compile(r"<(!doctype html|/?[a-z0-9]+( [a-z-]+(=\"[^\"<>]*\")?)*)>")
OUTSIDE = re.compile(r'(href|src|action)="(?!/|https://huggingface\.co/|data:image|#)')
SITE = Site(lambda path: f"/{path}", "https://huggingface.co")
HOSTILE = st.text(min_size=1, max_size=30) | st.sampled_from(
    ["<script>alert(1)</script>", "\"><img src=x onerror=a()>", "javascript:alert(1)", "' onx='",
     "{{ 7 * 7 }}", "]]></style>", "</title><b>", "a\u202eb", "../../etc", "a/b?c#d", "<!--"]
)  # fmt: skip


@given(hostile=HOSTILE)
@settings(max_examples=100, deadline=None)
def test_no_string_comes_out_as_html(hostile: str) -> None:
    evil = f"{hostile}<x-evil y='\">&/x"  # so that there is always something to escape
    at, figure = now(), Figure(0.5, 0.4, 0.6)
    patch = PatchRow(
        repo=evil, sha=evil, kind=evil, portability=evil, base_repo=evil, base_sha=evil,
        license=evil, pipeline_tag=evil, task=evil, added_at=at,
    )  # fmt: skip
    moment = Moment(evil, evil, evil, evil, at, "published", evil, evil, evil, evil, evil, evil,
                    evil, {arm: figure for arm in ("before", "old", "new", "port")})  # fmt: skip
    followed = Followed(
        id=1, patch=evil, base=evil, follows=evil, to=evil, form=evil, policy=evil, delivery=evil,
        managed=True, state=evil, reason=evil, port=evil, url=evil, moments=[moment],
    )  # fmt: skip
    row = PortRow(
        key=evil, patch=evil, base=evil, repo=evil, sha=evil, to=evil, form=evil, state=evil,
        step=evil, verdict=evil, reason=evil, attempt=1, due_at=at, created_at=at, updated_at=at,
        published_at=at, url=evil,
    )  # fmt: skip
    port = PortView(
        port=row, inputs={"patch": f"{evil}@{evil}"}, verdict_reason=evil, policy=evil, scale=1,
        engine=evil, forecast={"ratio": 1.0, "lost": evil}, files={evil: evil}, published_sha=evil,
        tasks=[Task(task=evil, metric=evil, items=1, total=1, arms={"new": figure, evil: figure})],
        log=[Line(at=at, attempt=1, step=evil, blame=evil, text=evil)],
    )  # fmt: skip
    base = BaseRow(id=1, repo=evil, rule=evil, follows=evil, head_repo=evil, head_sha=evil,
                   looked_at=at, problem=evil)  # fmt: skip
    release = ReleaseRow(
        id=1, base=evil, follows=evil, repo=evil, sha=evil, from_repo=evil, from_sha=evil,
        change=evil, reason=evil, seen_at=at, verdicts={evil: 1, "publish": 1},
    )  # fmt: skip
    status = StatusView(
        at=at, paused=evil, workers=1, pulse_at=at, watched=True, worker_names=[evil],
        queues={evil: 1}, most=9, counts={evil: 1}, working=[row], waiting=[row], again=[row],
        failed=[row], unread=[release], blocked=[base],
    )  # fmt: skip
    asked = {"q": evil, "base": evil, "task": evil, "patch": evil, "state": evil}

    def page(item: Any) -> Page[Any]:
        return Page(items=[item], next=evil)

    shown = [
        SITE.home(page(patch), [row], [release], [base], asked), SITE.port(port),
        SITE.patch(PatchView(patch=patch, subscriptions=page(followed))),
        SITE.base(BaseView(repo=evil, followings=[base], releases=page(release),
                           followers=page(followed))),
        SITE.bases(page(base)), SITE.ports(page(row), asked), SITE.status(status),
        SITE.api([(evil, evil, evil)]), SITE.error(evil, evil),
    ]  # fmt: skip
    for text in shown:
        assert "<x-evil" not in text and str(escape("<x-evil y='\">&")) in text
        tags = re.findall(r"<[^>]*>", text)
        assert all(TAG.fullmatch(tag) for tag in tags)
        assert not OUTSIDE.search(text)


@given(cursor=st.text(max_size=30) | st.from_regex(r"[0-9T:.~+-]{1,40}", fullmatch=True))
@settings(max_examples=15, deadline=None, suppress_health_check=[*HealthCheck])
def test_no_cursor_is_an_error_of_ours(web: TestClient, cursor: str) -> None:
    for path in ("/", "/bases", f"/patch/{PATCH}", f"/base/{BASE}", "/api/ports",
                 "/api/ports?state=published", f"/api/ports?patch={PATCH}"):  # fmt: skip
        answer = web.get(str(httpx.URL(path).copy_merge_params({"cursor": cursor})))
        assert answer.status_code in (200, 400)


@pytest.mark.parametrize(
    ("path", "names"),
    [
        ("/api/patches", "repo"),
        ("/api/bases", "repo"),
        ("/api/ports", "key"),
        ("/api/ports?state=published", "key"),
        ("/api/ports?patch=me/many", "key"),
        ("/api/ports?release=1", "key"),
        ("/api/ports?verdict=publish", "key"),
        ("/api/ports?verdict=publish&state=published", "key"),
        ("/api/patches?state=published", "repo"),
        ("/api/patches?verdict=publish", "repo"),
        ("/api/patches?q=MANY -A", "repo"),
    ],
)
def test_pages_of_a_list_have_each_row_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, path: str, names: str
) -> None:
    monkeypatch.setattr("registry.browse.ROWS", 3)
    monkeypatch.setattr("registry.having.FEW", 4)
    monkeypatch.setattr("registry.browse.WINDOW", 5)
    place = Furnished(tmp_path)
    base = place.base("vendor/zero")
    release, expected = place.release(base, 1), set()
    many = place.patch("me/many")
    for number in range(8):
        patch = place.patch(f"me/many-a{number}", private=number == 3)
        into = place.subscription(patch, base, f"me/to-{number}")
        port = place.port(into, release, PortState.PUBLISHED)
        other = place.subscription(many, place.base(f"vendor/{number}"), f"me/more-{number}")
        later = place.port(other, place.release(base, 2 + number), PortState.PUBLISHED)
        if names == "key" and "patch=" not in path:
            expected |= {port} - ({port} if number == 3 else set())
        if names == "key" and "release=" not in path:
            expected.add(later)
        if path.startswith("/api/patches") and number != 3:
            expected.add(f"me/many-a{number}")
        if path == "/api/bases":
            expected.add(f"vendor/{number}")
    if path == "/api/bases":
        expected.add("vendor/zero")
    if path.startswith("/api/patches") and "q=" not in path:
        expected.add("me/many")
    web, found, more = TestClient(create_app(place.context, None)), [], {}
    while more is not None:
        page = web.get(str(httpx.URL(path).copy_merge_params(more))).json()
        found += [row[names] for row in page["items"]]
        more = page["next"] and {"cursor": page["next"]}
    assert sorted(found) == sorted(expected)


def test_every_filter_that_is_given_holds(web: TestClient, place: Furnished) -> None:
    def shown(path: str, name: str, asked: dict[str, str]) -> set[str]:
        page = web.get(path, params=asked).json()
        assert page["next"] is None
        return {row[name] for row in page["items"]}

    with place.database.session() as session:
        rows = session.query(Port, Patch).join(Port.subscription).join(Patch)
        ports = [
            {"key": port.key, "state": str(port.state), "patch": patch.repo,
             "release": str(port.release_id), "verdict": port.action or ""}
            for port, patch in rows.filter(Patch.private.is_(False))
        ]  # fmt: skip
    releases = sorted({each["release"] for each in ports})
    sizes = set()
    for values in product(
        ("", "published", "superseded", "waiting"),
        ("", PATCH, "you/legal-dora"),
        ("", *releases),
        ("", "publish", "ask", "reject"),
    ):
        given = zip(("state", "patch", "release", "verdict"), values, strict=True)
        asked = {name: value for name, value in given if value}
        fitting = [each for each in ports if asked.items() <= each.items()]
        if asked:
            assert shown("/api/ports", "key", asked) == {each["key"] for each in fitting}, asked
            sizes.add(len(fitting))
        if not {"patch", "release"} & asked.keys() and asked:
            mine = {each["patch"] for each in fitting}
            assert shown("/api/patches", "repo", asked) == mine
            assert shown("/api/patches", "repo", asked | {"q": "dora"}) == set()
    assert len(sizes) > 4


def test_a_search_by_verdict_is_said_and_turned(web: TestClient) -> None:
    page = web.get("/?verdict=reject").text
    assert '<option value="reject" selected>' in page and f"/patch/{PATCH}" in page
    page = web.get("/?verdict=ask").text
    assert "Patches found" in page and f"/patch/{PATCH}" not in page
    rejected = web.get("/ports?verdict=reject").text
    assert "<h1>Ports with the verdict reject</h1>" in rejected and key(7) in rejected
    assert key(1) not in rejected


def test_a_patch_is_shown_once_at_its_newest_commit(web: TestClient, place: Furnished) -> None:
    place.patch(PATCH, sha="9" * 40)
    rows = web.get("/api/patches", params={"q": "tickets"}).json()["items"]
    assert [row["sha"] for row in rows] == ["9" * 40]
    shown = web.get(f"/api/patches/{PATCH}").json()
    assert shown["patch"]["sha"] == "9" * 40 and len(shown["subscriptions"]["items"]) == 2


def test_a_base_is_followed_in_several_ways(web: TestClient, place: Furnished) -> None:
    tags = place.base(rule=Rule.TAGS, ref="v*")
    place.subscription(place.patch("me/third"), tags, "me/third-ported")
    place.release(tags, 40)
    shown = web.get(f"/api/bases/{BASE}").json()
    assert {row["rule"] for row in shown["followings"]} == {"ref", "tags"}
    assert {row["follows"] for row in shown["releases"]["items"]} == {f"{BASE}@main", f"{BASE}@v*"}
    assert "me/third" in {row["patch"] for row in shown["followers"]["items"]}


def test_controls_are_for_the_token(web: TestClient, place: Furnished) -> None:
    waiting = next(row["key"] for row in web.get("/api/status").json()["again"])
    into = web.get(f"/api/patches/{PATCH}").json()["subscriptions"]["items"][0]["id"]
    controls = [
        *(f"/api/ports/{waiting}/retry", f"/api/ports/{waiting}/cancel", "/api/resume"),
        *(f"/api/ports/{waiting}/withdraw?reason=Why", "/api/pause?reason=Why"),
        *(f"/api/subscriptions/{into}/pause", f"/api/subscriptions/{into}/resume"),
        "/api/rollback?to=me/tickets-merged",
    ]
    documented = web.get("/api/openapi.json").json()["paths"]
    assert sum("post" in methods for methods in documented.values()) == len(controls)
    before = web.get("/api/status", headers=BEARER).json()["counts"]
    for path in controls:
        for tried in ({}, {"Authorization": TOKEN}, {"Authorization": f"Bearer {TOKEN}x"},
                      {"Authorization": "Basic bWU6aXQ="}, {"Authorization": "Bearer \xe4"},
                      {"Cookie": f"Authorization=Bearer {TOKEN}"}):  # fmt: skip
            headers = {name: value.encode("latin-1") for name, value in tried.items()}
            answer = web.post(path, headers=headers)
            assert answer.status_code == 401 and answer.headers["WWW-Authenticate"] == "Bearer"
    assert web.get("/api/status", headers=BEARER).json()["counts"] == before
    off = TestClient(create_app(Furnished(place.context.settings.home, token=None).context, None))
    for path in controls:
        refused = off.post(path, headers=BEARER)
        assert refused.status_code == 403 and "PORTLLM_API_TOKEN" in refused.json()["detail"]
    assert MARK not in off.get("/status", headers=BEARER).text  # no token lets nobody in


def test_controls_do_what_the_commands_do(web: TestClient, place: Furnished) -> None:
    def post(path: str, expected: int = 200) -> str:
        answer = web.post(path, headers=BEARER)
        assert answer.status_code == expected, answer.text
        return str(answer.json()["said" if expected == 200 else "detail"])

    waiting = next(row["key"] for row in web.get("/api/status").json()["again"])
    post(f"/api/ports/{waiting}/cancel")
    assert web.get(f"/api/ports/{waiting}").json()["port"]["state"] == "cancelled"
    assert "portllm retry" in post(f"/api/ports/{waiting}/cancel", 409)
    post(f"/api/ports/{waiting}/retry")
    assert web.get(f"/api/ports/{waiting}").json()["port"]["attempt"] == 4
    assert "rollback" in post(f"/api/ports/{key(1)}/retry", 409)
    into = web.get(f"/api/patches/{PATCH}").json()["subscriptions"]["items"][0]["id"]
    post(f"/api/subscriptions/{into}/pause")
    assert web.get(f"/api/patches/{PATCH}").json()["subscriptions"]["items"][0]["state"] == "paused"
    post(f"/api/subscriptions/{into}/resume")
    post(f"/api/subscriptions/{into}/resume", 409)
    post("/api/pause?reason=The disk is moved")
    assert "The disk is moved" in web.get("/status").text
    post("/api/resume")
    post("/api/resume", 409)
    post("/api/ports/port-ffff/retry", 404)
    post("/api/subscriptions/9999/pause", 404)
    post("/api/rollback?to=nobody/nothing", 409)
    post("/api/rollback?to=no repo", 409)
    post(f"/api/ports/{waiting}/withdraw?reason=Why", 409)
    post("/api/pause", 400)


def test_a_port_has_the_names_of_its_repo_and_only_a_published_one_is_verified(
    web: TestClient, place: Furnished
) -> None:
    published = web.get(f"/port/{key(1)}").text
    with place.database.session() as session:
        port = session.get_one(Port, key(1))
        port.state, port.published_sha = PortState.ASKED, None
    asked = web.get(f"/port/{key(1)}").text
    assert ">adapter_config.json<" in published and "adapter/adapter_config.json" not in published
    assert "<dt>Published</dt>" in published and "portllm verify" in published
    assert "<dt>Asked</dt>" in asked and "portllm verify" not in asked


@pytest.mark.parametrize("form", ["adapter", "merged"])
def test_a_patch_is_loaded_at_the_commit_that_its_port_was_published_as(
    tmp_path: Path, form: str
) -> None:
    place = Furnished(tmp_path)
    base, patch = place.base(), place.patch(PATCH)
    into = place.subscription(patch, base, "other/ported", form=form)
    merged, url = "7" * 40, f"https://huggingface.co/other/ported/tree/{'7' * 40}"
    place.port(into, place.release(base, 1), PortState.PUBLISHED, published_sha=merged, url=url)
    shown = html.unescape(TestClient(create_app(place.context, None)).get(f"/patch/{PATCH}").text)
    assert f'"other/ported", revision="{merged}")' in shown and f'href="{url}"' in shown
    assert "base-" not in shown  # where the bot may not write, there is no such tag


def test_errors_are_pages_or_json(web: TestClient, place: Furnished) -> None:
    for path, status in (("/nowhere", 404), ("/port/no", 404), ("/?state=no", 400),
                         ("/ports?release=x", 400), ("/?q=%00", 400), ("/patch/a%00b", 400),
                         (f"/?q={'x' * 300}", 400), ("/?verdict=no", 400),
                         ("/ports?verdict=no", 400)):  # fmt: skip
        answer = web.get(path)
        assert answer.status_code == status and answer.text.startswith("<!doctype html>")
        assert "To the first page" in answer.text and answer.headers["X-Content-Type-Options"]
    for path, status in (("/api/nowhere", 404), ("/api/ports/no", 404),
                         ("/api/ports?state=no", 400), ("/api/search", 400),
                         ("/api/ports?verdict=no", 400),
                         ("/api/patches?verdict=no", 400)):  # fmt: skip
        answer = web.get(path)
        assert answer.headers["Content-Type"] == "application/problem+json"
        assert answer.json()["status"] == answer.status_code == status and answer.json()["detail"]
    assert web.get("/", headers={"Authorization": "Bearer no"}).status_code == 401
    with place.database.engine.begin() as connection:
        connection.exec_driver_sql("ALTER TABLE events RENAME TO lost")
    gone = web.get(f"/port/{key(1)}")
    assert gone.status_code == 503 and "lost" not in gone.text and "does not answer" in gone.text


def test_the_openapi_document_has_all_there_is(web: TestClient) -> None:
    document, listed = web.get("/api/openapi.json").json(), web.get("/api").text
    assert all(path.startswith("/api/") and path in html.unescape(listed)
               for path in document["paths"])  # fmt: skip
    ports = document["paths"]["/api/ports/{key}"]["get"]["responses"]
    assert ports["200"]["content"]["application/json"]["schema"]["$ref"].endswith("PortView")
    assert "notify" not in document["components"]["schemas"]["SubscriptionRow"]["properties"]


def test_secrets_in_sentences_are_masked(web: TestClient, place: Furnished) -> None:
    with place.database.session() as session:
        release = session.query(Release).first()
        into = session.query(Subscription).first()
        at = (into.id, release.base_id)
    said = "The Hub said: Authorization: Bearer hf_ABCDEFghijkl0123456789"
    name = place.port(at[0], place.release(at[1], 50), PortState.FAILED, said)
    for path in (f"/port/{name}", "/status", f"/patch/{PATCH}", f"/api/ports/{name}"):
        text = web.get(path).text
        assert "hf_ABC" not in text
    assert "***" in web.get(f"/port/{name}").text
    with place.database.session() as session:
        base = session.query(Base).filter_by(repo=BASE).first()
    _see(place.context, base.id, HubError(said))
    for path in ("/status", f"/base/{BASE}", f"/api/bases/{BASE}"):
        text = web.get(path).text
        assert "The Hub said" in text and "hf_ABC" not in text
