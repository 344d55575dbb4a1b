"""`portllm patch extract` and `stack`, on folders and on the Hub."""

import json
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from localhub.server import Server
from porting import Folder, merge, plan, read_adapter
from tests.tiny import load, load_adapted, raw_adapter, raw_base, save_adapter
from tests.world import BASE, PATCH, Portllm, World

TUNED, Q = "owner/tuned", "model.layers.0.self_attn.q_proj"
IDS = torch.arange(1, 20)[None]


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Iterator[World]:
    """A base, a patch of rank 4, and the model that the two make, as somebody's tuned model."""
    folder = tmp_path_factory.mktemp("world")
    with Server(folder / "hub") as server:
        world = World(server, folder)
        world.push_patch(None, revision=world.base_sha)
        made = plan(Folder(world.base), Folder(world.patch), as_="merged")
        merge(made, world.base, world.patch, folder / "tuned")
        world.push(TUNED, folder / "tuned", "Tuned")
        yield world


def logits(model: torch.nn.Module) -> torch.Tensor:
    with torch.no_grad():
        found: torch.Tensor = model(IDS).logits
    return found


def test_a_lora_is_extracted_from_the_hub(portllm: Portllm, world: World, tmp_path: Path) -> None:
    out = tmp_path / "lora"
    made = portllm.json("patch", "extract", TUNED, BASE, "--out", out, "--rank", 4)
    assert made["out"] == str(out) and made["energy"] > 1 - 1e-9
    assert len(made["modules"]) == 14 and made["whole"] == made["config"] == []
    assert set(made["files"]) == {file.name for file in out.iterdir()}
    assert f"Fetching {TUNED}@" in portllm.messages
    config = json.loads((out / "adapter_config.json").read_text())
    assert (config["base_model_name_or_path"], config["revision"]) == (BASE, world.base_sha)
    wanted = logits(load_adapted(world.base, world.patch))
    torch.testing.assert_close(logits(load_adapted(world.base, out)), wanted, atol=1e-4, rtol=1e-4)
    # It is a patch like any other.
    world.push("owner/extracted", out, "A patch")
    added = portllm.json("patch", "add", "owner/extracted")
    assert added["trained_on"] == f"{BASE}@{world.base_sha}"


def test_a_person_is_told_what_the_ranks_hold(
    portllm: Portllm, world: World, tmp_path: Path
) -> None:
    tuned, out = world.folder / "tuned", tmp_path / "lora"
    shown = portllm("patch", "extract", tuned, world.base, "--out", out, "--energy", 0.5)
    heading, *rows = [line.split("\t") for line in shown.splitlines()]
    assert heading == ["module", "rank", "energy"] and len(rows) == 14
    assert all(1 <= int(rank) < 4 and 0.5 <= float(energy) < 1 for _, rank, energy in rows)
    assert "% of the squared change" in portllm.messages
    assert read_adapter(Folder(out)).base_repo is None


def test_what_is_kept_whole_and_what_is_not_kept_is_said(
    portllm: Portllm, world: World, tmp_path: Path
) -> None:
    tuned, out = tmp_path / "tuned", tmp_path / "lora"
    model = load(world.base)
    with torch.no_grad():
        model.get_submodule(Q).weight.add_(0.1)
        model.get_submodule("model.norm").weight.add_(0.1)
    model.config.rms_norm_eps = 1e-5
    model.save_pretrained(tuned)
    shown = portllm("patch", "extract", tuned, world.base, "--out", out)
    assert shown == f"module\trank\tenergy\n{Q}\t32\t1.000000\n"  # 64, or all there are
    assert "1 parameters, such as model.norm.weight" in portllm.messages
    assert "config.json differs too, and no patch holds that: rms_norm_eps." in portllm.messages


def test_the_full_delta_gives_back_the_tuned_model(
    portllm: Portllm, world: World, tmp_path: Path
) -> None:
    out, ported = tmp_path / "delta", tmp_path / "ported"
    shown = portllm("patch", "extract", TUNED, f"{BASE}@main", "--out", out, "--full")
    assert "elements will not come back to the bit" in portllm.messages  # F32, changed by half
    assert shown.startswith("tensor\telements\tinexact\n") and f"\n{Q}.weight\t1024\t" in shown
    found = portllm.json("inspect", out)
    assert (found["kind"], found["class"], found["base_revision"]) == ("full", "A", world.base_sha)
    portllm("port", world.base, out, "--out", ported, "--as", "merged")
    wanted, lost = load_file(world.folder / "tuned/model.safetensors"), 0
    for name, value in load_file(ported / "model.safetensors").items():
        torch.testing.assert_close(value, wanted[name], atol=1e-6, rtol=0)
        lost += int((value != wanted[name]).sum())
    assert lost == sum(int(line.split("\t")[2]) for line in shown.splitlines()[1:]) > 0


def test_patches_of_the_hub_are_stacked(portllm: Portllm, world: World, tmp_path: Path) -> None:
    other = save_adapter(tmp_path / "a=b", world.base, seed=5, r=2)
    for folder in (other, world.patch):
        config = json.loads((folder / "adapter_config.json").read_text())
        config |= {"base_model_name_or_path": BASE, "revision": world.base_sha}
        (folder / "adapter_config.json").write_text(json.dumps(config))
    out = tmp_path / "stacked"
    shown = portllm("patch", "stack", f"{PATCH}=-0.5", other, "--out", out)
    assert shown.startswith("module\trank\n") and f"{Q}\t6\n" in shown
    model = load_adapted(world.base, world.patch)
    model.load_adapter(other, adapter_name="other")
    model.add_weighted_adapter(["default", "other"], [-0.5, 1.0], "cat", combination_type="cat")
    model.set_adapter("cat")
    torch.testing.assert_close(
        logits(load_adapted(world.base, out)), logits(model.eval()), atol=1e-4, rtol=1e-4
    )


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["extract", TUNED, BASE, "--rank", "4", "--full"], "give one of them"),
        (["extract", TUNED, BASE, "--rank", "4", "--energy", "0.5"], "give one of them"),
        (["extract", TUNED, BASE, "--energy", "0"], "--energy 0 holds nothing"),
        (["extract", TUNED, BASE, "--energy", "1.5"], "--energy"),
        (["extract", TUNED, BASE, "--rank", "0"], "--rank"),
        (["extract", "./nowhere", BASE], "There is no folder"),
        (["stack", f"{PATCH}=half"], "'half' is no number"),
        (["stack", f"{PATCH}=nan"], "must be finite, and not 0"),
        (["stack", f"{PATCH}=0"], "must be finite, and not 0"),
    ],
)
def test_wrong_usage_ends_with_2(
    portllm: Portllm, tmp_path: Path, arguments: list[str], message: str
) -> None:
    assert portllm("patch", *arguments, "--out", tmp_path / "out", code=2) == ""
    assert message in portllm.messages and not (tmp_path / "out").exists()


@pytest.mark.parametrize("command", [["extract", TUNED, BASE], ["stack", PATCH]])
def test_nothing_that_exists_is_written_into(
    portllm: Portllm, tmp_path: Path, command: list[str]
) -> None:
    portllm("patch", *command, "--out", tmp_path, code=2)
    assert "exists; name a new folder" in portllm.messages


def test_models_that_do_not_fit_are_refused_before_they_are_fetched(
    portllm: Portllm, world: World, tmp_path: Path
) -> None:
    other = raw_base(tmp_path / "other", {"w": torch.zeros(2)})
    portllm("patch", "extract", TUNED, other, "--out", tmp_path / "out", code=3)
    assert "architecture" in portllm.messages and "Fetching" not in portllm.messages


def test_a_refusal_in_the_sandbox_ends_with_3(
    portllm: Portllm, world: World, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    other = raw_adapter(tmp_path / "other", {"layer": (8, 8)})
    portllm("patch", "stack", PATCH, other, "--out", out, code=3)
    assert "base_model_name_or_path" in portllm.messages
    assert [entry.name for entry in tmp_path.iterdir()] == ["other"]
