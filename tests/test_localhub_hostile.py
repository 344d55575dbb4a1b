"""What hostile requests get."""

import http.client
import json
from collections.abc import Iterator

import pytest
from huggingface_hub import HfApi
from huggingface_hub.utils import get_session

from localhub.server import Server


@pytest.fixture(scope="module")
def hub(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """One hub for all of them."""
    with Server(tmp_path_factory.mktemp("hub")) as server:
        yield server


@pytest.fixture(scope="module")
def api(hub: Server) -> HfApi:
    api = HfApi(endpoint=hub.endpoint, token=hub.add_user("alice"))
    api.create_repo("alice/m")
    return api


@pytest.mark.parametrize(
    "path",
    ["../x", "/x", "a/../x", ".git/config", "a/.GIT/x", "a//x", ".", "a\\x", "a\nx", "", "git~1/x"],
)
def test_paths_that_leave_the_repository_are_refused(hub: Server, api: HfApi, path: str) -> None:
    head = api.model_info("alice/m").sha
    lines = [
        {"key": "header", "value": {"summary": "x"}},
        {"key": "file", "value": {"path": path, "content": "", "encoding": "base64"}},
    ]
    answer = get_session().post(
        f"{hub.endpoint}/api/models/alice/m/commit/main",
        content="\n".join(map(json.dumps, lines)).encode(),
        headers={"Authorization": f"Bearer {api.token}"},
    )
    assert answer.status_code == 400 and "Invalid path" in answer.json()["error"]
    assert api.model_info("alice/m").sha == head


@pytest.mark.parametrize(
    "line",
    [
        b"[]",
        b"not json",
        b'{"key": "file"}',
        b'{"key": "file", "value": {"path": "x", "content": "%", "encoding": "base64"}}',
        b'{"key": "lfsFile", "value": {"path": "x", "oid": "../../tokens.json"}}',
        b'{"key": "lfsFile", "value": {"path": "x", "oid": "%s"}}' % (b"0" * 64),
        b'{"key": "unknown", "value": {"path": "x"}}',
        b'{"key": "deletedFile", "value": {"path": 7}}',
    ],
)
def test_malformed_commits_are_refused(hub: Server, api: HfApi, line: bytes) -> None:
    answer = get_session().post(
        f"{hub.endpoint}/api/models/alice/m/commit/main",
        content=b'{"key": "header", "value": {"summary": "x"}}\n' + line,
        headers={"Authorization": f"Bearer {api.token}"},
    )
    assert answer.status_code == 400, answer.text


@pytest.mark.parametrize(
    "path",
    [
        "/api/models/..%2F../tokens.json",
        "/api/models/alice/..",
        "/alice/m/resolve/main/..%2F..%2F..%2Ftokens.json",
        "/alice/m/resolve/main/%2Fetc%2Fpasswd",
        "/alice/m/resolve/--help/a",
        "/alice/m/resolve/main%5E%7Btree%7D/a",
        "/alice/m/blob/main/..%2Fconfig",
        "/alice/m/tree/main/..%2F..",
        "/alice/m.git/info/lfs/objects/..%2F..%2F..%2Ftokens.json",
        "/alice/m/localhub/settings.json",
        "/alice/m/objects/info/packs",
        "/api/models/alice/m/discussions/..%2Fsettings",
    ],
)
def test_nothing_outside_a_repository_is_read(hub: Server, api: HfApi, path: str) -> None:
    # http.client sends the path as it is; others would normalise it
    connection = http.client.HTTPConnection(hub.endpoint.removeprefix("http://"))
    connection.request("GET", path, headers={"Authorization": f"Bearer {api.token}"})
    assert connection.getresponse().status in (400, 404)
    connection.close()


@pytest.mark.parametrize("name", ["a..b", "-a", "a.git", "a--b", ".a", "a/b/c", "ä", "x" * 97, ""])
def test_bad_repository_names(hub: Server, api: HfApi, name: str) -> None:
    answer = get_session().post(
        f"{hub.endpoint}/api/repos/create",
        json={"name": name},
        headers={"Authorization": f"Bearer {api.token}"},
    )
    assert answer.status_code == 400


def test_upload_addresses_cannot_be_forged(hub: Server, api: HfApi) -> None:
    batch = f"{hub.endpoint}/alice/m.git/info/lfs/objects/batch"
    body = {
        "operation": "upload",
        "transfers": ["basic"],
        "objects": [{"oid": "0" * 64, "size": 9}],
    }
    headers = {"Authorization": f"Bearer {api.token}"}
    assert get_session().post(batch, json=body).status_code == 401
    granted = get_session().post(batch, json=body, headers=headers).json()
    address = granted["objects"][0]["actions"]["upload"]["href"]
    put = get_session().put
    assert put(address.replace("size=9", "size=99"), content=b"x").status_code == 403
    assert put(address, content=b"not that").status_code == 400
    assert put(address, content=b"much longer than announced").status_code == 400
    assert not list((hub.root / "lfs" / "objects").iterdir())
    assert not list((hub.root / "lfs" / "tmp").iterdir())


def test_tokens_are_for_their_owner_only(hub: Server) -> None:
    hub.add_user("alice")
    assert (hub.root / "tokens.json").stat().st_mode & 0o077 == 0


BAD_YAML = [
    "- a\n- b",
    "a: [1",
    "a: &x [1]\nb: *x",
    "a: " + "[" * 200_000,
    "a: {2020-01-01: b}",
    "a: !!python/object/apply:os.getcwd []",
]


@pytest.mark.parametrize("yaml", BAD_YAML)
def test_bad_metadata_is_refused(hub: Server, yaml: str) -> None:
    body = {"content": f"---\n{yaml}\n---\n# hi\n", "repoType": "model"}
    answer = get_session().post(f"{hub.endpoint}/api/validate-yaml", json=body)
    assert answer.status_code == 400
    assert "the metadata" in answer.json()["errors"][0]["message"]


@pytest.mark.parametrize("yaml", BAD_YAML)
def test_a_card_past_the_validation_has_no_metadata(hub: Server, api: HfApi, yaml: str) -> None:
    card = f"---\n{yaml}\n---\n# hi\n".encode()
    lines = [
        {"key": "header", "value": {"summary": "x"}},
        {"key": "file", "value": {"path": "README.md", "content": card.decode()}},
        {"key": "file", "value": {"path": "config.json", "content": "[" * 100_000}},
    ]
    get_session().post(
        f"{hub.endpoint}/api/models/alice/m/commit/main",
        content="\n".join(map(json.dumps, lines)).encode(),
        headers={"Authorization": f"Bearer {api.token}"},
    ).raise_for_status()
    assert api.model_info("alice/m").tags == ["region:us"]
    assert "<h1>hi</h1>" in get_session().get(f"{hub.endpoint}/alice/m").text


def test_no_answer_repeats_the_token(hub: Server, api: HfApi) -> None:
    for path in ("/", "/alice/m", "/api/models", "/api/models/alice/m", "/api/whoami-v2"):
        answer = get_session().get(
            hub.endpoint + path, headers={"Authorization": f"Bearer {api.token}"}
        )
        assert answer.status_code == 200 and api.token not in answer.text
