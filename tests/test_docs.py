"""The site of the docs: built in strict mode, whole, with no foreign host; its Python runs."""

import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from localhub.server import Server
from tests.test_cli import COMMANDS
from tests.world import BASE, PATCH, PORTED, Portllm, World

ROOT = Path(__file__).parents[1]
NAMES = {
    "org/base-model@1a2b3c4": f"{BASE}@v1",
    "org/base-model": BASE,
    "me/my-lora-ported": PORTED,
    "me/my-lora": PATCH,
    "me/my-model": "owner/by-hand",
    "me/nothing": "owner/nothing",
    'owner="me"': 'owner="owner"',
}


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Iterator[World]:
    folder = tmp_path_factory.mktemp("world")
    with Server(folder / "hub") as server:
        world = World(server, folder)
        world.push_patch(golds=None, revision=world.base_sha)
        world.api.create_tag(BASE, tag="v1")
        yield world


def test_the_site_is_whole_and_asks_no_other_host(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--site-dir", str(tmp_path)]
    built = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=300)
    assert built.returncode == 0, built.stderr
    assert 'not included in the "nav"' not in built.stderr, built.stderr
    pages = {page.parent.name or "": page.read_text() for page in tmp_path.rglob("index.html")}
    for page in pages.values():
        assert (
            re.findall(r"""<(?:link|script|img)[^>]+(?:src|href)=["']?(?:https?:)?//""", page) == []
        )
    shown = pages["commands"]
    for path, command in COMMANDS.items():
        section = shown.partition(f'id="portllm-{path.replace(" ", "-")}"')[2].partition("<h")[0]
        for option in (option for each in command.params for option in each.opts):
            assert not option.startswith("--") or option in section, f"{path} {option}"


def test_the_python_of_the_docs_runs(
    portllm: Portllm, world: World, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    portllm("publish", BASE, PATCH, "--to", "owner/by-hand")
    monkeypatch.chdir(tmp_path)
    text = (ROOT / "docs/python.md").read_text()
    blocks = re.findall(r"^```python\n(.*?)^```", text, re.DOTALL | re.MULTILINE)
    told: list[str] = []
    scope = {"print": lambda *words: told.append(" ".join(map(str, words)))}
    for block in blocks:
        for name, ours in NAMES.items():
            block = block.replace(name, ours)
        exec(compile(block, "docs/python.md", "exec"), scope)
    said = "\n".join(told)
    assert "tensors" in told[0] and "q_proj.weight" in said
    assert f"lora {world.base_sha}" in said
    assert re.search(rf"^{PATCH}@\w+ up to date .* None$", said, re.MULTILINE)
    assert "model.safetensors True" in said
    assert told[-1].startswith("owner/nothing@main does not exist")
    assert (tmp_path / "ported/model.safetensors").exists()
