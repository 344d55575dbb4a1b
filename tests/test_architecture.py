"""The house's own rules: arrows run one way, files stay small, nothing names a machine."""

import re
import sys
from pathlib import Path

import pytest
from importlinter.cli import lint_imports

ROOT = Path(__file__).parents[1]
PACKAGES = ("porting", "registry", "patch_cards", "bot", "localhub", "examples")
PRODUCT = sorted(file for name in PACKAGES for file in (ROOT / name).rglob("*.py"))
TEXT = (".py", ".md", ".toml", ".txt", ".j2", ".mako", ".svg", ".html", ".json", "")
MACHINE_PATH = re.compile(r"""(?<![\w./~:{}$-])/(?:home|Users|root|work|mnt)/[\w.-]+/""")


def test_imports_keep_the_contracts(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)
    monkeypatch.setattr(sys, "path", [str(ROOT), *sys.path])
    assert lint_imports(no_cache=True) == 0


def test_there_is_something_to_check() -> None:
    assert len(PRODUCT) > 50


@pytest.mark.parametrize("package", PACKAGES)
def test_no_file_is_longer_than_a_reader_can_hold(package: str) -> None:
    files = (ROOT / package).rglob("*.py")
    long = {str(f): n for f in files if (n := len(f.read_text().splitlines())) > 400}
    assert long == {}


def test_no_file_names_a_path_of_a_machine() -> None:
    folders = [ROOT / name for name in (*PACKAGES, "tests", "docs")]
    files = [file for folder in folders for file in folder.rglob("*")]
    files += [file for file in ROOT.iterdir() if not file.name.startswith(".")]
    texts = [f for f in files if f.is_file() and f.suffix in TEXT and "__pycache__" not in f.parts]
    found = {}
    for file in texts:
        if match := MACHINE_PATH.search(file.read_text()):
            found[str(file.relative_to(ROOT))] = match[0]
    assert found == {}


def test_a_path_of_a_machine_would_be_found() -> None:
    folder = "/".join(("", "home", "somebody", "src"))
    assert MACHINE_PATH.search(f"see {folder}/x.py")
    assert not MACHINE_PATH.search("https://example.com/home/page/x")
