"""What changed between two releases, from identities and headers alone."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from porting import Folder, Refused, classify
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
