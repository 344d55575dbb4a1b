"""The commands on patches that are more than plain LoRA: what they need, and what is fetched."""

import io
import json
import re
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from huggingface_hub import constants
from rich.console import Console
from safetensors.torch import load_file, save_file

from bot.cli.progress import progress
from localhub.server import Server
from tests.tiny import edit_json, load, load_adapted, save_base, save_tokenizer
from tests.world import BASE, PORTED, Portllm, World

pytestmark = pytest.mark.usefixtures("quick")
DORA, PISSA, SAVED, ALORA = "owner/dora", "owner/pissa", "owner/saved", "owner/alora"
HEAD, WEIGHTS = "lm_head.weight", "adapter_model.safetensors"


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Iterator[World]:
    """A base in shards, patches of every class on its first commit, and a second commit."""
    folder = tmp_path_factory.mktemp("world")
    with Server(folder / "hub") as server:
        world = World(server, folder)
        world.base = save_tokenizer(save_base(folder / "sharded", shard_size="20KB"))
        world.api.delete_file("model.safetensors", repo_id=BASE)
        world.base_sha = world.push(BASE, world.base, "In shards")
        world.api.create_tag(BASE, tag="v1", revision=world.base_sha)
        world.push_kind("dora", use_dora=True)
        world.push_kind("pissa", init_lora_weights="pissa", target_modules=["q_proj"])
        world.push_kind("saved", modules_to_save=["lm_head"], target_modules=["q_proj"])
        alora = world.push_kind("alora")
        edit_json(alora / "adapter_config.json", alora_invocation_tokens=[1, 2])
        world.push("owner/alora", alora, "Only after its invocation")
        save_tokenizer(save_base(folder / "new", shard_size="20KB", seed=1))
        world.push(BASE, folder / "new", "Second release")
        yield world


def logits(model: torch.nn.Module) -> torch.Tensor:
    with torch.no_grad():
        found: torch.Tensor = model(torch.arange(1, 20)[None]).logits
    return found


@pytest.mark.parametrize(
    ("patch", "class_", "updates", "needs", "policy", "forms"),
    [
        (DORA, "C", {"Operator": 14}, None, True, ["merged", "adapter"]),
        (PISSA, "B", {"Operator": 2}, "init_lora_weights", False, ["merged", "adapter"]),
        (SAVED, "A", {"LoraPair": 2, "Absolute": 1}, "modules_to_save", False,
         ["merged", "adapter"]),
        (ALORA, "D", {}, None, False, ["adapter"]),
    ],
)  # fmt: skip
def test_inspect_says_what_a_patch_needs(
    portllm: Portllm,
    patch: str,
    class_: str,
    updates: dict[str, int],
    needs: str | None,
    policy: bool,
    forms: list[str],
) -> None:
    found = portllm.json("inspect", patch, "--base", BASE)
    assert (found["class"], found["updates"], found["forms"]) == (class_, updates, forms)
    assert (found["needs_old_base"], found["needs_policy"]) == (needs, policy)
    assert found["reason"] and len(found["touches"]) == sum(updates.values())
    assert (found["ranks"], found["scales"]) == (([4], [2.0]) if updates else ([], []))
    shown = portllm("inspect", patch)
    assert re.search(rf"^class +{class_}$", shown, re.MULTILINE)
    assert re.search(rf"^needs_policy +{'yes' if policy else 'no'}$", shown, re.MULTILINE)


def test_inspect_knows_a_full_delta(portllm: Portllm, world: World, tmp_path: Path) -> None:
    save_file({HEAD: torch.ones(96, 32)}, tmp_path / "delta.safetensors")
    config = {"format": 1, "base_model_name_or_path": BASE, "revision": world.base_sha}
    (tmp_path / "portllm_delta.json").write_text(json.dumps(config))
    found = portllm.json("inspect", tmp_path, "--base", BASE)
    assert (found["kind"], found["class"], found["updates"]) == ("full", "A", {"Addend": 1})
    assert found["touches"] == [HEAD] and found["needs_old_base"] is None
    assert (found["ranks"], found["scales"], found["modules"]) == ([], [], 1)


def test_a_plan_without_a_policy_says_which_there_are(portllm: Portllm) -> None:
    portllm("plan", BASE, DORA, code=3)
    assert "reapply" in portllm.messages and "freeze" in portllm.messages
    made = portllm.json("plan", BASE, DORA, "--policy", "freeze")
    assert made["policy"] == "freeze" and len(made["touched"]) == 14
    portllm("plan", BASE, DORA, "--policy", "guess", code=2)
    portllm("plan", BASE, DORA, "--policy", "freeze", "--as", "adapter", code=3)
    assert "can't be frozen" in portllm.messages
    portllm("plan", BASE, ALORA, code=3)
    assert "class D" in portllm.messages


def unpinned(world: World, folder: Path, revision: str | None) -> Path:
    """The patch with saved modules, in a folder, with another account of its base's commit."""
    folder.mkdir()
    for file in (world.folder / "saved").iterdir():
        (folder / file.name).write_bytes(file.read_bytes())
    edit_json(folder / "adapter_config.json", revision=revision)
    return folder


def test_the_old_base_is_asked_for_and_never_guessed(
    portllm: Portllm, world: World, tmp_path: Path
) -> None:
    patch = unpinned(world, tmp_path / "patch", "main")
    for command in (("plan", BASE), ("inspect", "--base", BASE)):
        portllm(*command, patch, code=3)
        assert f"--old {BASE}@COMMIT" in portllm.messages
    portllm("plan", BASE, patch, "--old", f"{BASE}@main", code=3)
    assert "names a branch" in portllm.messages
    expected = portllm.json("plan", BASE, SAVED)["touched"]
    for old in (f"{BASE}@v1", f"{BASE}@{world.base_sha[:7]}", world.base):
        assert portllm.json("plan", BASE, patch, "--old", old)["touched"] == expected
    assert portllm.json("plan", BASE, unpinned(world, tmp_path / "v1", "v1"))["touched"] == expected


def fetched(sha: str) -> set[str]:
    """The files of the base at `sha` that lie in this process's cache."""
    cache = Path(constants.HF_HUB_CACHE) / f"models--{BASE.replace('/', '--')}" / "snapshots" / sha
    return {file.name for file in cache.iterdir()} if cache.exists() else set()


def test_a_converted_adapter_fetches_only_the_shards_that_it_reads(
    portllm: Portllm, world: World, tmp_path: Path
) -> None:
    out, new_sha = tmp_path / "ported", world.api.model_info(BASE).sha
    portllm("port", BASE, SAVED, "--out", out)
    weight_map = json.loads((world.base / "model.safetensors.index.json").read_text())["weight_map"]
    queries = {weight_map[f"model.layers.{n}.self_attn.q_proj.weight"] for n in range(2)}
    small = {"config.json", "tokenizer.json", "model.safetensors.index.json"}
    assert fetched(world.base_sha) == {*small, weight_map[HEAD]}
    assert fetched(new_sha) == {*small, weight_map[HEAD], *queries}
    assert set(weight_map.values()) - fetched(new_sha)  # there was more to fetch

    config = json.loads((out / "adapter_config.json").read_text())
    assert (config["base_model_name_or_path"], config["revision"]) == (BASE, new_sha)
    key = f"base_model.model.{HEAD}"
    saved = load_file(world.folder / "saved" / WEIGHTS)[key]
    moved = load_file(out / WEIGHTS)[key]
    old, new = (load(world.folder / name).lm_head.weight for name in ("sharded", "new"))
    torch.testing.assert_close(moved, saved + new.detach() - old.detach(), rtol=0, atol=1e-6)


def test_a_forecast_fetches_only_the_shards_that_it_compares(
    portllm: Portllm, world: World
) -> None:
    """In this cache, after the test above: of the old base the queries are added."""
    found = portllm.json("plan", BASE, SAVED, "--forecast")["forecast"]
    new_sha = world.api.model_info(BASE).sha
    assert fetched(world.base_sha) == fetched(new_sha) and len(fetched(new_sha)) == 6
    assert len(found["modules"]) == 3 and found["total"]["ratio"] > 0


@pytest.mark.parametrize("policy", ["reapply", "freeze"])
def test_a_merged_dora_means_what_the_policy_says(
    portllm: Portllm, world: World, tmp_path: Path, policy: str
) -> None:
    new = world.folder / "new"
    old = load_adapted(world.base, world.folder / "dora").merge_and_unload().state_dict()
    reapplied = load_adapted(new, world.folder / "dora").merge_and_unload()
    expected = load(new)
    if policy == "freeze":
        with torch.no_grad():
            for name, value in load(world.base).state_dict().items():
                expected.state_dict()[name].add_(old[name] - value)
    portllm("port", new, DORA, "--out", tmp_path / "x", "--as", "merged", "--policy", policy)
    wanted = logits(reapplied if policy == "reapply" else expected)
    torch.testing.assert_close(logits(load(tmp_path / "x")), wanted, rtol=1e-3, atol=1e-3)


def test_every_finished_file_is_a_line_and_hashes_can_be_left_out(
    portllm: Portllm, world: World, tmp_path: Path
) -> None:
    out = tmp_path / "ported"
    arguments = ("port", world.folder / "new", SAVED, "--as", "merged", "--out")
    done = portllm.json(*arguments, out)
    files = {file.name for file in out.iterdir()}
    line = re.compile(r"^  (\S+) \(merging, bytes: ([\d,]+) of ([\d,]+)\)$", re.MULTILINE)
    lines = line.findall(portllm.messages)
    assert {name for name, *_ in lines} == files == set(done["files"])
    assert lines[-1][1] == lines[-1][2]
    unhashed = portllm.json(*arguments, tmp_path / "again", "--no-hash")
    assert set(unhashed["files"].values()) == {""}
    for file in files:
        assert (out / file).read_bytes() == (tmp_path / "again" / file).read_bytes()


def test_a_form_or_policy_that_a_patch_can_not_have_is_refused_at_once(portllm: Portllm) -> None:
    for patch in (DORA, SAVED, ALORA):
        portllm("patch", "add", patch)
    subscribe = ("subscribe", DORA, "--follow", BASE, "--to", PORTED)
    for form in ("merged", "both"):
        portllm(*subscribe, "--as", form, code=3)
        assert "--policy reapply" in portllm.messages and "--policy freeze" in portllm.messages
    portllm(*subscribe, "--as", "both", "--policy", "freeze", code=3)
    assert "--as merged" in portllm.messages
    portllm("subscribe", SAVED, *subscribe[2:], "--policy", "freeze", code=2)
    portllm("subscribe", ALORA, *subscribe[2:], "--as", "merged", code=3)
    assert "--as adapter" in portllm.messages
    assert portllm.json("status") == []
    assert portllm.json(*subscribe)["policy"] is None
    made = portllm.json(*subscribe, "--as", "merged", "--policy", "freeze")
    assert portllm.json("status") == [made] and made["policy"] == "freeze"
    assert portllm.json("patch", "show", DORA)["class"] == "C"


def test_a_terminal_is_shown_a_bar_of_bytes(monkeypatch: pytest.MonkeyPatch) -> None:
    screen = Console(file=io.StringIO(), force_terminal=True, width=100)
    monkeypatch.setattr("bot.cli.progress.console", screen)
    with progress() as report:
        report("merging, bytes", 5_000_000, 10_000_000)
        report("merging, bytes", 10_000_000, 10_000_000, WEIGHTS)
    shown = screen.file.getvalue()
    assert "merging" in shown and "10.0/10.0 MB" in shown and WEIGHTS not in shown
