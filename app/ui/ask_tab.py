"""Ask for anything in plain words: a chat that shows its plans, runs them, and goes on from what they made."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from typing import Any

import gradio as gr

from app.assistant import Assistant
from app.studio import InternalError, Studio, reporting
from app.ui import ask_markup
from app.ui.host import Host
from app.ui.kept import kept, restored
from app.ui.markup import underway
from app.ui.notices import LIGHT, telling
from app.ui.plan_editor import COME_INTO_VIEW, QUICK, PlanEditor
from app.ui.talk import Talk
from app.ui.viewer import Viewer
from models.errors import UserError
from pipelines.base import Progress

ASK_LANE = "ask"
TALKS_AT_ONCE = 8  # they wait for the Studio's single lane in turn, and are told so there
SECONDS_BETWEEN_LOOKS = 0.12
Updates = dict[Any, Any]

# Gradio gives the box no name that a screen reader could tell.
NAME_THE_BOX = """() => {
  document.querySelector(".composer textarea")?.setAttribute("aria-label", "Your request");
}"""

# Shows at once that a request has been taken; the answer, or a complaint, takes its place.
READING = f"() => {json.dumps(underway(Progress(0, 0, 'Reading your request')))}"

# While something is open over the page, the keyboard stays with it, and goes back to where it was afterwards.
LIGHT_UP = """() => {
  const box = document.querySelector(".lightbox");
  if (!box.querySelector(".stage")) return;  // it could not be opened, and nothing is over the page
  const talk = document.querySelector(".ask");
  const leave = box.querySelector("button.leave");
  const opener = document.activeElement;
  const escape = (press) => press.key === "Escape" && leave.click();
  box.setAttribute("role", "dialog");
  box.setAttribute("aria-label", "Full size");
  talk.inert = true;
  leave.focus();
  document.addEventListener("keydown", escape);
  leave.addEventListener("click", () => {
    document.removeEventListener("keydown", escape);
    talk.inert = false;
    opener?.focus();
  }, { once: true });
}"""
LEAVE = """() => document.querySelector(".lightbox:has(.stage) button.leave")?.click()"""

# A browser's tab keeps its own conversation: two tabs are two conversations, and a new one begins empty.
KEEP = """(kept) => { try { sessionStorage.setItem("synesthete-talk", kept); } catch { /* full, or forbidden */ } }"""
RECALL = """(talk) => {
  let kept = null;
  try { kept = sessionStorage.getItem("synesthete-talk"); } catch { /* forbidden */ }
  return [talk, kept ?? ""];
}"""


class AskTab:
    """The conversation, the composer below it, and what opens over it, made where it is constructed in a Blocks."""

    def __init__(self, studio: Studio, assistant: Assistant) -> None:
        self._studio = studio
        self._host = Host(assistant)
        self._pipelines = {pipeline.name: pipeline for pipeline in studio.registry}
        self._talk = gr.State(Talk())
        with gr.Column(elem_classes=["ask"]):
            self.log = gr.HTML(self._shown(Talk()), js_on_load=ask_markup.SCRIPT, apply_default_css=False)
            self._editor = PlanEditor(self._host, self._talk)
            with gr.Column(elem_classes=["composer"]):
                self._said = gr.HTML(apply_default_css=False)
                self._box = gr.MultimodalTextbox(
                    placeholder="Say what you want",
                    show_label=False,
                    label="Your request",
                    file_count="multiple",
                    lines=1,
                    max_lines=8,
                    submit_btn=True,
                    stop_btn=False,
                    elem_classes=["box"],
                )
        with gr.Column(elem_classes=["lightbox"]):
            self._leave = gr.Button("Close", size="sm", min_width=0, elem_classes=["leave"])
            self.viewer = Viewer(studio, "Object")
        self._kept = gr.Textbox("", visible=False)
        self._connect()

    def _shown(self, talk: Talk) -> str:
        return ask_markup.conversation(talk, self._pipelines, self._host.examples)

    def _connect(self) -> None:
        answered = [self.log, self._said, self._box, self._kept]
        for asking in (self._box.submit, self.log.say, self.log.choose, self.log.vary):
            asking(None, outputs=[self._said], js=READING, api_visibility="private")
        begun = [
            self._box.submit(self._on_submit, [self._talk, self._box], answered, **LIGHT),
            self.log.say(self._on_say, [self._talk], answered, **LIGHT),
            self.log.choose(self._on_choose, [self._talk], answered, **LIGHT),
            self.log.vary(self._on_vary, [self._talk], answered, **LIGHT),
            self.log.go(self._on_go, [self._talk], answered, **LIGHT),
            self._editor.order.change(self._look, [self._talk], answered, **LIGHT),
        ]
        for dependency in begun:
            run = dependency.then(
                self._run,
                [self._talk],
                answered,
                concurrency_id=ASK_LANE,
                concurrency_limit=TALKS_AT_ONCE,
                show_progress="hidden",
                api_visibility="private",
            )
            run.failure(self._on_turned_away, [self._talk], answered, **LIGHT)
        self._kept.change(None, [self._kept], js=KEEP, api_visibility="private")
        self.log.anew(self._on_anew, [self._talk], [*answered, self._editor.editing], **QUICK)
        self._box.stop(self._on_stop, [self._talk], answered, **LIGHT)
        adjusting = self.log.adjust(telling(self._on_adjust), [self._talk], [self._editor.editing], **QUICK)
        adjusting.then(None, js=COME_INTO_VIEW, api_visibility="private")
        opened = self.log.open(telling(self._on_open), None, self.viewer.outputs, **LIGHT)
        opened.then(None, js=LIGHT_UP, api_visibility="private")
        for elsewhere in (self.viewer.stage.remix, self.viewer.stage.vary, self.viewer.stage.refine):
            elsewhere(None, js=LEAVE, api_visibility="private")
        self._leave.click(self._on_leave, None, self.viewer.outputs, **LIGHT)

    def begin(self, page: gr.Blocks, tab: gr.Tab) -> None:
        """Have the conversation restored when the page is loaded, and the box named whenever it is drawn anew."""
        gr.on([page.load, tab.select], None, js=NAME_THE_BOX, api_visibility="private")
        there = [self.log, self._said, self._box, self._kept]
        page.load(self._on_load, [self._talk, self._kept], there, js=RECALL, **LIGHT)
        page.load(self._host.assistant.warm, **LIGHT)

    def _on_load(self, talk: Talk, text: str | None) -> Any:
        """What the browser kept, in the talk again; somebody may have gone on with it by now."""
        if talk.turns or not text:
            return gr.skip()
        try:
            with reporting():
                before = restored(text, self._host)
        except (UserError, InternalError) as error:
            return {self._said: ask_markup.complaint(error)}
        if talk.turns:
            return gr.skip()
        talk.become(before)  # not another talk instead: a request may be being answered in this one
        return self._look(talk)

    def _on_anew(self, talk: Talk) -> Updates:
        return {self._editor.editing: None} | self._answered(talk, lambda: self._host.begin_anew(talk))

    def _on_submit(self, talk: Talk, box: dict[str, Any]) -> Updates:
        words, files = box["text"], box["files"]
        if not words.strip() and not files:
            return {self._said: ""}
        return self._answered(talk, lambda: self._host.take(talk, words, files), empties=True)

    def _on_say(self, talk: Talk, event: gr.EventData) -> Updates:
        return self._answered(talk, lambda: self._host.take(talk, event.entry, []))

    def _on_choose(self, talk: Talk, event: gr.EventData) -> Updates:
        number, index = map(int, event.entry.split(":"))
        return self._answered(talk, lambda: self._host.choose(talk, number, index))

    def _on_vary(self, talk: Talk, event: gr.EventData) -> Updates:
        return self._answered(talk, lambda: self._host.vary(talk, event.entry))

    def _on_go(self, talk: Talk, event: gr.EventData) -> Updates:
        return self._answered(talk, lambda: self._host.go(talk, int(event.entry)))

    def _on_stop(self, talk: Talk) -> Any:
        """What runs says its last word by itself; an answer from here could come after it and show what was before."""
        self._host.stop(talk)
        return gr.skip() if talk.busy else self._look(talk)

    def _on_turned_away(self, talk: Talk) -> Updates:
        self._host.turned_away(talk)
        return self._look(talk)

    def _answered(self, talk: Talk, act: Any, empties: bool = False) -> Updates:
        """The updates after ``act`` changed the talk; where it could not, what was typed stays."""
        try:
            with reporting():
                act()
        except (UserError, InternalError) as error:
            return {self._said: ask_markup.complaint(error)}
        return self._look(talk) | ({self._box: self._composer(talk, {"text": "", "files": []})} if empties else {})

    def _look(self, talk: Talk) -> Updates:
        return {
            self.log: self._shown(talk),
            self._said: "",
            self._box: self._composer(talk),
            self._kept: kept(talk),
        }

    def _composer(self, talk: Talk, value: Any = None) -> gr.MultimodalTextbox:
        """Send, or Stop while something is made; its words stay unless there is a ``value``."""
        given = {"value": value} if value is not None else {}
        return gr.MultimodalTextbox(submit_btn=not talk.busy, stop_btn=talk.busy, **given)

    def _run(self, talk: Talk) -> Iterator[Updates]:
        """The stream of updates while a plan runs, or an answer is written; one at least."""
        last, ran = 0.0, False
        for notable in self._host.run(talk):
            now, ran = time.monotonic(), True
            if notable or now - last >= SECONDS_BETWEEN_LOOKS:
                last = now
                yield {self.log: self._shown(talk)} | ({self._kept: kept(talk)} if notable else {})
        seen = self._look(talk)
        if not ran:
            del seen[self._said]  # a refusal, after which there was nothing to do
        yield seen

    def _on_adjust(self, talk: Talk, event: gr.EventData) -> Any:
        return self._editor.open(talk, int(event.entry))

    def _on_open(self, event: gr.EventData) -> Updates:
        return self.viewer.show(self._studio.library.get(event.entry))

    def _on_leave(self) -> Updates:
        return self.viewer.say("")
