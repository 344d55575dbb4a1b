"""A small world for the bot: a Hub, a base, and a patch that does something there.

The patch's items are those on which it changes the base's answer, and its own answer is the right
one: the base alone scores 0, base + patch scores 1, and both are still so after a small drift.
"""

import json
import os
import random
import subprocess
import sys
from dataclasses import dataclass, field
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from unittest import mock

import pytest
import torch
from huggingface_hub import HfApi
from safetensors.torch import load_file, save_file
from typer.testing import CliRunner

from bot import cli
from localhub.server import Server
from porting.errors import PortllmError
from tests.tiny import edit_json, load, load_adapted, save_adapter, save_base, save_tokenizer

BASE, PATCH, PORTED = "vendor/base", "owner/patch", "owner/ported"
LABELS = {"north": " w90", "south": " w91", "east": " w92", "west": " w93"}
LABEL_IDS = [91, 92, 93, 94]
ITEMS = 80


@dataclass
class Portllm:
    """`portllm` in this process, as the world's owner, with a registry of its own."""

    capture: pytest.CaptureFixture[str]
    monkeypatch: pytest.MonkeyPatch
    messages: str = field(default="", init=False)

    def __call__(self, *arguments: object, code: int = 0) -> str:
        """What it prints to stdout; `messages` has what went to stderr."""
        self.monkeypatch.setattr(sys, "argv", ["portllm", *map(str, arguments)])
        self.capture.readouterr()
        with pytest.raises(SystemExit) as end:
            cli.main()
        printed, self.messages = self.capture.readouterr()
        assert (end.value.code or 0) == code, f"{arguments}: {printed}\n{self.messages}"
        return printed

    def json(self, *arguments: object) -> Any:
        return json.loads(self(*arguments, "--json"))


class World:
    """`api` is the vendor's and the owner's client; commands run as the owner."""

    def __init__(self, server: Server, folder: Path) -> None:
        self.server, self.folder = server, folder
        token = server.add_user("owner", orgs=("vendor",))
        self.api = HfApi(endpoint=server.endpoint, token=token)
        self.environment = os.environ | {
            "HF_ENDPOINT": server.endpoint,
            "HF_TOKEN": token,
            "HF_HOME": str(folder / "hf"),
            "PORTLLM_HOME": str(folder / "home"),
            "OMP_NUM_THREADS": "1",
        }
        self.base = save_tokenizer(save_base(folder / "base"))
        self.patch = save_adapter(folder / "patch", self.base, r=4, lora_alpha=8)
        self.base_sha = self.push(BASE, self.base, "First release")

    def push(self, repo: str, folder: Path, message: str) -> str:
        self.api.create_repo(repo, exist_ok=True)
        return self.api.upload_folder(repo_id=repo, folder_path=folder, commit_message=message).oid

    def push_patch(self, golds: str | None = "patched", revision: str | None = None) -> str:
        """Push the patch, with an evaluation by which the `patched` or `own` answers are right."""
        config = self.patch / "adapter_config.json"
        pinned = {"base_model_name_or_path": BASE, "revision": revision}
        config.write_text(json.dumps(json.loads(config.read_text()) | pinned))
        if golds is not None:
            write_evaluation(self.patch, self.base, golds)
        return self.push(PATCH, self.patch, "A patch")

    def push_kind(self, name: str, **lora: Any) -> Path:
        """Push `owner/<name>`, an adapter of another kind whose every tensor was trained."""
        folder = save_adapter(self.folder / name, self.base, r=4, lora_alpha=8, **lora)
        file = folder / "adapter_model.safetensors"
        weights = load_file(file)
        for tensor, value in weights.items():
            if ".lora_" not in tensor:
                weights[tensor] = value + 0.3 * torch.randn(value.shape)
        save_file(weights, file, metadata={"format": "pt"})
        config = {"base_model_name_or_path": BASE, "revision": self.base_sha}
        edit_json(folder / "adapter_config.json", **config)
        self.push(f"owner/{name}", folder, "A patch")
        return folder

    def subscribed(self, form: str = "both", evaluated: bool = True) -> "World":
        """The patch recorded, pinned to the base, and subscribed."""
        self.push_patch("patched" if evaluated else None, revision=self.base_sha)
        self.portllm("patch", "add", PATCH)
        self.portllm("subscribe", PATCH, "--follow", BASE, "--to", PORTED, "--as", form)
        return self

    def drift(self, seed: int = 1) -> str:
        """A new release: every weight moved a little."""
        file = self.base / "model.safetensors"
        weights = load_file(file)
        torch.manual_seed(seed)
        moved = {name: w + 1e-3 * torch.randn(w.shape) for name, w in weights.items()}
        save_file(moved, file, metadata={"format": "pt"})
        return self.push(BASE, self.base, "Better weights")

    def portllm(
        self, *arguments: str, code: int = 0, script: str = "-m bot.cli"
    ) -> subprocess.CompletedProcess[str]:
        """A command; the bot and scripts in a process of their own, all others in this one."""
        if arguments[0] == "bot" or script != "-m bot.cli":
            done = subprocess.run(
                [sys.executable, *script.split(), *arguments],
                env=self.environment,
                capture_output=True,
                text=True,
                timeout=300,
            )
        else:
            done = self._here(arguments)
        assert done.returncode == code, f"{arguments}: {done.returncode}\n{done.stderr[-3000:]}"
        return done

    def _here(self, arguments: tuple[str, ...]) -> subprocess.CompletedProcess[str]:
        endpoint = SimpleNamespace(ENDPOINT=self.server.endpoint)
        with (
            mock.patch.dict(os.environ, self.environment),
            mock.patch("bot.hub.client.constants", endpoint),
        ):
            result = CliRunner().invoke(cli.app, list(arguments))
        code, said = result.exit_code, result.stderr
        if isinstance(result.exception, PortllmError):
            code, said = result.exception.exit_code, str(result.exception)
        elif result.exception is not None and not isinstance(result.exception, SystemExit):
            raise result.exception
        return subprocess.CompletedProcess(arguments, code, result.stdout, said)

    def json(self, *arguments: str) -> Any:
        return json.loads(self.portllm(*arguments, "--json").stdout)

    def commits(self, repo: str) -> list[str]:
        return [commit.title for commit in self.api.list_repo_commits(repo)]


def write_evaluation(patch: Path, base: Path, golds: str) -> None:
    plain, adapted = load(base), load_adapted(base, patch)
    draw, items = random.Random(0), []
    while len(items) < ITEMS:
        words = [draw.randrange(90) for _ in range(6)]
        ids = torch.tensor([[word + 1 for word in words] + [95]])
        own, patched = (_answer(model, ids) for model in (plain, adapted))
        if own != patched:
            text = " ".join(f"w{word}" for word in words)
            items.append({"text": text, "side": patched if golds == "patched" else own})
    spec = {
        "name": "sides",
        "items": "items.jsonl",
        "prompt": "{text} w94",
        "input_fields": ["text"],
        "label_field": "side",
        "labels": LABELS,
    }
    (patch / "eval").mkdir(exist_ok=True)
    (patch / "eval/portllm-eval.json").write_text(json.dumps(spec))
    (patch / "eval/items.jsonl").write_text("".join(json.dumps(item) + "\n" for item in items))


@torch.no_grad()
def _answer(model: torch.nn.Module, ids: torch.Tensor) -> str:
    return list(LABELS)[int(model(ids).logits[0, -1, LABEL_IDS].argmax())]
