"""The commands as a user meets them: help that works, data on stdout, exit codes that mean."""

import json
import os
import re
import shlex
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import requests
import torch
import typer
from huggingface_hub import HfApi

from bot import cli
from localhub.server import Server
from tests.tiny import edit_json, load, load_adapted, raw_adapter
from tests.world import BASE, ITEMS, PATCH, PORTED, Portllm, World

GROUP = typer.main.get_command(cli.app)
IDS = torch.arange(1, 20)[None]


def walk(command: Any, *path: str) -> Iterator[tuple[str, Any]]:
    below = getattr(command, "commands", None)
    if below is None:
        yield " ".join(path), command
    else:
        for name, child in below.items():
            yield from walk(child, *path, name)


COMMANDS = dict(walk(GROUP))


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Iterator[World]:
    folder = tmp_path_factory.mktemp("world")
    with Server(folder / "hub") as server:
        world = World(server, folder)
        world.push_patch(revision=world.base_sha)
        world.api.create_tag(BASE, tag="v1")
        yield world


@pytest.fixture
def recorded(portllm: Portllm) -> Portllm:
    """The patch recorded and subscribed."""
    portllm("patch", "add", PATCH)
    portllm("subscribe", PATCH, "--follow", BASE, "--to", PORTED, "--as", "both")
    return portllm


def test_help_lists_every_command(portllm: Portllm) -> None:
    shown = portllm("--help")
    for name in GROUP.commands:
        assert re.search(rf"^\W*{name} ", shown, re.MULTILINE), name
    for name in {path.split()[0] for path in COMMANDS if " " in path}:
        shown = portllm(name, "--help")
        assert all(path.split()[1] in shown for path in COMMANDS if path.startswith(f"{name} "))


@pytest.mark.parametrize("path", COMMANDS)
def test_every_command_shows_an_example_that_parses(portllm: Portllm, path: str) -> None:
    assert "Example: portllm" in portllm(*path.split(), "--help")
    words = shlex.split(COMMANDS[path].help.partition("Example:")[2])
    program, *arguments = words
    assert program == "portllm" and arguments[: len(path.split())] == path.split()
    command = COMMANDS[path]
    command.make_context(path, arguments[len(path.split()) :])  # raises where it does not parse


def test_every_data_command_has_json() -> None:
    without = {"demo", "bot run", "hub serve", "serve", "worker", "config schema"}  # is JSON
    for path, command in COMMANDS.items():
        options = {name for parameter in command.params for name in parameter.opts}
        assert ("--json" in options) == (path not in without), path


def test_starting_up_imports_nothing_heavy() -> None:
    heavy = ["torch", "transformers", "scipy", "dbos", "peft", "lm_eval", "datasets", "numpy"]
    load = "import sys, typer, bot.cli; dict(typer.main.get_command(bot.cli.app).commands)"
    program = f"{load}; print([m for m in {heavy} if m in sys.modules])"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert done.stdout == "[]\n", done.stderr


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["nonsense"], "nonsense"),
        (["inspect", "--nonsense", PATCH], "--nonsense"),
        (["plan", "./nowhere", PATCH], "There is no folder ./nowhere"),
        (["plan", "not a repo", PATCH], "'not a repo' is no repo"),
        (["plan", BASE, "owner/.."], "is no repo"),
        (["port", BASE, PATCH, "--out", "x", "--as", "nonsense"], "nonsense"),
        (["patch", "show", "owner/unknown"], "portllm patch add owner/unknown"),
        (["subscribe", "owner/unknown", "--follow", BASE, "--to", PORTED], "No patch"),
        (["subscribe", PATCH, "--follow", f"{BASE}@v1", "--to", PORTED], "only a branch moves"),
        (["subscribe", PATCH, "--follow", BASE, "--to", PATCH], "overwrite an original"),
        (["unsubscribe", PATCH], "no such subscription"),
    ],
)
def test_wrong_usage_ends_with_2(portllm: Portllm, arguments: list[str], message: str) -> None:
    assert portllm(*arguments, code=2) == ""
    assert message in portllm.messages and "Traceback" not in portllm.messages


def test_a_wrong_setting_ends_with_2(portllm: Portllm, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PORTLLM_POLL_SECONDS", "soon")
    portllm("status", code=2)
    assert "PORTLLM_POLL_SECONDS" in portllm.messages


def test_a_patch_that_is_refused_ends_with_3(portllm: Portllm, tmp_path: Path) -> None:
    patch = raw_adapter(tmp_path / "dora", {"layer": (8, 8)}, use_dora=True)
    assert portllm("inspect", patch, code=3) == ""
    assert re.search("dora", portllm.messages, re.IGNORECASE)
    portllm("plan", "owner/none", PATCH, code=3)
    assert "owner/none@main does not exist" in portllm.messages


def test_a_hub_that_is_gone_ends_with_4(portllm: Portllm, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("bot.hub.client.constants", SimpleNamespace(ENDPOINT="http://127.0.0.1:9"))
    monkeypatch.setattr("huggingface_hub.utils._http.time.sleep", lambda _: None)
    portllm("patch", "add", PATCH, code=4)
    assert "can't be reached" in portllm.messages


def test_the_exit_code_and_the_streams_are_those_of_the_process(world: World) -> None:
    process = "-m bot.cli.__main__"  # not in this one
    refused = world.portllm("plan", "owner/none", PATCH, code=3, script=process)
    assert refused.stdout == "" and refused.stderr.startswith("portllm: owner/none@main")
    assert json.loads(world.portllm("status", "--json", script=process).stdout) == []


def test_a_message_is_shown_as_it_is_written(portllm: Portllm) -> None:
    portllm("plan", "./[/red] [bold]x", PATCH, code=2)
    assert "./[/red] [bold]x" in portllm.messages


def test_inspect_says_what_a_patch_is(portllm: Portllm, world: World) -> None:
    found = portllm.json("inspect", PATCH, "--base", BASE)
    assert portllm.messages == ""
    assert (found["ranks"], found["scales"], found["modules"]) == ([4], [2.0], 14)
    assert (found["base"], found["base_revision"]) == (BASE, world.base_sha)
    assert found["evaluation"] == "sides" and len(found["touches"]) == 14
    local = portllm.json("inspect", world.patch)
    assert local | {"patch": ""} == {
        name: value for name, value in found.items() if name not in ("touches", "plan")
    } | {"patch": ""}
    shown = portllm("inspect", world.patch, "--base", world.base)
    assert re.search(r"^targets +down_proj, .*v_proj$", shown, re.MULTILINE)
    assert re.search(r"^touches +14 tensors$", shown, re.MULTILINE)


def test_plan_is_the_same_of_folders_and_of_the_hub(portllm: Portllm, world: World) -> None:
    local = portllm.json("plan", world.base, world.patch)
    remote = portllm.json("plan", BASE, f"{PATCH}@main")
    assert local["as"] == remote["as"] == "merged"
    for part in ("touched", "copied_files"):
        assert local[part] and local[part] == remote[part]
    shown = portllm("plan", world.base, world.patch)
    assert "model.layers.0.self_attn.q_proj.weight\t32x32\tF32\tLoraPair\t4\t2\n" in shown
    assert "copied   tokenizer.json" in shown
    assert portllm.json("plan", BASE, PATCH, "--as", "adapter")["as"] == "adapter"


def test_port_merged_is_pefts_own_merge(portllm: Portllm, world: World, tmp_path: Path) -> None:
    out = tmp_path / "ported"
    done = portllm.json("port", world.base, world.patch, "--out", out, "--as", "merged")
    assert done["out"] == str(out) and done["as"] == "merged"
    assert set(done["files"]) == {file.name for file in out.iterdir()}
    with torch.no_grad():
        expected = load_adapted(world.base, world.patch).merge_and_unload()(IDS).logits
        torch.testing.assert_close(load(out)(IDS).logits, expected, rtol=1e-4, atol=1e-4)
        assert not torch.allclose(load(world.base)(IDS).logits, expected, atol=1e-2)
    assert [entry.name for entry in tmp_path.iterdir() if "portllm" in entry.name] == []


def test_port_from_the_hub_is_an_adapter_of_that_commit(
    portllm: Portllm, world: World, tmp_path: Path
) -> None:
    out = tmp_path / "ported"
    shown = portllm("port", f"{BASE}@v1", PATCH, "--out", out)
    assert shown.startswith("file\tsha256\n") and "adapter_model.safetensors\t" in shown
    config = json.loads((out / "adapter_config.json").read_text())
    assert (config["base_model_name_or_path"], config["revision"]) == (BASE, world.base_sha)
    weights = "adapter_model.safetensors"
    assert (out / weights).read_bytes() == (world.patch / weights).read_bytes()


def test_port_writes_into_nothing_that_exists(
    portllm: Portllm, world: World, tmp_path: Path
) -> None:
    out = tmp_path / "ported"
    portllm("port", world.base, world.patch, "--out", out, "--as", "merged")
    before = {file.name: file.stat().st_mtime_ns for file in out.iterdir()}
    portllm("port", world.base, world.patch, "--out", out, "--as", "merged", code=2)
    assert "exists; name a new folder" in portllm.messages
    assert {file.name: file.stat().st_mtime_ns for file in out.iterdir()} == before


def test_an_adapter_needs_a_base_that_has_an_address(
    portllm: Portllm, world: World, tmp_path: Path
) -> None:
    portllm("port", world.base, world.patch, "--out", tmp_path / "ported", code=2)
    assert "--as merged" in portllm.messages and not (tmp_path / "ported").exists()


def test_a_patch_is_recorded_listed_and_shown(portllm: Portllm, world: World) -> None:
    assert portllm.json("patch", "list") == [] and portllm.messages == ""
    added = portllm.json("patch", "add", PATCH)
    assert portllm.messages == ""
    assert added["trained_on"] == f"{BASE}@{world.base_sha}" and added["evaluation"] == "sides"
    assert portllm.json("patch", "add", PATCH) == added
    assert portllm.json("patch", "list") == [added]
    shown = portllm.json("patch", "show", PATCH)
    assert shown["evaluation"]["count"] == ITEMS and shown["patch"] == added["patch"]
    assert "subscribe" not in portllm("patch", "add", PATCH) and "subscribe" in portllm.messages
    assert portllm("patch", "list").splitlines()[0] == "patch\tkind\ttrained on\tevaluation"


def test_a_subscription_is_made_seen_and_ended(recorded: Portllm, world: World) -> None:
    arguments = ("subscribe", PATCH, "--follow", BASE, "--to", PORTED, "--as", "adapter")
    made = recorded.json(*arguments)
    assert (made["to"], made["form"], made["state"]) == (PORTED, "adapter", "up to date")
    assert recorded.json("status") == [made] and recorded.json("ports") == []
    assert recorded("status").splitlines()[0] == "patch\tfollows\tto\tstate\twhy"
    ended = recorded.json("unsubscribe", PATCH)
    assert ended == [{"patch": PATCH, "followed": f"{BASE}@main", "to": PORTED}]
    assert recorded.json("status") == [] and recorded("status").count("\n") == 1
    assert "portllm subscribe" in recorded.messages


def test_whose_repo_is_not_ours_is_asked_and_we_are_told(recorded: Portllm, world: World) -> None:
    token = world.server.add_user("stranger")
    HfApi(world.server.endpoint, token).create_repo("stranger/theirs", exist_ok=True)
    for to, is_ours in ((PORTED, True), ("stranger/theirs", False)):
        recorded("subscribe", PATCH, "--follow", BASE, "--to", to)
        assert ("by pull requests" in recorded.messages) != is_ours


def trained(world: World, repo: str, **config: object) -> str:
    """The patch again, under another name, with another account of what it was trained on."""
    config_file = world.patch / "adapter_config.json"
    before = config_file.read_text()
    edit_json(config_file, **config)
    world.push(repo, world.patch, "A patch")
    config_file.write_text(before)
    return repo


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({"revision": None}, f"names no revision of {BASE}"),
        ({"revision": "main"}, f"names only the branch 'main' of {BASE}"),
        ({"base_model_name_or_path": None, "revision": None}, "--base REPO@REVISION"),
    ],
)
def test_what_a_patch_was_trained_on_is_asked_for_and_never_guessed(
    portllm: Portllm, world: World, config: dict[str, object], message: str
) -> None:
    repo = trained(world, f"owner/asked-{len(message)}", **config)
    portllm("patch", "add", repo, code=3)
    assert message in portllm.messages and "--base" in portllm.messages
    for moving in (BASE, f"{BASE}@main"):
        portllm("patch", "add", repo, "--base", moving, code=3)
        assert f"--base {moving} names" in portllm.messages
    assert portllm.json("patch", "list") == []
    for pinned in ("v1", world.base_sha[:7], world.base_sha):
        added = portllm.json("patch", "add", repo, "--base", f"{BASE}@{pinned}")
        assert added["trained_on"] == f"{BASE}@{world.base_sha}"


def test_a_tag_in_the_config_is_a_commit(portllm: Portllm, world: World) -> None:
    repo = trained(world, "owner/tagged", revision="v1")
    assert portllm.json("patch", "add", repo)["trained_on"] == f"{BASE}@{world.base_sha}"


def test_a_base_that_the_patch_does_not_fit_is_not_the_one(portllm: Portllm, world: World) -> None:
    other = raw_adapter(world.folder / "other", {"model.layers.0.self_attn.q_proj": (8, 8)})
    world.push("owner/other", other, "A patch of another base")
    portllm("patch", "add", "owner/other", "--base", f"{BASE}@v1", code=3)
    assert "q_proj" in portllm.messages and portllm.json("patch", "list") == []


def test_hub_serve_prints_how_to_use_it_and_serves(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "bot.cli", "hub", "serve", "--dir", str(tmp_path / "hub")]
    with subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=os.environ
    ) as hub:
        try:
            assert hub.stdout is not None
            line = hub.stdout.readline()
            match = re.fullmatch(
                r"export HF_ENDPOINT=(http://127\.0\.0\.1:\d+) HF_TOKEN=(\S+)\n", line
            )
            assert match is not None, line
            api = HfApi(endpoint=match[1], token=match[2])
            name = api.whoami()["name"]
            api.create_repo(f"{name}/model")
            assert requests.get(f"{match[1]}/{name}/model", timeout=30).status_code == 200
        finally:
            hub.send_signal(signal.SIGINT)
            rest, messages = hub.communicate(timeout=60)
    assert rest == "" and f"hf upload {name}/my-model" in messages
    assert "Traceback" not in messages and hub.returncode == 0
