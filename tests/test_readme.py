"""The README and the docs say only what the program has: commands, options, settings, targets."""

import re
import shlex
from pathlib import Path

import pytest
import typer

from bot.cli import app
from bot.settings import Settings

ROOT = Path(__file__).parents[1]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
COMMAND = re.compile(r"^(?:\$ )?portllm [^`\n]*$", re.MULTILINE)
GROUP = typer.main.get_command(app)


def commands(page: Path) -> list[str]:
    blocks = re.findall(r"^```\w*\n(.*?)^```", page.read_text(), re.DOTALL | re.MULTILINE)
    return [line for block in blocks for line in COMMAND.findall(block)]


def all_commands() -> list[tuple[str, str]]:
    return [(page.name, command) for page in PAGES for command in commands(page)]


@pytest.mark.parametrize(("page", "command"), all_commands())
def test_every_command_that_is_shown_parses(page: str, command: str) -> None:
    arguments = shlex.split(command)[1:]
    found = GROUP
    while hasattr(found, "commands"):
        name, *arguments = arguments
        found = found.commands[name]
    read = found.make_context(name, arguments)  # a wrong option or value raises
    assert read.params or not found.params


def test_every_command_is_in_the_docs() -> None:
    shown = " ".join(command for _, command in all_commands())
    names = []
    for name, command in GROUP.commands.items():
        below = getattr(command, "commands", None)
        names += [f"{name} {part}" for part in below] if below else [name]
    assert [name for name in names if f"portllm {name}" not in shown] == []


def test_every_setting_is_in_the_docs() -> None:
    page = (ROOT / "docs/bot.md").read_text()
    names = {f"PORTLLM_{name.upper()}" for name in Settings.model_fields}
    assert names == set(re.findall(r"`(PORTLLM_\w+)`", page.split("## Settings")[1]))


def test_it_is_installed_from_the_checkout_for_it_is_on_no_index() -> None:
    for file in (*PAGES, ROOT / "examples/README.md", *(ROOT / "bot").rglob("*.py")):
        assert not re.search(r"pip install[^\n`]*\bportllm\b", file.read_text()), file.name


def test_links_lead_somewhere() -> None:
    for page in PAGES:
        for target in re.findall(r"\]\(([^)#]+)\)", page.read_text()):
            if "://" not in target:
                assert (page.parent / target).exists(), f"{page.name} -> {target}"


def test_make_has_the_targets_of_the_readme() -> None:
    makefile = (ROOT / "Makefile").read_text()
    for target in re.findall(r"(?:`|^)make (\w+)", (ROOT / "README.md").read_text(), re.MULTILINE):
        assert f"\n{target}:" in makefile
