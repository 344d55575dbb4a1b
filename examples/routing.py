"""The ticket-routing task: its tickets, its prompt, its labels, and how a model is scored on it."""

import json
from dataclasses import dataclass
from pathlib import Path

import torch
from transformers import PreTrainedTokenizerBase as Tokenizer

from examples.training import Item, padded

TASK = Path(__file__).parent / "ticket_routing"


@dataclass(frozen=True)
class Ticket:
    text: str
    team: str


@dataclass(frozen=True)
class Routing:
    """The evaluation that the patch declares in `portllm-eval.json`, tokenised.

    Every label is one token, so that a single forward pass scores them all.
    """

    prompt: str
    labels: dict[str, int]  # team -> token id
    tokenizer: Tokenizer

    def prompt_ids(self, ticket: Ticket) -> list[int]:
        ids: list[int] = self.tokenizer(self.prompt.format(text=ticket.text))["input_ids"]
        return ids

    def item(self, ticket: Ticket) -> Item:
        return Item(self.prompt_ids(ticket), [self.labels[ticket.team]])


def tickets(name: str) -> list[Ticket]:
    """Read `train.jsonl` or `heldout.jsonl`."""
    lines = (TASK / name).read_text(encoding="utf-8").splitlines()
    return [Ticket(**json.loads(line)) for line in lines]


def routing(tokenizer: Tokenizer) -> Routing:
    spec = json.loads((TASK / "portllm-eval.json").read_text(encoding="utf-8"))
    labels: dict[str, int] = {}
    for team, text in spec["labels"].items():
        (labels[team],) = tokenizer(text)["input_ids"]
    return Routing(spec["prompt"], labels, tokenizer)


@torch.no_grad()
def route(model: torch.nn.Module, task: Routing, items: list[Ticket], size: int = 16) -> list[str]:
    """Send every ticket to the team whose label is likeliest after the prompt."""
    model.eval()
    teams = list(task.labels)
    columns = torch.tensor([task.labels[team] for team in teams])
    prompts = [task.prompt_ids(ticket) for ticket in items]
    order = sorted(range(len(items)), key=lambda index: len(prompts[index]))
    answers = [""] * len(items)
    for start in range(0, len(order), size):
        chosen = order[start : start + size]
        ids, mask = padded([prompts[index] for index in chosen])
        lengths = mask.sum(dim=1)
        keep = int(ids.shape[1] - lengths.min() + 1)  # logits only where a prompt may end
        logits = model(input_ids=ids, attention_mask=mask, logits_to_keep=keep).logits
        last = logits[torch.arange(len(chosen)), lengths - 1 - ids.shape[1] + keep]
        for index, best in zip(chosen, last[:, columns].argmax(dim=1).tolist(), strict=True):
            answers[index] = teams[best]
    return answers


def accuracy(answers: list[str], items: list[Ticket]) -> float:
    """Share of tickets that reached their team."""
    pairs = zip(answers, items, strict=True)
    return sum(answer == ticket.team for answer, ticket in pairs) / len(items)
