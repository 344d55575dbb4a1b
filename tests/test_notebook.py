"""The quickstart runs, from top to bottom, and its file holds no output."""

from pathlib import Path

import nbformat
from nbclient import NotebookClient

NOTEBOOK = Path(__file__).parents[1] / "examples/quickstart.ipynb"


def test_the_quickstart_runs_and_does_what_it_says() -> None:
    book = nbformat.read(NOTEBOOK, nbformat.NO_CONVERT)
    cells = [cell for cell in book.cells if cell.cell_type == "code"]
    assert all(not cell.outputs and cell.execution_count is None for cell in cells)
    place = {"metadata": {"path": str(NOTEBOOK.parents[1])}}
    NotebookClient(book, timeout=300, resources=place).execute()
    subscribed, _, asked, card, answered, loaded, found = map(told, cells[2:9])
    assert subscribed.count("has not moved since") == 2
    assert asked.count("\n  asked\n") == 2 and "/discussions/1" in asked
    assert "Verdict" in card and "How to load it" in card
    assert "me/tickets-now\n  published" in answered and "me/tone-now\n  declined" in answered
    assert "True" in loaded
    assert "'me/tone'" in found


def told(cell: nbformat.NotebookNode) -> str:
    """What a cell printed, and what it evaluates to."""
    texts = []
    for output in cell.outputs:
        data = output.get("data", {})
        texts.append(output.get("text", data.get("text/markdown", data.get("text/plain", ""))))
    return "\n".join(texts)
