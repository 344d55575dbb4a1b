"""The commands, each read from its module only when it is run: what they import takes seconds."""

import ast
from collections.abc import Iterator, Mapping
from importlib import import_module
from pathlib import Path
from typing import Any, cast

import typer
from typer.core import TyperCommand, TyperGroup

# As `portllm --help` shows them: panel, module of `bot.cli`, the commands that it has.
PANELS: dict[str, dict[str, tuple[str, ...]]] = {
    "Look at a patch, port it by hand": {
        "ports": ("inspect", "plan", "port"),
        "judging": ("judge", "rejudge"),
        "verify": ("verify",),
        "publishing": ("publish",),
    },
    "Keep patches up to date": {
        "patches": ("patch",),
        "subscriptions": ("subscribe", "unsubscribe"),
        "status": ("status", "ports", "show", "logs"),
        "controls": ("retry", "cancel", "pause", "resume", "rollback", "withdraw"),
        "running": ("bot", "worker"),
        "serving": ("serve",),
        "showcase": ("showcase",),
        "doctor": ("doctor",),
        "config": ("config", "validate-config"),
        "deploy": ("deploy",),
    },
    "Try it out": {"demo": ("demo",), "hub": ("hub",), "extension": ("hf-extension",)},
}
WHERE = {
    name: (module, panel)
    for panel, modules in PANELS.items()
    for module, names in modules.items()
    for name in names
}
QUIET = ("--quiet", "-q")


def help_of(name: str) -> str:
    """What the command says of itself, from the text of its module."""
    source = Path(__file__).with_name(f"{WHERE[name][0]}.py").read_text(encoding="utf-8")
    told = {
        node.name: ast.get_docstring(node) or ""
        for node in ast.parse(source).body
        if isinstance(node, ast.FunctionDef)
    }
    function = name.replace("-", "_")
    return next(told[each] for each in (function, f"{function}_", "_group") if each in told)


class Commands(TyperGroup):
    """The top of `portllm`. Help and completion read no module; a command reads its own."""

    def __init__(self, **attributes: Any) -> None:
        super().__init__(**attributes)
        self.commands = cast(Any, _Read())  # never written to

    def parse_args(self, ctx: typer.Context, args: list[str]) -> list[str]:  # type: ignore[override]  # Typer's Context for Click's
        """`--quiet` counts wherever it stands."""
        if any(word in QUIET for word in args):
            args = [QUIET[0], *(word for word in args if word not in QUIET)]
        return super().parse_args(ctx, args)

    def list_commands(self, ctx: Any) -> list[str]:
        return list(WHERE)

    def get_command(self, ctx: Any, name: str) -> Any:
        """What is known of a command without its module: enough for a line of help."""
        if name not in WHERE:
            return None
        return TyperCommand(name, help=help_of(name), rich_help_panel=WHERE[name][1])

    def resolve_command(self, ctx: Any, args: list[str]) -> Any:
        name, _, rest = super().resolve_command(ctx, args)
        return name, self.commands[name] if name else None, rest


class _Read(Mapping[str, Any]):
    """A command by its name; asking for it imports its module."""

    def __init__(self) -> None:
        self.read: dict[str, Any] = {}

    def __getitem__(self, name: str) -> Any:
        if name not in self.read:
            module, part = import_module(f"bot.cli.{WHERE[name][0]}"), typer.Typer()
            if hasattr(module, "add_to"):
                module.add_to(part)
            if hasattr(module, "app"):
                part.add_typer(module.app, rich_help_panel=WHERE[name][1])
            self.read[name] = typer.main.get_group(part).commands[name]
        return self.read[name]

    def __iter__(self) -> Iterator[str]:
        return iter(WHERE)

    def __len__(self) -> int:
        return len(WHERE)
