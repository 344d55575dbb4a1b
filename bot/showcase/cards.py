"""The README of the data set and of the Space: metadata, and a word on what it is."""

from collections.abc import Iterable
from typing import Any

from patch_cards.card import compose

TAG = "portllm"
DATASET = """
# The registry of PortLLM

Patches that are kept alive on the bases they follow, and what PortLLM found out about them. Public
records only.

```python
from datasets import load_dataset

ports = load_dataset("{repo}", "ports", split="train")
```

| table | a row is |
|---|---|
| `patches` | a patch at one commit, its class and the base it was trained on |
| `bases` | what is followed, and where it stands |
| `releases` | a step of a base, and what changed in it |
| `subscriptions` | a patch that follows a base, and where its ports go |
| `ports` | a patch on a release: state, verdict, and what each arm reached on the patch's task |

`old`, `new` and `port` are the means of the old base with the patch, the new base alone, and the
port, on the same `items`; `_low` and `_high` are the ends of their intervals. `moved` is how far
the base moved, in reaches of the patch.

"""
SPACE = """
# The registry of PortLLM

Patches that are kept alive on their bases, and the evidence. The records, to query:
[{dataset}](/datasets/{dataset}).

"""


def dataset_card(existing: str, repo: str, tables: Iterable[str]) -> str:
    """`datasets.load_dataset(repo, table)` loads each of `tables`."""
    configs = [
        {"config_name": table, "data_files": f"{table}.parquet"}
        | ({"default": True} if table == "ports" else {})
        for table in tables
    ]
    ours = {"pretty_name": "The registry of PortLLM", "configs": configs}
    return compose(existing, DATASET.format(repo=repo), lambda owners: _with(owners, ours))


def space_card(existing: str, dataset: str) -> str:
    ours = {"sdk": "static", "app_file": "index.html", "datasets": [dataset]}
    first = {"title": "Patches, ported", "emoji": "🩹", "colorFrom": "indigo", "colorTo": "green"}
    text = SPACE.format(dataset=dataset)
    return compose(existing, text, lambda owners: _with(first | owners, ours))


def _with(owners: dict[str, Any], ours: dict[str, Any]) -> dict[str, Any]:
    """The metadata with ours; of the tags, the owner's stay."""
    others = owners.get("tags")
    kept = [tag for tag in others if tag != TAG] if isinstance(others, list) else []
    return owners | ours | {"tags": [TAG, *kept]}
