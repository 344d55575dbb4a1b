"""A re-pointed adapter is the old one but for two fields, and loads where it points."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from porting import Folder, Refused, UsageError, repoint
from tests import tiny

COMMIT = "0123456789abcdef0123456789abcdef01234567"


def test_only_base_and_revision_change(tmp_path: Path) -> None:
    base = tiny.save_base(tmp_path / "base")
    patch = tiny.save_adapter(tmp_path / "patch", base, r=3, alpha_pattern={"q_proj": 0.1})
    for file in ("tokenizer.json", "chat_template.jinja", "LICENSE"):
        (patch / file).write_text(file)
    for file in ("optimizer.pt", "training_args.bin", "adapter_model.bin", "trainer_state.json"):
        (patch / file).write_text("stays behind")
    digests = repoint(patch, tmp_path / "out", "demo/base", COMMIT)

    out = tmp_path / "out"
    assert digests == {file: entry.digest for file, entry in Folder(out).files().items()}
    assert sorted(digests) == [
        "LICENSE",
        "adapter_config.json",
        "adapter_model.safetensors",
        "chat_template.jinja",
        "tokenizer.json",
    ]
    for file in digests.keys() - {"adapter_config.json"}:
        assert (out / file).read_bytes() == (patch / file).read_bytes()
    before = json.loads((patch / "adapter_config.json").read_text())
    after = json.loads((out / "adapter_config.json").read_text())
    assert list(after) == list(before)
    assert after == before | {"base_model_name_or_path": "demo/base", "revision": COMMIT}


def test_the_result_acts_on_the_new_base_as_the_patch_did(tmp_path: Path) -> None:
    old = tiny.save_base(tmp_path / "old", seed=1)
    new = tiny.save_base(tmp_path / "new", seed=2)
    patch = tiny.save_adapter(tmp_path / "patch", old)
    repoint(patch, tmp_path / "out", "demo/base", COMMIT)
    tokens = torch.arange(8)[None]
    with torch.no_grad():
        expected = tiny.load_adapted(new, patch)(tokens).logits
        assert torch.equal(tiny.load_adapted(new, tmp_path / "out")(tokens).logits, expected)


def test_a_field_that_was_not_there_is_added_last(tmp_path: Path) -> None:
    patch = tiny.raw_adapter(tmp_path / "patch", {"q": (8, 6)})
    config = json.loads((patch / "adapter_config.json").read_text())
    del config["revision"]
    (patch / "adapter_config.json").write_text(json.dumps(config))
    repoint(patch, tmp_path / "out", "gpt2", COMMIT)
    assert list(json.loads((tmp_path / "out" / "adapter_config.json").read_text())) == [
        *config,
        "revision",
    ]


@pytest.mark.parametrize("repo", ["", "a/b/c", "../x/y", "demo/base?x=1", "demo/ base"])
def test_a_name_that_is_no_repository_is_a_usage_error(tmp_path: Path, repo: str) -> None:
    patch = tiny.raw_adapter(tmp_path / "patch", {"q": (8, 6)})
    with pytest.raises(UsageError, match="not a repository"):
        repoint(patch, tmp_path / "out", repo, COMMIT)


@pytest.mark.parametrize("revision", ["main", "", COMMIT[:7], COMMIT.upper()])
def test_a_branch_is_no_revision(tmp_path: Path, revision: str) -> None:
    patch = tiny.raw_adapter(tmp_path / "patch", {"q": (8, 6)})
    with pytest.raises(UsageError, match="40-digit commit"):
        repoint(patch, tmp_path / "out", "demo/base", revision)


def test_a_refused_patch_leaves_nothing(tmp_path: Path) -> None:
    patch = tiny.raw_adapter(tmp_path / "patch", {"q": (8, 6)}, use_dora=True)
    with pytest.raises(Refused, match="use_dora"):
        repoint(patch, tmp_path / "out", "demo/base", COMMIT)
    assert [path.name for path in tmp_path.iterdir()] == ["patch"]


def test_what_a_crash_left_is_not_published(tmp_path: Path) -> None:
    patch = tiny.raw_adapter(tmp_path / "patch", {"q": (8, 6)})
    (tmp_path / ".out.partial").mkdir()
    (tmp_path / ".out.partial" / "stray").write_text("from another patch")
    repoint(patch, tmp_path / "out", "demo/base", COMMIT)
    assert not (tmp_path / "out" / "stray").exists()


def test_planning_and_repointing_import_neither_torch_nor_transformers(tmp_path: Path) -> None:
    base = tiny.raw_base(tmp_path / "base", {"q.weight": torch.zeros(8, 6)})
    patch = tiny.raw_adapter(tmp_path / "patch", {"q": (8, 6)})
    script = """if True:
        import sys
        from pathlib import Path
        from porting import Folder, classify, merge, plan, repoint
        base, patch, out = map(Path, sys.argv[1:])
        plan(Folder(base), Folder(patch), as_="merged")
        classify(Folder(base), Folder(base))
        repoint(patch, out, "demo/base", "a" * 40)
        heavy = {"torch", "transformers", "peft", "numpy", "safetensors"} & sys.modules.keys()
        sys.exit(", ".join(heavy) or 0)
    """
    command = [sys.executable, "-c", script, str(base), str(patch), str(tmp_path / "out")]
    assert subprocess.run(command, capture_output=True, text=True).stderr == ""
