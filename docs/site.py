"""For MkDocs: the README as home, the commands as they are, and what the docs link to elsewhere."""

import os
import re
from pathlib import Path
from typing import Any

import typer
from mkdocs.structure.files import File
from typer.cli import get_docs_for_click
from typer.core import TyperGroup

from bot.cli import app

ROOT = Path(__file__).parents[1]
DOCS = ROOT / "docs"
HOME = "index.md"
LINK = re.compile(r"(?<=\]\()([^)#:]+)(?=[)#])")


def on_files(files: Any, config: Any) -> Any:
    files.append(File.generated(config, "commands.md", content=commands()))
    files.append(File.generated(config, HOME, abs_src_path=str(ROOT / "README.md")))
    todo, known = [ROOT / "README.md", *DOCS.glob("*.md")], {ROOT / "README.md", *DOCS.rglob("*")}
    while todo:
        page = todo.pop()
        linked = {(page.parent / link).resolve() for link in LINK.findall(page.read_text())}
        for path in sorted(linked - known):
            if path.is_file():
                known.add(path)
                files.append(File.generated(config, _uri(path), abs_src_path=str(path)))
                todo += [path] if path.suffix == ".md" else []
    return files


def commands() -> str:
    lazy = typer.main.get_group(app)
    for command in lazy.commands.values():  # which would be cut short
        command.short_help = (command.help or "").partition("\n\n")[0].replace("\n", " ")
    group = TyperGroup(help=lazy.help, params=lazy.params, commands=dict(lazy.commands))
    return get_docs_for_click(obj=group, ctx=typer.Context(group), name="portllm")


def on_page_markdown(markdown: str, page: Any, **_: Any) -> str:
    """Links as they are in the site, where what is in docs/ stands one step higher."""
    if page.file.abs_src_path is None:  # generated
        return markdown
    folder = Path(page.file.abs_src_path).parent
    here = Path(page.file.src_uri).parent

    def moved(link: re.Match[str]) -> str:
        return os.path.relpath(_uri((folder / link[1]).resolve()), here)

    return LINK.sub(moved, markdown)


def _uri(path: Path) -> str:
    """Where what is at `path` stands in the site."""
    if path == ROOT / "README.md":
        return HOME
    return path.relative_to(ROOT).as_posix().removeprefix("docs/")
