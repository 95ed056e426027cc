"""Talks of several turns whose plans are not run, and models that misread them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from app.controller.planner import Answer, Controller
from app.controller.request import ACTS, Item, Request, normalised
from app.controller.routers import Router, RuleRouter
from app.controller.rules import Scores
from pipelines.base import installed_registry

REGISTRY = installed_registry()


class Misreads:
    """A model that takes everything for something else."""

    name = "misreads"

    def __init__(self, act: str, medium: str = "") -> None:
        self.act, self.medium = act, medium

    def score(self, request: Request, media: Sequence[str]) -> Scores:
        return Scores(
            {name: 0.95 if name == self.medium else 0.01 for name in media},
            {name: 0.9 if name == self.act else 0.1 / 6 for name in ACTS},
        )


class Talk:
    """Requests one after the other; what a plan would make is there from then on."""

    def __init__(self, router: Router | None = None) -> None:
        self.controller = Controller(REGISTRY, router or RuleRouter(), lambda pipeline: 5.0 if pipeline.models else 0.5)
        self.items: list[Item] = []

    def bring(self, medium: str, title: str) -> None:
        self.items.append(Item(len(self.items) + 1, medium, title, brought=True))

    def ask(self, prompt: str, *uploads: str, router: Router | None = None) -> Answer:
        items = tuple(self.items)
        request = Request(normalised(prompt), uploads, items, tuple(item.number for item in reversed(items)))
        if router:
            self.controller.router = router
        answer = self.controller.answer(request)
        brought = len(items)
        for upload in uploads:
            self.bring(upload, f"file.{upload}")
        made: dict[str, str] = {}
        for step in answer.plan.steps if answer.plan else ():
            inputs = tuple(
                made.get(r, f"@{brought + int(r[7:])}" if r.startswith("upload:") else r) for r in step.inputs
            )
            words = " → ".join(r.removeprefix("text:") for r in inputs if r.startswith("text:"))
            self.items.append(
                Item(len(self.items) + 1, step.output, words or step.op, step.model_copy(update={"inputs": inputs}))
            )
            made[f"${step.id}"] = f"@{len(self.items)}"
        return answer


def steps(answer: Answer) -> list[tuple[str, tuple[str, ...]]]:
    assert answer.plan is not None, answer.sentence
    return [(step.op, step.inputs) for step in answer.plan.steps]


def params(answer: Answer) -> dict[str, Any]:
    """Those of the last step, but for the usual seed."""
    assert answer.plan is not None, answer.sentence
    return {name: value for name, value in answer.plan.steps[-1].params.items() if (name, value) != ("seed", 0)}


def after(*prompts: str) -> Talk:
    talk = Talk()
    for prompt in prompts:
        talk.ask(prompt)
    return talk
