"""The hub through programs that read HF_ENDPOINT: the `hf` command, transformers and peft."""

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from huggingface_hub import HfApi

from localhub.server import Server, first_token


@pytest.fixture
def env(hub: Server, tmp_path: Path) -> dict[str, str]:
    """An environment in which a stock client takes the hub for the Hub."""
    return {
        **{name: value for name, value in os.environ.items() if not name.startswith("HF_")},
        "HF_ENDPOINT": hub.endpoint,
        "HF_TOKEN": hub.add_user("alice"),
        "HF_HOME": str(tmp_path / "hf"),
        "HF_HUB_DISABLE_TELEMETRY": "1",
        "HF_HUB_DISABLE_UPDATE_CHECK": "1",
        "HF_HUB_DISABLE_PROGRESS_BARS": "1",
        "OMP_NUM_THREADS": "1",
        "NO_COLOR": "1",
    }


def run(env: dict[str, str], *command: str, cwd: Path | None = None) -> str:
    done = subprocess.run(command, env=env, cwd=cwd, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def test_hf_command(hub: Server, env: dict[str, str], tmp_path: Path) -> None:
    def hf(*args: str) -> str:
        return run(env, str(Path(sys.executable).with_name("hf")), *args)

    folder = tmp_path / "folder"
    (folder / "sub").mkdir(parents=True)
    (folder / "sub" / "model.safetensors").write_bytes(os.urandom(300_000))
    (folder / "README.md").write_text("---\nlicense: mit\n---\n# Hi\n")
    assert "alice" in hf("auth", "whoami")
    hf("repos", "create", "m")
    hf("upload", "alice/m", str(folder), ".", "--commit-message", "By hand")
    hf("download", "alice/m", "--local-dir", str(tmp_path / "back"))
    for path in ("sub/model.safetensors", "README.md"):
        assert (tmp_path / "back" / path).read_bytes() == (folder / path).read_bytes()
    hf("upload", "alice/m", str(folder / "README.md"), "copy.md", "--create-pr")
    hf("repos", "tag", "create", "alice/m", "v1")
    api = HfApi(endpoint=hub.endpoint, token=env["HF_TOKEN"])
    assert api.model_info("alice/m", revision="v1").tags == [
        "safetensors",
        "license:mit",
        "region:us",
    ]
    assert api.get_discussion_details("alice/m", 1).status == "open"
    hf("repos", "delete", "alice/m", "--yes")
    assert not api.repo_exists("alice/m")


SERVE = """
import sys
from pathlib import Path
from localhub.server import first_token, serve

root = Path(sys.argv[1])
serve(root, "127.0.0.1", 0, lambda endpoint: print(endpoint, *first_token(root), flush=True))
"""


def test_a_hub_of_its_own_process(tmp_path: Path) -> None:
    command = [sys.executable, "-c", SERVE, str(tmp_path / "hub")]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as process:
        assert process.stdout and process.stderr
        endpoint, user, token = process.stdout.readline().decode().split()
        api = HfApi(endpoint=endpoint, token=token)
        assert api.create_repo("m").repo_id == f"{user}/m"
        process.send_signal(signal.SIGINT)
        assert process.wait(timeout=20) == 0
        assert process.stderr.read() == b""
    assert first_token(tmp_path / "hub") == (user, token)


LIBRARIES = """
import torch
from huggingface_hub import HfApi
from peft import LoraConfig, PeftModel, get_peft_model
from transformers import AutoModelForCausalLM, LlamaConfig, LlamaForCausalLM

torch.manual_seed(0)
config = LlamaConfig(hidden_size=32, intermediate_size=64, num_hidden_layers=1,
                     num_attention_heads=2, num_key_value_heads=2, vocab_size=64)
base = LlamaForCausalLM(config)
base.push_to_hub("alice/base")
sha = HfApi().model_info("alice/base").sha
loaded = AutoModelForCausalLM.from_pretrained("alice/base", revision=sha)
assert all(torch.equal(a, b) for a, b in zip(base.parameters(), loaded.parameters()))

loaded.name_or_path = loaded.config._name_or_path = "alice/base"
patched = get_peft_model(loaded, LoraConfig(r=2, init_lora_weights=False, task_type="CAUSAL_LM"))
inputs = torch.arange(8)[None]
expected = patched(inputs).logits
patched.push_to_hub("alice/patch")
again = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained("alice/base"), "alice/patch")
assert torch.allclose(again(inputs).logits, expected, atol=1e-6)

# push_to_hub writes a card of its own over PEFT's, which is the one that names the base
patched.save_pretrained("adapter")
HfApi().upload_folder(repo_id="alice/patch", folder_path="adapter")
found = [model.id for model in HfApi().list_models(filter="base_model:adapter:alice/base")]
assert found == ["alice/patch"], found
assert HfApi().model_info("alice/patch").library_name == "peft"
print("done")
"""


def test_transformers_and_peft(env: dict[str, str], tmp_path: Path) -> None:
    assert run(env, sys.executable, "-c", LIBRARIES, cwd=tmp_path).endswith("done\n")
