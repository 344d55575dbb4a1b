"""What changed between two releases, from identities and headers alone."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from porting import Folder, Refused, classify, plan
from tests import tiny


def set_config(**changes: object) -> Callable[[Path], None]:
    return lambda folder: tiny.edit_json(folder / "config.json", **changes)


def drop_config(key: str) -> Callable[[Path], None]:
    def edit(folder: Path) -> None:
        config = json.loads((folder / "config.json").read_text())
        del config[key]
        (folder / "config.json").write_text(json.dumps(config))

    return edit


def respell_dtype(folder: Path) -> None:
    config = json.loads((folder / "config.json").read_text())
    config["torch_dtype"] = config.pop("dtype")
    (folder / "config.json").write_text(json.dumps(config))


def write(file: str) -> Callable[[Path], None]:
    return lambda folder: (folder / file).write_text("changed") and None


def retrain(folder: Path) -> None:
    tiny.save_base(folder, seed=1, shard_size="30KB")


def recast(folder: Path) -> None:
    tiny.save_base(folder, dtype=torch.bfloat16, shard_size="30KB")
    set_config(dtype="float32")(folder)


def reshard(folder: Path) -> None:
    tensors: dict[str, torch.Tensor] = {}
    for shard in sorted(folder.glob("*.safetensors")):
        tensors |= load_file(shard)
        shard.unlink()
    (folder / "model.safetensors.index.json").unlink()
    save_file(tensors, folder / "model.safetensors")


def add_tensor(folder: Path) -> None:
    reshard(folder)
    tensors = load_file(folder / "model.safetensors")
    save_file(tensors | {"new.weight": torch.zeros(3)}, folder / "model.safetensors")


@pytest.mark.parametrize(
    ("edits", "kind", "said"),
    [
        ([], "nothing", "No file differs."),
        ([write("README.md")], "metadata", "README.md"),
        ([write("LICENSE"), write("logo.png")], "metadata", "LICENSE, logo.png"),
        ([write("pytorch_model.bin"), write("x.gguf")], "metadata", "x.gguf"),
        ([write("model.fp16.safetensors")], "metadata", "model.fp16.safetensors"),
        ([write(f"{name}.md") for name in "abcde"], "metadata", "a.md, b.md, c.md and 2 more"),
        ([set_config(transformers_version="9")], "metadata", "config.json"),
        ([respell_dtype], "metadata", "config.json"),
        ([write("tokenizer.json")], "tokenizer", "tokenizer.json changed."),
        ([write("chat_template.jinja")], "tokenizer", "chat_template.jinja"),
        ([write("generation_config.json")], "tokenizer", "generation_config.json"),
        ([set_config(eos_token_id=5)], "tokenizer", "eos_token_id"),
        ([retrain], "weights", "Same shapes, other values in 4 of 4 weight files."),
        ([retrain, write("README.md")], "weights", "Same shapes"),
        ([retrain, write("vocab.json")], "tokenizer", "vocab.json changed, and so did the weights"),
        ([reshard], "weights", "in other files"),
        ([recast], "shapes", "was F32 [96, 32] and is now BF16 [96, 32]"),
        ([add_tensor], "shapes", "1 tensors were added and 0 removed, new.weight among them"),
        ([add_tensor, write("tokenizer.json")], "shapes", "new.weight"),
        ([set_config(vocab_size=97)], "architecture", "vocab_size"),
        ([set_config(rope_parameters={"rope_theta": 1})], "architecture", "rope_parameters"),
        ([set_config(dtype="bfloat16")], "architecture", "dtype"),
        ([set_config(a_key_of_the_future=None)], "architecture", "a_key_of_the_future"),
        ([drop_config("hidden_act")], "architecture", "hidden_act"),
        ([write("modeling_x.py")], "architecture", "modeling_x.py"),
        ([retrain, set_config(vocab_size=97), add_tensor], "architecture", "vocab_size"),
    ],
)
def test_the_gravest_kind_wins(
    tmp_path: Path, edits: list[Callable[[Path], None]], kind: str, said: str
) -> None:
    old = tiny.save_base(tmp_path / "old", shard_size="30KB")
    new = shutil.copytree(old, tmp_path / "new")
    for edit in edits:
        edit(new)
    change = classify(Folder(old), Folder(new))
    assert change.kind == kind
    assert said in change.reason
    assert bool(change.files) == bool(edits)


def test_an_index_that_points_at_other_weights_is_no_metadata(tmp_path: Path) -> None:
    old = tiny.save_base(tmp_path / "old", shard_size="30KB")
    for shard in sorted(old.glob("*.safetensors")):
        shutil.copy(shard, old / f"other-{shard.name}")
    new = shutil.copytree(old, tmp_path / "new")
    index = new / "model.safetensors.index.json"
    index.write_text(index.read_text().replace('"model-', '"other-model-'))
    change = classify(Folder(old), Folder(new))
    assert (change.kind, change.files) == ("weights", ("model.safetensors.index.json",))


def test_no_weight_is_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    old = tiny.raw_base(tmp_path / "old", {"w": torch.zeros(1000, 1000)})
    new = tiny.raw_base(tmp_path / "new", {"w": torch.ones(1000, 1000)})
    read = 0
    original = Folder.read

    def counted(self: Folder, file: str, start: int, end: int) -> bytes:
        nonlocal read
        read += end - start
        return original(self, file, start, end)

    monkeypatch.setattr(Folder, "read", counted)
    assert classify(Folder(old), Folder(new)).kind == "weights"
    assert read < 200_000


def test_a_release_whose_weights_became_pickles_is_refused(tmp_path: Path) -> None:
    old = tiny.raw_base(tmp_path / "old", {"w": torch.zeros(2)})
    new = shutil.copytree(old, tmp_path / "new")
    (new / "model.safetensors").rename(new / "pytorch_model.bin")
    with pytest.raises(Refused, match="never pickles"):
        classify(Folder(old), Folder(new))


def grow(folder: Path, tokens: int = 4, rows: int = 4) -> None:
    """Append tokens to the tokenizer and rows to the embedding and the head, nothing else."""
    tokenizer = json.loads((folder / "tokenizer.json").read_text())
    for number in range(tokens):
        tokenizer["added_tokens"].append(
            {"id": tiny.VOCABULARY + number, "content": f"<new{number}>", "special": True}
        )
    (folder / "tokenizer.json").write_text(json.dumps(tokenizer))
    set_config(vocab_size=tiny.VOCABULARY + rows)(folder)
    reshard(folder)
    tensors = load_file(folder / "model.safetensors")
    for name in ("model.embed_tokens.weight", "lm_head.weight"):
        tensors[name] = torch.cat([tensors[name], torch.ones(rows, 32)])
    save_file(tensors, folder / "model.safetensors")


def retoken(change: Callable[[dict[str, Any]], object]) -> Callable[[Path], None]:
    def edit(folder: Path) -> None:
        grow(folder)
        tokenizer = json.loads((folder / "tokenizer.json").read_text())
        change(tokenizer)
        (folder / "tokenizer.json").write_text(json.dumps(tokenizer))

    return edit


@pytest.mark.parametrize(
    ("edit", "kind"),
    [
        (grow, "vocabulary"),
        (lambda folder: (grow(folder), write("README.md")(folder)), "vocabulary"),
        (lambda folder: grow(folder, rows=3), "vocabulary"),
        (lambda folder: grow(folder, tokens=0), "architecture"),
        (lambda folder: (grow(folder), write("chat_template.jinja")(folder)), "architecture"),
        (lambda folder: (grow(folder), set_config(rope_theta=9.0)(folder)), "architecture"),
        (lambda folder: (grow(folder), write("modeling.py")(folder)), "architecture"),
        (retoken(lambda t: t["model"]["vocab"].update(w0=2, w1=1)), "architecture"),
        (retoken(lambda t: t["model"]["vocab"].pop("w7")), "architecture"),
        (retoken(lambda t: t["added_tokens"][-1].update(id=5)), "architecture"),
        (retoken(lambda t: t.update(normalizer={"type": "Lowercase"})), "architecture"),
        (retoken(lambda t: t["model"].update(unk_token="w1")), "architecture"),
    ],
)
def test_a_vocabulary_that_only_grew_keeps_a_patchs_meaning(
    tmp_path: Path, edit: Callable[[Path], None], kind: str
) -> None:
    old, new = tmp_path / "old", tmp_path / "new"
    tiny.save_base(old, shard_size="30KB")
    tiny.save_tokenizer(old)
    shutil.copytree(old, new)
    edit(new)
    change = classify(Folder(old), Folder(new))
    assert change.kind == kind
    if kind == "vocabulary":
        assert "4 tokens were added" in change.reason
    patch = tiny.save_adapter(tmp_path / "patch", old, target_modules=["q_proj"])
    if edit.__name__ == "edit":
        with pytest.raises(Refused, match=r"tokenizer\.json .* Train the patch again"):
            plan(Folder(new), Folder(patch), as_="merged", old_base=Folder(old))
    else:
        assert plan(Folder(new), Folder(patch), as_="merged", old_base=Folder(old)).touched
