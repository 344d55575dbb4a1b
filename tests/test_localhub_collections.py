"""Collections, static Spaces and data sets of the local Hub, through the client's own calls."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from huggingface_hub import Collection, CommitOperationAdd, HfApi
from huggingface_hub.errors import HfHubHTTPError
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from localhub.server import Server

REPOS = [("model", "alice/m"), ("dataset", "alice/d"), ("space", "alice/s"), ("model", "alice/n")]


@pytest.fixture
def api(hub: Server) -> HfApi:
    api = HfApi(endpoint=hub.endpoint, token=hub.add_user("alice", orgs=("acme",)))
    for kind, name in REPOS:
        sdk = "static" if kind == "space" else None
        api.create_repo(name, repo_type=kind, space_sdk=sdk, private=name == "alice/n")
    return api


def refusal(code: int, call: Callable[..., object], *given: Any, **named: Any) -> HfHubHTTPError:
    with pytest.raises(HfHubHTTPError) as error:
        call(*given, **named)
    assert error.value.response.status_code == code
    return error.value


def held(collection: Collection) -> list[tuple[str, str, str | None]]:
    return [(item.item_type, item.item_id, item.note) for item in collection.items]


def test_life_of_a_collection(api: HfApi) -> None:
    made = api.create_collection("ICCV: 2023!", namespace="acme", description="Ours")
    assert made.slug.startswith("acme/iccv-2023-")
    assert (made.title, made.description, made.private, made.items) == (
        "ICCV: 2023!", "Ours", False, [],
    )  # fmt: skip
    assert made.url.endswith(f"/collections/{made.slug}")
    refusal(409, api.create_collection, "ICCV: 2023!", namespace="acme")
    again = api.create_collection("ICCV: 2023!", namespace="acme", exists_ok=True)
    assert again.slug == made.slug
    assert api.create_collection("ICCV: 2023!").slug != made.slug  # of another owner

    renamed = api.update_collection_metadata(made.slug, title="ICCV", theme="pink")
    assert renamed.slug == made.slug.replace("-2023", "")
    assert (renamed.theme, renamed.description) == ("pink", "Ours")
    assert api.get_collection(made.slug).title == "ICCV"  # the old address leads there
    api.delete_collection(made.slug)
    refusal(404, api.get_collection, made.slug)
    refusal(404, api.delete_collection, made.slug)
    api.delete_collection(made.slug, missing_ok=True)


@settings(
    max_examples=15, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(
    steps=st.lists(
        st.tuples(
            st.sampled_from(["add", "note", "move", "delete"]),
            st.integers(0, 3),
            st.integers(0, 3),
        ),
        max_size=12,
    )
)
def test_items_are_as_a_list_of_them(api: HfApi, steps: list[tuple[str, int, int]]) -> None:
    """Against the oracle: a list, changed in step."""
    slug = api.create_collection("Items", exists_ok=True).slug
    for item in api.get_collection(slug).items:
        api.delete_collection_item(slug, item.item_object_id)
    oracle: list[tuple[str, str, str | None]] = []
    for number, (step, repo, place) in enumerate(steps):
        kind, name = REPOS[repo]
        at = next((i for i, item in enumerate(oracle) if item[:2] == (kind, name)), None)
        if step == "add":
            note = f"note {number}"
            if at is not None:
                refusal(409, api.add_collection_item, slug, name, kind)
                note = oracle[at][2]  # it stays as it is
            else:
                oracle.append((kind, name, note))
            found = api.add_collection_item(slug, name, kind, note=note, exists_ok=True)
            assert held(found) == oracle
            continue
        if at is None:
            continue
        item = api.get_collection(slug).items[at]
        assert item.position == at
        if step == "note":
            oracle[at] = (kind, name, f"note {number}")
            api.update_collection_item(slug, item.item_object_id, note=f"note {number}")
        elif step == "move":
            oracle.insert(place, oracle.pop(at))
            api.update_collection_item(slug, item.item_object_id, position=place)
        else:
            del oracle[at]
            api.delete_collection_item(slug, item.item_object_id)
            refusal(404, api.delete_collection_item, slug, item.item_object_id)
        assert held(api.get_collection(slug)) == oracle


def test_who_may_see_and_change_it(hub: Server, api: HfApi) -> None:
    bob = HfApi(endpoint=hub.endpoint, token=hub.add_user("bob"))
    reader = HfApi(endpoint=hub.endpoint, token=hub.add_user("alice", role="read"))
    slug = api.create_collection("Open").slug
    for kind, name in REPOS:
        api.add_collection_item(slug, name, kind)
    item = api.get_collection(slug).items[0].item_object_id
    for stranger in (bob, reader):
        refusal(403, stranger.create_collection, "x", namespace="alice")
        refusal(403, stranger.add_collection_item, slug, "alice/m", "model")
        refusal(403, stranger.update_collection_item, slug, item, note="x")
        refusal(403, stranger.delete_collection_item, slug, item)
        refusal(403, stranger.update_collection_metadata, slug, title="x")
        refusal(403, stranger.delete_collection, slug)
    assert [each.item_id for each in bob.get_collection(slug).items] == [
        "alice/m", "alice/d", "alice/s",  # not the private one
    ]  # fmt: skip

    hidden = api.create_collection("Secret", private=True).slug
    refusal(404, bob.get_collection, hidden)
    assert [each.title for each in bob.list_collections(owner="alice")] == ["Open"]
    assert {each.title for each in api.list_collections(owner="alice")} == {"Open", "Secret"}


def test_lists_show_four_items_and_come_in_pages(api: HfApi) -> None:
    for number in range(5):
        api.create_repo(f"alice/r{number}")
    slug = api.create_collection("Five").slug
    for number in range(5):
        api.add_collection_item(slug, f"alice/r{number}", "model")
    for number in range(120):
        api.create_collection(f"Empty {number}", namespace="acme")
    assert len(list(api.list_collections(owner="acme"))) == 120
    assert len(list(api.list_collections(limit=7))) == 7
    (found,) = api.list_collections(item=["models/alice/r4"])
    assert (found.slug, len(found.items)) == (slug, 4)
    assert len(api.get_collection(slug).items) == 5
    assert not list(api.list_collections(item="datasets/alice/r4"))


def test_limits(api: HfApi) -> None:
    slug = api.create_collection("t" * 59, description="d" * 150).slug
    api.add_collection_item(slug, "alice/m", "model", note="n" * 500)
    refusal(400, api.create_collection, "t" * 60)
    error = refusal(400, api.update_collection_metadata, slug, description="d" * 151)
    assert "at description" in str(error)
    refusal(400, api.add_collection_item, slug, "alice/d", "dataset", note="n" * 501)
    refusal(404, api.add_collection_item, slug, "alice/nothing", "model")
    refusal(400, api.add_collection_item, slug, "2307.09288", "paper")


def test_a_static_space_is_a_repo_with_pages(api: HfApi) -> None:
    page = b"<!doctype html><title>x</title>"
    api.create_commit(
        "alice/s",
        [CommitOperationAdd("p/index.html", page)],
        commit_message="Pages",
        repo_type="space",
    )
    info = api.space_info("alice/s")
    assert (info.sdk, [each.rfilename for each in info.siblings]) == (
        "static", [".gitattributes", "p/index.html"],
    )  # fmt: skip
    file = api.hf_hub_download("alice/s", "p/index.html", repo_type="space")
    assert Path(file).read_bytes() == page
    assert [each.id for each in api.list_spaces(author="alice")] == ["alice/s"]
