"""How a forecast is shown: a sentence, the figures, and the tensors that moved most."""

from typing import Any

from bot.cli.output import message, print_fields, print_table

SHOWN = 10  # modules; --json has them all


def print_forecast(found: dict[str, Any]) -> None:
    total, modules = found["total"], found["modules"]
    print(meaning(total))
    print_fields({name: _figure(value) for name, value in total.items()})
    if total["ratio"] is None:
        return
    compared = [
        (name, figures) for name, figures in modules.items() if figures["ratio"] is not None
    ]
    compared.sort(key=lambda item: -item[1]["ratio"])
    columns = ("ratio", "cosine", "row_share", "column_share", "lost", "intruders")
    rows = [(name, *(_figure(of[column]) for column in columns)) for name, of in compared]
    print_table(("tensor", *columns), rows[:SHOWN])
    if len(rows) > SHOWN:
        message(f"... and {len(rows) - SHOWN} more tensors, which moved less (--json has them all)")


def meaning(total: dict[str, Any]) -> str:
    if total["delta"] and total["drift"] is None:
        return "How far the base moved is not known: name the old base with --old."
    if total["ratio"] is None:
        return "The patch changes nothing, so there is nothing to hold the base's move against."
    told = f"The base moved {total['ratio']:.2g} times as far as the patch reaches"
    if total["row_share"] is None:
        return f"{told}."
    rows, columns = (
        f"{total[f'{side}_share']:.1%} ({total[f'{side}_chance']:.1%} expected by chance)"
        for side in ("row", "column")
    )
    return (
        f"{told}; of that movement, {rows} is in inputs that the patch reads, and {columns} in "
        "outputs that it writes."
    )


def _figure(value: float | int | None) -> str:
    return "unknown" if value is None else f"{value:.3g}"
