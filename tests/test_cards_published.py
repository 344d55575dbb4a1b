"""Cards and charts where they are published, and refused before anything is computed."""

import json
from collections.abc import Iterator
from pathlib import Path

import pytest
from huggingface_hub import HfApi

from bot.trust import takeback
from judging.evidence import Evidence, Measured
from localhub.server import Server
from patch_cards.chart import NAME
from tests.judged import Judged
from tests.world import BASE, PATCH, PORTED, World

RESULTS = {"before": [0] * 40, "old": [1] * 40, "new": [0] * 40, "port": [1] * 40}
EVIDENCE = Evidence(
    own=Measured(
        task="sides", digest="", total=40, metric="accuracy", items=list(range(40)), results=RESULTS
    )
).model_dump()


@pytest.fixture
def judged(hub: Server, tmp_path: Path) -> Iterator[Judged]:
    made = Judged(hub, tmp_path)
    yield made
    made.context.database.close()


def file(api: HfApi, name: str, revision: str = "main") -> str | None:
    if not api.file_exists(PORTED, name, revision=revision):
        return None
    return Path(api.hf_hub_download(PORTED, name, revision=revision)).read_text()


def test_the_chart_goes_along_with_each_port_and_back_with_the_former(judged: Judged) -> None:
    into, shas = judged.subscribe(), []
    for number in range(3):
        key = judged.judge(into, "publish")
        if number < 2:
            judged.change(key, evidence=EVIDENCE)
        judged.publish(key)
        shas.append(judged.read(key).job["new_sha"][:7])
    charts = [file(judged.api, NAME, f"base-{sha}") for sha in shas]
    assert charts[0] and charts[1] and charts[2] is None  # the third was not measured
    assert [sha in charts[0] for sha in shas] == [True, False, False]
    assert [sha in charts[1] for sha in shas] == [True, True, False]
    cards = [file(judged.api, "README.md", f"base-{sha}") or "" for sha in shas]
    assert [f"]({NAME})" in card for card in cards] == [True, True, False]
    takeback.rollback(judged.context, PORTED)
    assert file(judged.api, NAME) == charts[1]
    assert f"]({NAME})" in (file(judged.api, "README.md") or "")


@pytest.fixture
def world(hub: Server, tmp_path: Path) -> World:
    return World(hub, tmp_path)


def test_a_card_that_the_hub_refuses_is_refused_before_anything_is_computed(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    world.api.create_repo(PORTED)
    monkeypatch.setattr(HfApi, "_validate_yaml", lambda *_, **__: None)  # as git pushes it
    bad = f"---\n{json.dumps({'model-index': [{'name': 'mine'}]})}\n---\n# Mine\n"
    for repo, card in ((PORTED, bad), (PATCH, "# My patch\n")):
        world.api.create_repo(repo, exist_ok=True)
        world.api.upload_file(path_or_fileobj=card.encode(), path_in_repo="README.md", repo_id=repo)
    monkeypatch.undo()
    world.subscribed("adapter")
    sha = world.drift()
    said = world.portllm("bot", "run", "--once").stderr
    (port,) = world.json("ports")
    assert port["state"] == "refused"
    assert "README.md" in port["reason"] and '"model-index[0].results"' in port["reason"]
    assert "judging" not in said

    printed = world.portllm("patch", "card", PATCH).stdout
    assert "# My patch" in printed and world.base_sha in printed
    assert f"@{sha[:7]} |" in printed and "| refused |" in printed
    folder = world.folder / "card"
    world.portllm("patch", "card", PATCH, "--push", "--out", str(folder))
    assert (folder / "README.md").read_text() == printed
    tagged = [each.id for each in world.api.list_models(filter=["portllm"])]
    assert tagged == [PATCH]  # by the stock client
    below = [each.id for each in world.api.list_models(filter=f"base_model:adapter:{BASE}")]
    assert below == [PATCH]
    world.api.update_repo_settings(PORTED, private=True)
    assert PORTED not in world.portllm("patch", "card", PATCH).stdout.partition("NAMESPACE")[2]
