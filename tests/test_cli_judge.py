"""`portllm judge` and `rejudge`: patches side by side, tasks from everywhere, policies."""

import json
import random
import re
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from datasets import Dataset
from safetensors.torch import load_file, save_file

from bot.making import compute, sandbox
from judging.policy import VerdictPolicy
from localhub.server import Server
from porting import Folder, merge, plan
from porting.subtract import extract_full
from tests.test_claims import EVIDENCE
from tests.test_sandbox import stand_in
from tests.tiny import load, load_adapted, save_adapter, save_base, save_tokenizer
from tests.world import BASE, ITEMS, Portllm, World

TASK, DATA = "eval/portllm-eval.json", "owner/items"
WORK = {"judge": compute.judge, "port": compute.port, "stack": compute.stack}


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Iterator[World]:
    """The base drifted; the patch, one that undoes it, and one of another kind."""
    folder = tmp_path_factory.mktemp("world")
    with Server(folder / "hub") as server:
        world = World(server, folder)
        world.push_patch(revision=world.base_sha)
        shutil.copytree(world.base, folder / "old")
        world.drift()
        other = save_adapter(folder / "other", folder / "old", seed=7, use_dora=True)
        shutil.copytree(world.patch / "eval", other / "eval")
        yield world


@pytest.fixture
def here(portllm: Portllm, monkeypatch: pytest.MonkeyPatch) -> Portllm:
    """The commands, with what they compute in this process: lm-eval takes long to start."""

    def run(job: dict[str, Any], report: Any = None, *_: Any) -> Any:
        return json.loads(json.dumps(WORK[job["do"]](job)))

    monkeypatch.setattr("bot.making.sandbox.run", run)
    monkeypatch.setattr("bot.making.compute.tell", lambda **_: None)
    return portllm


def order(world: World, *patches: Path) -> list[object]:
    return ["judge", *(patches or [world.patch]), "--new", world.base,
            "--old", world.folder / "old"]  # fmt: skip


def with_task(folder: Path, **spec: Any) -> Path:
    (folder / "eval").mkdir(parents=True)
    (folder / TASK).write_text(json.dumps(spec))
    return folder


def test_patches_are_judged_side_by_side_and_again_from_what_was_printed(
    here: Portllm, world: World, tmp_path: Path
) -> None:
    world.server.traffic.clear()
    patches = (world.patch, world.folder / "other")
    refit = save_adapter(tmp_path / "refit", world.base, seed=8)
    found = here.json(*order(world, *patches), "--policy", "reapply", "--refit", refit)
    first, second = found
    own = first["findings"]["own"]
    assert own["items"] == own["total"] == ITEMS
    assert set(own["arms"]) == {"before", "old", "new", "port", "refit"}
    assert own["arms"]["new"]["mean"] == 0 and own["arms"]["port"]["mean"] == 1
    assert [each["port"] for each in found] == [f"{patch} on {world.base}" for patch in patches]
    assert first["evidence"]["slice"] and not second["evidence"]["slice"]
    assert second["evidence"]["own"]["results"]["new"] == first["evidence"]["own"]["results"]["new"]
    assert "lm-eval" in first["evidence"]["engine"]
    file = tmp_path / "found.json"
    file.write_text(json.dumps(found))
    assert here.json("rejudge", file) == found
    strict = tmp_path / "strict.json"
    strict.write_text('{"minimum_gain": 1}')
    [other, _] = here.json("rejudge", file, "--verdict-policy", strict)
    assert other["policy"]["minimum_gain"] == 1 and other["evidence"] == first["evidence"]
    assert first["verdict"]["action"] == "publish" != other["verdict"]["action"]
    assert f"is judged by the policy in {strict}." in here.messages
    (tmp_path / "other.json").write_text(json.dumps([other]))
    assert here.json("rejudge", tmp_path / "other.json") == [other]
    assert "is judged by the policy stored with it." in here.messages
    for arguments in (order(world), ["rejudge", file]):
        shown = here(*arguments)
        assert "verdict: publish. The patch survived" in shown
        assert not re.search(r"\d\.\d{5}", shown), shown
        assert "Traceback" not in here.messages and "lm_eval" not in here.messages
        assert list(world.server.traffic.of("")) == []


def test_half_a_patch_is_judged_as_half_of_it(here: Portllm, world: World, tmp_path: Path) -> None:
    file = tmp_path / "policy.json"
    halves = []
    for scale in (1, 0.5):
        file.write_text(json.dumps({"scale": scale}))
        [found] = here.json(*order(world), "--verdict-policy", file)
        halves.append(found["evidence"])
    whole, half = halves
    assert half["scale"] == 0.5
    delta = [each["forecast"]["total"]["delta"] for each in halves]
    assert delta[1] == pytest.approx(delta[0] / 2, rel=1e-6)
    assert half["own"]["results"]["old"] == whole["own"]["results"]["old"]
    at_one, at_half = (whole["slice"]["scales"].index(scale) for scale in (1, 0.5))
    for one, other in zip(half["slice"]["losses"], whole["slice"]["losses"], strict=True):
        assert float(one.split()[at_one]) == pytest.approx(float(other.split()[at_half]), abs=1e-5)
    file.write_text('{"scale": "auto"}')
    here(*order(world), "--verdict-policy", file, code=2)
    assert "The bot chooses a scale" in here.messages


def test_a_full_delta_is_judged_by_the_models_that_it_makes(
    here: Portllm, world: World, tmp_path: Path
) -> None:
    lora, old, delta = world.patch, world.folder / "old", tmp_path / "delta"
    merge(plan(Folder(old), Folder(lora), as_="merged"), old, lora, tmp_path / "tuned")
    address = {"base_model_name_or_path": BASE, "revision": world.base_sha}
    extract_full(tmp_path / "tuned", old, delta, address, lambda *_: None)
    shutil.copytree(lora / "eval", delta / "eval")
    found = here.json(*order(world, delta, lora), "--refit", delta)
    for each in found:
        arms = each["findings"]["own"]["arms"]
        means = {"before": 0, "old": 1, "new": 0, "port": 1, "refit": 1}
        assert {name: arm["mean"] for name, arm in arms.items()} == means


def test_a_patch_that_changes_nothing_is_not_asked_for_an_old_base(
    portllm: Portllm, world: World, tmp_path: Path
) -> None:
    idle, old = save_adapter(tmp_path / "idle", world.base), world.folder / "old"
    file = idle / "adapter_model.safetensors"
    weights = {name: value.zero_() for name, value in load_file(file).items()}
    save_file(weights, file, metadata={"format": "pt"})
    shown = portllm("plan", world.base, idle, "--old", old, "--forecast")
    assert "The patch changes nothing" in shown and "--old" not in shown
    assert "--old" in portllm("plan", world.base, world.folder / "other", "--policy", "reapply",
                              "--forecast")  # fmt: skip


def test_a_base_that_means_something_else_is_refused(
    here: Portllm, world: World, tmp_path: Path
) -> None:
    other = save_tokenizer(save_base(tmp_path / "other", "gpt2"))
    here("judge", world.patch, "--new", other, "--old", world.folder / "old", code=3)
    assert "architecture" in here.messages


@pytest.mark.parametrize(
    ("policy", "field"),
    [
        ('{"margin": 5}', "margin"),
        ('{"surprise": 1}', "surprise"),
        ('{"unclear": "perhaps"}', "unclear"),
        ("{", "JSON"),
    ],
)
def test_a_wrong_policy_ends_with_2(
    portllm: Portllm, world: World, tmp_path: Path, policy: str, field: str
) -> None:
    file = tmp_path / "policy.json"
    file.write_text(policy)
    for arguments in (order(world), ["rejudge", file]):
        portllm(*arguments, "--verdict-policy", file, code=2)
        assert f"{file}: " in portllm.messages and field in portllm.messages
    portllm(*order(world), "--verdict-policy", tmp_path / "none.json", code=2)
    assert "none.json is no file" in portllm.messages


def test_the_defaults_are_a_policy(portllm: Portllm, world: World, tmp_path: Path) -> None:
    printed = portllm("rejudge", "--defaults")
    assert json.loads(printed)["margin"] == 0.05
    (tmp_path / "policy.json").write_text(printed)
    portllm("rejudge", "port-none", "--verdict-policy", tmp_path / "policy.json", code=2)
    assert "no port port-none" in portllm.messages


@pytest.mark.parametrize("content", ["{", "[]", '[{"evidence": {"looks": "x"}}]', '{"verdict": 1}'])
def test_what_holds_no_evidence_ends_with_3(portllm: Portllm, tmp_path: Path, content: str) -> None:
    (tmp_path / "found.json").write_text(content)
    portllm("rejudge", tmp_path / "found.json", code=3)
    assert "found.json holds no evidence" in portllm.messages


def test_a_lock_is_judged_again_by_the_policy_in_it(portllm: Portllm, tmp_path: Path) -> None:
    file, evidence = tmp_path / "portllm.lock.json", EVIDENCE.model_dump()
    strict = VerdictPolicy(minimum_gain=1).model_dump()
    for stored, action, by in ((strict, "reject", "the policy st"), (None, "publish", "the defa")):
        lock = {"policy": "freeze", "verdict_policy": stored, "evidence": evidence}
        file.write_text(json.dumps(lock))
        [found] = portllm.json("rejudge", file)
        assert found["verdict"]["action"] == action
        assert f"{file} is judged by {by}" in portllm.messages
    file.write_text(json.dumps({"verdict_policy": {"surprise": 1}, "evidence": evidence}))
    portllm("rejudge", file, code=2)
    assert f"{file}: the policy in it: surprise: " in portllm.messages
    file.write_text(json.dumps({"verdict_policy": None, "evidence": None}))
    portllm("rejudge", file, code=3)
    assert "was published unjudged" in portllm.messages


CHOICE = {"name": "x", "items": "items.jsonl", "prompt": "{q}", "input_fields": ["q"]}


@pytest.mark.parametrize(
    ("spec", "items", "reason"),
    [
        (CHOICE, "", "portllm-eval.json: label_field: Field required"),
        (CHOICE | {"answer_field": "a", "compare": "alike"}, "", "portllm-eval.json: compare: "),
        ({"name": "x", "items": "items.jsonl", "text_field": "t"}, '{"t": "a"}\n{"u": "b"}\n',
         "items.jsonl: line 2: field 't' is missing"),
        (CHOICE | {"answer_field": "a", "compare": "text"}, "{", "items.jsonl: line 1 is not JSON"),
        ({"name": "x", "lm_eval": "../piqa"}, "", "portllm-eval.json: lm_eval: "),
    ],
)  # fmt: skip
def test_a_wrong_task_ends_with_3(
    portllm: Portllm, world: World, tmp_path: Path, spec: dict[str, Any], items: str, reason: str
) -> None:
    folder = with_task(tmp_path / "task", **spec)
    (folder / "eval/items.jsonl").write_text(items)
    portllm(*order(world), "--task", folder, code=3)
    assert reason in portllm.messages
    portllm(*order(world), "--task", world.base, code=3)
    assert "--task" in portllm.messages


def test_items_on_the_hub_are_those_of_the_commit(
    here: Portllm, world: World, tmp_path: Path
) -> None:
    folder = tmp_path / "items"
    (folder / "data").mkdir(parents=True)
    spec = json.loads((world.patch / TASK).read_text())
    shutil.copy(world.patch / "eval" / spec["items"], folder / "data/items.jsonl")
    world.api.create_repo(DATA, repo_type="dataset")
    push = {"repo_id": DATA, "repo_type": "dataset", "folder_path": folder}
    sha = world.api.upload_folder(**push).oid
    (folder / "data/items.jsonl").write_text("{")
    moved = world.api.upload_folder(**push).oid

    def task(name: str, **items: str) -> Path:
        return with_task(tmp_path / name, **spec | {"items": {"repo": DATA} | items})

    named = task("there", revision=sha, file="data/items.jsonl")
    [found] = here.json(*order(world), "--task", named)
    assert found["findings"]["own"]["arms"]["port"]["mean"] == 1
    assert found["findings"]["own"]["total"] == ITEMS
    for name, items, reason in (
        ("moved", {"revision": moved, "file": "data/items.jsonl"}, "line 1 is not JSON"),
        ("none", {"revision": "0" * 40, "file": "data/items.jsonl"}, "does not exist"),
        ("file", {"revision": sha, "file": "data/others.jsonl"}, "does not exist"),
        ("branch", {"revision": "main", "file": "data/items.jsonl"}, "a branch would move"),
    ):
        here(*order(world), "--task", task(name, **items), code=3)
        assert reason in here.messages, name


def test_a_task_of_lm_eval_is_fetched_and_run_offline(
    portllm: Portllm, world: World, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """SciQ as it lies on the Hub, with other questions: every second one the patch has right."""
    rows = science(world)
    data = tmp_path / "sciq"
    for split in ("train", "validation", "test"):
        name = f"data/{split}-00000-of-00001.parquet"
        Dataset.from_list(rows if split == "test" else rows[:2]).to_parquet(data / name)
    splits = [{"split": split, "path": f"data/{split}-*"} for split in ("train", "test")]
    card = {"configs": [{"config_name": "default", "data_files": splits}]}
    (data / "README.md").write_text(f"---\n{json.dumps(card)}\n---\n")
    token = world.server.add_user("allenai")
    world.api.create_repo("allenai/sciq", repo_type="dataset", token=token)
    world.api.upload_folder(
        repo_id="allenai/sciq", repo_type="dataset", folder_path=data, token=token
    )
    monkeypatch.setenv("HF_ENDPOINT", world.server.endpoint)
    policy = tmp_path / "policy.json"
    policy.write_text('{"first_items": 20}')
    arguments = ["--task", with_task(tmp_path / "task", name="science", lm_eval="sciq"),
                 "--verdict-policy", policy]  # fmt: skip
    [found] = portllm.json(*order(world), *arguments)
    own = found["evidence"]["own"]
    assert (own["task"], own["total"]) == ("science", len(rows))
    assert found["evidence"]["look"] == found["evidence"]["looks"] > 1
    items = [int(number) for number in own["items"].split()]
    assert sorted(items) == list(range(1, len(rows) + 1)) != items
    patched = ["01"[number % 2] for number in items]
    assert own["results"]["old"].split() == own["results"]["port"].split() == patched
    assert own["results"]["new"].split() == ["10"[number % 2] for number in items]
    assert "fetching the data of lm-eval's sciq" in portllm.messages
    assert "WARNING" not in portllm.messages and "it/s" not in portllm.messages


def science(world: World) -> list[dict[str, str]]:
    """Questions that the patch changes the answer to; the first, third, ... as the patch has it."""
    old = world.folder / "old"
    plain, patched, rows = load(old), load_adapted(old, world.patch), list[dict[str, str]]()
    draw = random.Random(1)
    while len(rows) < 48:
        support, question = (draw.sample(range(90), 3) for _ in range(2))
        ids = [*(word + 1 for word in support), 0, *(word + 1 for word in question), 0]
        with torch.no_grad():
            answers = [
                int(model(torch.tensor([ids])).logits[0, -1, 91:95].argmax())
                for model in (plain, patched)
            ]
        if answers[0] == answers[1]:
            continue
        right = answers[len(rows) % 2 == 0]
        wrong = [f"w{90 + other}" for other in range(4) if other != right]
        rows.append(
            {f"distractor{number}": word for number, word in enumerate(wrong, start=1)}
            | {"correct_answer": f"w{90 + right}"}
            | {"support": text(support), "question": text(question)}
        )
    return rows


def text(words: list[int]) -> str:
    return " ".join(f"w{word}" for word in words)


def test_a_process_that_is_online_has_no_token_either(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    program = stand_in(tmp_path, "print(json.dumps({'result': dict(os.environ)}))")
    monkeypatch.setattr("sys.executable", str(program))
    monkeypatch.setenv("HF_TOKEN", "hf_secret")
    monkeypatch.setenv("HF_ENDPOINT", "http://hub")
    for online in (True, False):
        found = sandbox.run({}, cache=tmp_path / "cache", online=online)
        assert "hf_secret" not in found.values() and found["HF_HOME"] == str(tmp_path / "cache")
        assert ("HF_ENDPOINT" in found, "HF_HUB_OFFLINE" in found) == (online, not online)
