"""The main job, end to end: commands as a user types them, against the local Hub."""

import json
import shutil
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from huggingface_hub import ModelCard, hf_hub_download, snapshot_download
from safetensors.torch import save_file
from transformers import AutoModelForCausalLM

from judging.evidence import Measured
from judging.task import SLICED, order
from localhub.server import Server
from tests.tiny import edit_json, load, load_adapted, save_base, save_tokenizer
from tests.world import BASE, ITEMS, PATCH, PORTED, World, write_evaluation


@pytest.fixture
def world(hub: Server, tmp_path: Path) -> Iterator[World]:
    yield World(hub, tmp_path)


def run(world: World) -> str:
    """What it says, when it is quick."""
    return world.portllm("bot", "run", "--once", script="-m tests.quick_bot").stderr


def test_a_base_moves_and_the_port_is_on_the_hub(world: World) -> None:
    world.subscribed()
    assert world.json("status")[0]["state"] == "up to date"

    world.api.upload_file(path_or_fileobj=b"# New words", path_in_repo="README.md", repo_id=BASE)
    world.portllm("bot", "run", "--once")
    (status,) = world.json("status")
    assert status["state"] == "up to date" and "README.md" in status["reason"]
    assert world.json("ports") == []

    new_sha = world.drift()
    world.portllm("bot", "run", "--once")
    (status,), (port,) = world.json("status"), world.json("ports")
    assert status["state"] == port["state"] == "published", port["reason"]
    accuracies = _accuracies(port)
    assert accuracies["port"] > 0.9 and accuracies["new"] < 0.1
    assert port["evidence"]["own"]["total"] == ITEMS
    assert port["evidence"]["probe"]["difference"] < port["evidence"]["probe"]["bound"]
    assert port["evidence"]["faults"] == []
    assert port["evidence"]["forecast"]["total"]["ratio"] > 0

    _check_repo(world, new_sha, port)
    _check_weights(world)

    before = world.commits(PORTED)
    world.portllm("bot", "run", "--once")
    assert world.commits(PORTED) == before and len(world.json("ports")) == 1
    assert len(before) == 2  # the repo's own first commit, and the port


def test_a_policy_of_its_own_chooses_the_scale_and_the_record_saves_the_old_base(
    world: World,
) -> None:
    policy = world.folder / "policy.json"
    policy.write_text(json.dumps({"scale": "auto", "margin": 0.1, "minimum_gain": 0.2}))
    world.push_patch(revision=world.base_sha)
    edit_json(world.patch / "adapter_config.json", lora_alpha=4)  # half of what the answers are of
    world.push(PATCH, world.patch, "Too little of it")
    world.portllm("patch", "add", PATCH)
    into = ("--follow", BASE, "--to", PORTED, "--as", "both", "--verdict-policy", str(policy))
    world.portllm("subscribe", PATCH, *into)
    world.drift()
    said = run(world)
    (port,) = world.json("ports")
    assert port["state"] == "published", port["reason"]
    assert "judging old base + patch" in said and "choosing the scale" in said
    evidence = port["evidence"]
    assert evidence["scale"] == 1.25
    first = order(evidence["own"]["digest"], ITEMS)[:SLICED]
    assert not set(map(str, first)) & set(evidence["own"]["items"].split())
    strict = world.folder / "strict.json"
    strict.write_text('{"minimum_gain": 1}')
    [stored] = world.json("rejudge", port["port"])
    assert (stored["policy"]["margin"], stored["policy"]["minimum_gain"]) == (0.1, 0.2)
    assert stored["verdict"]["action"] == "publish"
    again = world.json("rejudge", port["port"], "--verdict-policy", str(strict))
    assert again[0]["verdict"]["action"] != "publish"
    assert again[0]["evidence"] == evidence
    assert "to the byte" in world.portllm("verify", PORTED).stderr

    world.drift(seed=2)
    said = run(world)
    assert world.json("status")[0]["state"] == "published"
    assert "judging new base" in said and "judging old base" not in said


def _accuracies(port: dict[str, Any]) -> dict[str, float]:
    own = Measured.model_validate(port["evidence"]["own"])
    return {arm: sum(results) / len(results) for arm, results in own.results.items()}


def _check_repo(world: World, new_sha: str, port: dict[str, str]) -> None:
    tags = {tag.name: tag.target_commit for tag in world.api.list_repo_refs(PORTED).tags}
    assert tags == {f"base-{new_sha[:7]}": port["published_sha"]}
    info = world.api.model_info(PORTED)
    assert info.sha == port["published_sha"]
    assert {f"base_model:{BASE}", f"base_model:merge:{BASE}", "portllm"} <= set(info.tags)
    endpoint = {"endpoint": world.server.endpoint, "token": world.api.token}
    lock = json.loads(Path(hf_hub_download(PORTED, "portllm.lock.json", **endpoint)).read_text())
    assert lock["new_base"] == {"repo": BASE, "sha": new_sha}
    assert lock["old_base"] == {"repo": BASE, "sha": world.base_sha}
    stored = {
        entry.path: entry.lfs.sha256
        for entry in world.api.list_repo_tree(PORTED, recursive=True)
        if getattr(entry, "lfs", None)
    }
    assert stored and stored.items() <= lock["files"].items()
    card = ModelCard.load(hf_hub_download(PORTED, "README.md", **endpoint))
    assert card.data.base_model == [BASE, PATCH]
    assert f"Task `sides`: {ITEMS} of the {ITEMS} items" in card.text
    assert "| new base alone | 0.0 |" in card.text and "{text} w94" in card.text


def _check_weights(world: World) -> None:
    folder = snapshot_download(PORTED, endpoint=world.server.endpoint, token=world.api.token)
    merged = AutoModelForCausalLM.from_pretrained(folder).eval()
    beside = load_adapted(world.base, Path(folder) / "adapter")
    ids = torch.arange(1, 20)[None]
    with torch.no_grad():
        torch.testing.assert_close(merged(ids).logits, beside(ids).logits, rtol=1e-4, atol=1e-4)
        assert not torch.allclose(merged(ids).logits, load(world.base)(ids).logits, atol=1e-2)


def test_a_full_delta_is_judged_by_the_models_that_it_makes(world: World) -> None:
    before = load(world.base).state_dict()
    tuned = load_adapted(world.base, world.patch).merge_and_unload().state_dict()
    delta = world.folder / "delta"
    delta.mkdir()
    changed = {name: tuned[name] - w for name, w in before.items() if not w.equal(tuned[name])}
    save_file(changed, delta / "delta.safetensors")
    config = {"format": 1, "base_model_name_or_path": BASE, "revision": world.base_sha}
    (delta / "portllm_delta.json").write_text(json.dumps(config))
    write_evaluation(world.patch, world.base, "patched")
    shutil.copytree(world.patch / "eval", delta / "eval")
    world.push(PATCH, delta, "A delta")
    world.portllm("patch", "add", PATCH)
    world.portllm("subscribe", PATCH, "--follow", BASE, "--to", PORTED)
    new_sha = world.drift()
    run(world)
    (port,) = world.json("ports")
    assert port["state"] == "published", port["reason"]
    accuracies = _accuracies(port)
    assert accuracies["old"] > 0.9 and accuracies["port"] > 0.9 and accuracies["new"] < 0.1
    endpoint = {"endpoint": world.server.endpoint, "token": world.api.token}
    card = ModelCard.load(hf_hub_download(PORTED, "README.md", **endpoint))
    tag = f"base-{new_sha[:7]}"
    assert f"portllm port {BASE}@{new_sha} {PORTED}@{tag} --as merged" in card.text
    assert card.data.library_name == "portllm" and "PeftModel" not in card.text


def test_a_patch_that_harms_is_rejected_and_a_failing_hub_is_tried_again(world: World) -> None:
    world.push_patch(golds="own", revision=world.base_sha)
    world.portllm("patch", "add", PATCH)
    world.portllm("subscribe", PATCH, "--follow", BASE, "--to", PORTED)
    world.drift()
    world.server.faults.add(r"/resolve/.*/adapter_model\.safetensors", times=2, status=503)
    run(world)
    (status,) = world.json("status")
    assert status["state"] == "rejected", status["reason"]
    assert "harms the new base" in status["reason"]
    assert not world.api.repo_exists(PORTED)


def test_what_the_patch_was_not_made_for_is_refused_with_a_reason(world: World) -> None:
    world.subscribed("adapter", evaluated=False)
    other = save_tokenizer(save_base(world.folder / "other", "gpt2"))
    world.push(BASE, other, "Another architecture")
    run(world)
    (status,) = world.json("status")
    assert status["state"] == "refused"
    assert "architecture" in status["reason"] and world.base_sha[:7] in status["reason"]


def test_a_commit_that_can_not_be_read_loses_nothing(world: World) -> None:
    world.subscribed("adapter", evaluated=False)
    world.api.delete_file("model.safetensors", repo_id=BASE)
    run(world)
    (status,) = world.json("status")
    assert status["state"] == "skipped" and "safetensors" in status["reason"]
    world.drift()
    run(world)
    assert world.json("status")[0]["state"] == "asked"


def test_without_an_evaluation_the_owner_is_asked_for_the_port_in_the_form_that_was_asked_for(
    world: World,
) -> None:
    world.subscribed("adapter", evaluated=False)
    world.drift()
    world.portllm("make", script="-m tests.killed_bot", code=-signal.SIGKILL)
    world.portllm("subscribe", PATCH, "--follow", BASE, "--to", PORTED, "--as", "merged")
    run(world)
    (status,) = world.json("status")
    assert status["state"] == "asked" and "eval/portllm-eval.json" in status["reason"]
    (request,) = world.api.get_repo_discussions(PORTED)
    assert request.is_pull_request
    assert "adapter_model.safetensors" not in world.api.list_repo_files(PORTED)
    files = world.api.list_repo_files(PORTED, revision=f"refs/pr/{request.num}")
    assert {"adapter_model.safetensors", "README.md", "portllm.lock.json"} <= set(files)
    assert "model.safetensors" not in files


def test_a_repo_that_holds_somebodys_weights_is_not_overwritten(world: World) -> None:
    world.subscribed("adapter", evaluated=False)
    world.push(PORTED, world.patch, "My own model")
    world.drift()
    run(world)
    (status,) = world.json("status")
    assert status["state"] == "refused" and "no port wrote" in status["reason"]
    assert world.commits(PORTED)[0] == "My own model"


def test_a_base_that_vanished_is_said_so(world: World) -> None:
    world.subscribed("adapter", evaluated=False)
    world.api.delete_repo(BASE)
    run(world)
    (status,) = world.json("status")
    assert status["state"] == "blocked" and "does not exist" in status["reason"]
