"""Tasks of lm-eval, by their names there. Their data are on the Hub, and fetched before.

No code comes with them: `datasets` runs none since version 4, and `evaluate` is turned off.
"""

import hashlib
import json
from functools import cache
from typing import Any

import evaluate
from lm_eval.api.task import ConfigurableTask
from lm_eval.tasks import TaskManager

from porting.errors import Refused

RIGHT = ("acc", "exact_match", "em")  # what lm-eval calls an item's being right
SEED = 1234


def _no_code(*_: Any, **__: Any) -> None:
    raise RuntimeError("its metric is a program on the Hub or in this folder")


evaluate.load = _no_code


_manager = cache(TaskManager)  # reads what lm-eval has: seconds


@cache
def named(name: str) -> ConfigurableTask:
    """The task, with its data. Raises Refused where there is none that can be judged by."""
    manager = _manager()
    if name not in manager.all_subtasks:
        kind = "a group of tasks; name one of them" if name in manager.all_tasks else "unknown"
        raise Refused(f"lm-eval has no task {name!r}: it is {kind}.")
    try:
        task = manager.load(name)["tasks"][name]
    except (OSError, ValueError, RuntimeError, ImportError) as error:
        why = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise Refused(f"lm-eval's task {name!r} can't be loaded: {why[:300]}") from error
    if getattr(task, "UNSAFE_CODE", False) or getattr(task, "MULTIMODAL", False):
        raise Refused(f"lm-eval's task {name!r} runs what a model writes, or needs pictures.")
    if not set(RIGHT) & set(task.aggregation()):
        said = ", ".join(RIGHT)
        raise Refused(f"lm-eval's task {name!r} does not say which items are right ({said}).")
    _ask_all_alike(task)
    return task


def _ask_all_alike(task: ConfigurableTask) -> None:
    """Draw the same examples for every item: lm-eval's depend on what was asked before it."""
    plain = task.fewshot_context

    def seeded(*args: Any, **kwargs: Any) -> Any:
        task.set_fewshot_seed(SEED)
        return plain(*args, **kwargs)

    task.fewshot_context = seeded


def data_digest(name: str) -> str:
    """The sha256 of the items, which a name does not pin. Fetches them where the Hub may be asked.

    Raises Refused as `named`.
    """
    digest = hashlib.sha256()
    for item in named(name).eval_docs:
        digest.update(json.dumps(item, sort_keys=True, default=str).encode() + b"\n")
    return digest.hexdigest()
