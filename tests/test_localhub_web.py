"""The pages for browsers."""

import re
from html.parser import HTMLParser

import pytest
from huggingface_hub import CommitOperationAdd, HfApi
from huggingface_hub.utils import get_session

from localhub import cards
from localhub.server import Server

CARD = """---
license: mit
tags: ["<b>tag</b>"]
---
# Hello

| a | b |
|---|--:|
| 1 | 2 |

![plot](plots/loss.png) [notes](NOTES.md) [up](../../../other) [top](#top)
<img src="x" onerror="alert(1)"><script>alert(2)</script><style>body{display:none}</style>
<a href="javascript:alert(3)">x</a> <iframe src="/"></iframe><form action="/x"><input></form>
<svg onload=alert(4)> <p style="position:fixed" class="tag" id="x" onclick="y">p</p>
"""


class Elements(HTMLParser):
    """All start tags of a page with their attributes."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.found: list[tuple[str, dict[str, str | None]]] = []
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.found.append((tag, dict(attrs)))


@pytest.fixture
def api(hub: Server) -> HfApi:
    api = HfApi(endpoint=hub.endpoint, token=hub.add_user("alice"))
    api.create_repo("alice/m")
    files = {"README.md": CARD, "sub dir/a&b.txt": "<i>text</i>\n"}
    operations = [CommitOperationAdd(path, text.encode()) for path, text in files.items()]
    api.create_commit("alice/m", operations, commit_message="Add <em>card</em>")
    api.create_tag("alice/m", tag="v1")
    return api


def page(hub: Server, path: str) -> str:
    answer = get_session().get(hub.endpoint + path)
    assert answer.status_code == 200, answer.text
    policy = answer.headers["content-security-policy"]
    assert "default-src 'none'" in policy and "script-src" not in policy
    return answer.text


def test_repo_page_shows_files_refs_commits_and_card(hub: Server, api: HfApi) -> None:
    text = page(hub, "/alice/m")
    for expected in (
        "<h1>Hello</h1>",
        "license:mit",
        "tag v1",
        'href="/alice/m/blob/main/sub%20dir/a%26b.txt"',
        "Add &lt;em&gt;card&lt;/em&gt;",
        "&lt;b&gt;tag&lt;/b&gt;",
        f"git clone {hub.endpoint}/alice/m",
        "prefers-color-scheme: dark",
    ):
        assert expected in text, expected
    assert "license: mit" not in text  # the front matter is not part of the card


def test_hostile_card_is_harmless(hub: Server, api: HfApi) -> None:
    elements = Elements(page(hub, "/alice/m")).found
    tags = {tag for tag, _ in elements}
    assert not tags & {"script", "iframe", "form", "input", "svg", "object", "embed", "base"}
    assert sum(tag == "style" for tag, _ in elements) == 1  # the page's own
    for tag, attributes in elements:
        assert not [name for name in attributes if name.startswith("on") or name == "style"], tag
        assert not (attributes.get("href") or "").lower().startswith("javascript:")
    pictures = [attributes["src"] for tag, attributes in elements if tag == "img"]
    assert pictures == ["/alice/m/resolve/main/plots/loss.png", "/alice/m/resolve/main/x"]
    links = {attributes.get("href") for tag, attributes in elements if tag == "a"}
    assert {"/alice/m/blob/main/NOTES.md", "/alice/m/blob/main/other", "#top"} <= links


def test_other_pages(hub: Server, api: HfApi) -> None:
    assert "alice/m" in page(hub, "/")
    assert "a&amp;b.txt" in page(hub, "/alice/m/tree/v1/sub%20dir")
    assert "&lt;i&gt;text&lt;/i&gt;" in page(hub, "/alice/m/blob/v1/sub%20dir/a%26b.txt")
    head = api.model_info("alice/m").sha
    changes = page(hub, f"/alice/m/commit/{head}")
    assert '<span class="added">+&lt;i&gt;text&lt;/i&gt;</span>' in changes
    pull = api.create_commit(
        "alice/m",
        [CommitOperationAdd("b.txt", b"<u>new</u>\n")],
        commit_message="Propose",
        commit_description="**why** <script>1</script>",
        create_pr=True,
    )
    text = page(hub, "/alice/m/discussions/1")
    assert "<strong>why</strong>" in text and "<script" not in text
    assert "+&lt;u&gt;new&lt;/u&gt;" in text
    assert "Propose" in page(hub, "/alice/m/discussions")
    assert page(hub, f"/alice/m/tree/{pull.pr_revision.replace('/', '%2F')}")
    for path in re.findall(r'href="(/alice[^"]*)"', page(hub, "/alice/m")):
        if "NOTES" not in path and "other" not in path:
            assert get_session().get(hub.endpoint + path).status_code == 200, path


def test_private_repos_are_not_listed(hub: Server, api: HfApi) -> None:
    api.create_repo("alice/secret", private=True)
    assert "alice/secret" not in page(hub, "/")
    assert get_session().get(f"{hub.endpoint}/alice/secret").status_code == 404


def test_files_are_never_served_as_pages(hub: Server, api: HfApi) -> None:
    operations = [CommitOperationAdd("x.html", b"<script>alert(1)</script>")]
    api.create_commit("alice/m", operations, commit_message="x")
    answer = get_session().get(f"{hub.endpoint}/alice/m/resolve/main/x.html")
    assert answer.headers["content-type"].startswith("text/plain")
    assert answer.headers["x-content-type-options"] == "nosniff"
    assert "sandbox" in answer.headers["content-security-policy"]


@pytest.mark.parametrize(
    ("text", "yaml", "markdown"),
    [
        ("---\na: 1\n---\n# x", "a: 1\n", "# x"),
        ("\ufeff---\r\na: 1\r\n---\r\nx", "a: 1\r\n", "x"),
        ("---\n---\nx", "", "x"),
        ("x\n---\na\n---\n", "", "x\n---\na\n---\n"),
        ("---\na: 1\nno end", "", "---\na: 1\nno end"),
    ],
)
def test_front_matter(text: str, yaml: str, markdown: str) -> None:
    assert cards.split(text) == (yaml, markdown)
