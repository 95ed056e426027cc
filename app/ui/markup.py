"""The page's own HTML: progress, results, thumbnails and provenance. Everything that comes from people is escaped."""

from __future__ import annotations

import base64
import io
import re
from collections.abc import Iterable, Iterator
from datetime import datetime
from html import escape
from pathlib import Path
from urllib.parse import quote

from PIL import Image as PillowImage

from app.library import Entry
from app.names import name_of
from app.studio import InternalError
from app.ui.sounds import Waveform, player
from models.errors import UserError
from pipelines.base import Pipeline, Progress
from pipelines.media import Image, Provenance

# Buttons inside our HTML say what they want by data attributes; this turns a press into an event of the component.
FORWARD_PRESSES = """
const events = ["open", "remix", "vary", "refine", "remove", "close"];
element.addEventListener("click", (press) => {
  const button = press.target.closest("button[data-event]");
  if (button && events.includes(button.dataset.event)) trigger(button.dataset.event, { entry: button.dataset.entry });
});
"""

GLYPHS = {
    "text": "M5 6h14M5 12h14M5 18h8",
    "audio": "M4 10v4M8 6v12M12 3v18M16 7v10M20 10v4",
    "mesh": "M12 3l8 4.5v9L12 21l-8-4.5v-9zM12 12l8-4.5M12 12v9M12 12L4 7.5",
    "scan": "M12 4a8 8 0 1 0 0 16a8 8 0 1 0 0-16M12 4v16M8 8q3 2 0 4q-3 2 0 4M16 8q-3 2 0 4q3 2 0 4",
}

# Of the media that are downloaded in several, in order.
FORMATS = {"audio": ("wav", "flac", "ogg"), "video": ("mp4", "gif"), "mesh": ("glb", "textured.glb", "obj", "ply")}


def header() -> str:
    # A synesthete sees each letter in a colour of its own, always the same one.
    letters = "".join(f'<span class="letter-{letter.lower()}">{letter}</span>' for letter in "Synesthete")
    return (
        f'<header class="masthead"><h1 aria-label="Synesthete"><span aria-hidden="true">{letters}</span></h1>'
        "<p>From words, pictures, sounds and scans, on your own machine.</p></header>"
    )


def idle(medium: str) -> str:
    rings = "".join(f'<circle cx="60" cy="60" r="{radius}"/>' for radius in (14, 26, 38, 50))
    return (
        f'<div class="stage idle"><svg viewBox="0 0 120 120" aria-hidden="true">{rings}</svg>'
        f"<p>Your {escape(name_of(medium).noun)} will appear here.</p></div>"
    )


def progress(event: Progress, seconds: float) -> str:
    """A progress bar with its message and ``seconds`` so far, under the preview if there is one."""
    done = _share(event)
    telling = event.step > 1 and seconds > 2 and 0 < done < 1
    left = f" · about {seconds * (1 - done) / done:.0f} s left" if telling else ""
    return (
        f'<div class="stage running">{frame(event)}<div class="meter">{bar(event)}'
        f'<p class="numbers">{seconds:.1f} s{left}</p></div></div>'
    )


def underway(event: Progress, above: str = "") -> str:
    """The same without its stage, below ``above``."""
    # Not told by a screen reader at every step; the bar can be asked.
    return f'<div class="underway" aria-live="off">{above}{bar(event)}</div>'


def bar(event: Progress) -> str:
    """What is being done, and how far it is; the bar drifts as long as no step is done."""
    percent, message = round(100 * _share(event)), escape(event.message)
    count = f"{event.step} of {event.total}" if event.step else ""
    return (
        f'<p class="meter-text"><span>{message}</span><span class="numbers">{count}</span></p>'
        f'<div class="bar{"" if event.step else " unknown"}" role="progressbar" aria-label="Progress" '
        f'aria-valuemin="0" aria-valuemax="100" aria-valuenow="{percent}" '
        f'aria-valuetext="{message}, {percent} percent"><span style="width:{percent}%"></span></div>'
    )


def _share(event: Progress) -> float:
    return min(max(event.step / event.total, 0.0), 1.0) if event.total else 0.0


def frame(event: Progress) -> str:
    """The preview, or where it will be."""
    if event.preview is None:
        return '<div class="frame"><div class="preview waiting"></div></div>'
    return f'<div class="frame"><img class="preview" alt="Preview" src="{data_uri(event.preview)}"></div>'


def data_uri(image: Image) -> str:
    buffer = io.BytesIO()
    PillowImage.fromarray(image.pixels).save(buffer, "WEBP", quality=80)
    return "data:image/webp;base64," + base64.b64encode(buffer.getvalue()).decode()


def notice(sentence: str, hint: str = "", alert: bool = True) -> str:
    """A message in place of a result; ``alert`` for what went wrong."""
    role, kind = ("alert", "wrong") if alert else ("status", "calm")
    return (
        f'<div class="stage notice {kind}" role="{role}"><p class="sentence">{escape(sentence)}</p>'
        f'<p class="hint">{escape(hint)}</p></div>'
    )


def explained(error: UserError | InternalError) -> str:
    return notice(*_sentences(error))


def in_a_line(error: UserError | InternalError) -> str:
    """What is wrong, and what to do about it."""
    sentence, hint = _sentences(error)
    return f"<strong>{escape(sentence)}</strong> {escape(hint)}"


def _sentences(error: UserError | InternalError) -> tuple[str, str]:
    return (error.sentence, error.hint) if isinstance(error, UserError) else (str(error), "")


WAITING = progress(Progress(0, 1, "Waiting for its turn"), 0.0)
BUSY = notice("This was not begun.", "The message in the corner says why. What you typed is kept.")
STOPPED = notice("Stopped.", "Everything is as you left it; press Generate to start again.", alert=False)


def result(
    entry: Entry,
    words: str = "",
    waveform: Waveform | None = None,
    pipelines: Iterable[Pipeline] = (),
    removable: bool = False,
) -> str:
    """An artifact at full size with everything one can do with it, and its provenance folded below.

    ``words`` are a text's own, ``waveform`` a sound's; an object is shown by a component beside this. ``pipelines``:
    what is installed.
    """
    name = escape(entry.id)
    remove = (
        '<details class="confirm"><summary>Delete</summary><div><span>Delete it for good?</span><button type="button" '
        f'class="danger" data-event="remove" data-entry="{name}">Yes, delete</button></div></details>'
    )
    ways_on = "".join(
        f'<button type="button" class="action" data-event="{event}" data-entry="{name}">{label}</button>'
        for event, label in ways_on_from(entry, pipelines)
    )
    kind = "" if entry.missing else entry.medium
    close = '<button type="button" class="close" data-event="close" aria-label="Close">✕</button>'
    return (
        f'<section class="stage result {kind}" tabindex="-1" aria-label="{escape(entry.title)}">'
        f'{close if removable else ""}<div class="frame">{full_size(entry, words, waveform)}</div>'
        f'{badge(entry)}<h2 dir="auto">{escape(entry.title)}</h2>'
        f'<div class="actions">{downloads(entry, "action")}'
        f"{ways_on}{remove if removable else ''}</div>"
        f'<details class="recipe"><summary>Details</summary>{provenance(entry)}</details></section>'
    )


def badge(entry: Entry) -> str:
    """What must be said beside it wherever it is shown; mostly nothing."""
    said = entry.provenance.badge
    return f'<span class="badge" dir="auto">{escape(said)}</span>' if said else ""


def ways_on_from(entry: Entry, pipelines: Iterable[Pipeline]) -> Iterator[tuple[str, str]]:
    """What its maker's panel may be opened for, as (event, label): the same again, by another seed, or refined.

    ``pipelines``: what is installed.
    """
    yield "remix", "Remix"
    provenance = entry.provenance
    maker = next((pipeline for pipeline in pipelines if pipeline.name == provenance.pipeline), None)
    if maker and maker.uses_chance:
        yield "vary", "Variation"
    if maker and any(provenance.params.get(name) != value for name, value in maker.refined_by.items()):
        yield "refine", "Refine"


def downloads(entry: Entry, kind: str) -> str:
    """A link to its file, or one to each format that people ask for; ``kind``: their class. Nothing where the file is
    gone."""
    if entry.missing:
        return ""
    formats = FORMATS.get(entry.medium)
    if formats is None:
        return _download(entry, format_of(entry), kind)
    links = "".join(_download(entry, known_as, kind, one_of_several=True) for known_as in formats)
    return f'<span class="downloads" role="group" aria-label="Download"><span>Download</span>{links}</span>'


def _download(entry: Entry, known_as: str, kind: str, one_of_several: bool = False) -> str:
    # By a route of ours, because Gradio would have the file called as it is in the gallery, by its hash.
    where = f'href="download/{escape(entry.id)}/{known_as}" download="{escape(file_name(entry, known_as))}"'
    if not one_of_several:
        return f'<a class="{kind}" {where}>Download</a>'
    return f'<a class="{kind}" {where} aria-label="Download as {known_as.upper()}">{known_as.upper()}</a>'


def full_size(entry: Entry, words: str, waveform: Waveform | None) -> str:
    source, title = file_url(entry.path), escape(entry.title)
    if entry.missing:
        return "<p>Its file was deleted. Remix it to make it again.</p>"
    if _is_picture(entry):
        return f'<img src="{source}" alt="{title}">'
    match entry.medium:
        case "video":
            return f'<video src="{source}" aria-label="{title}" controls loop autoplay muted playsinline></video>'
        case "audio":
            return player(source, entry.title, waveform)
        case "text":
            return f'<p class="words" dir="auto">{escape(words)}</p>'
        case "mesh":
            return ""
    return glyph_cover(entry)


def _is_picture(entry: Entry) -> bool:
    """Whether an ``<img>`` can show it: pictures, and animations in WebP."""
    return entry.medium == "image" or (entry.medium == "video" and entry.path.suffix == ".webp")


def object_view(entry: Entry, said: str) -> str:
    """A picture of an object (:mod:`app.ui.objects`); ``said``: what it is called for those who do not see it."""
    return f'<img src="view/{escape(entry.id)}" alt="{escape(said)}" loading="lazy">'


def glyph_cover(entry: Entry) -> str:
    """For what cannot be seen: the colours of its title's letters, as a synesthete would have them."""
    letters = re.findall(r"\w", entry.title.lower())[:24] or ["a"]
    colours = ", ".join(f"hsl({ord(letter) * 47 % 360} 42% 62%)" for letter in [*letters, letters[0]])
    glyph = GLYPHS.get(entry.medium, GLYPHS["scan"])
    return (
        f'<span class="cover" style="background:linear-gradient(115deg,{colours})">'
        f'<svg viewBox="0 0 24 24" aria-hidden="true"><path d="{glyph}"/></svg></span>'
    )


def thumbnails(entries: Iterable[Entry], empty: str, current: str | None = None) -> str:
    """A grid of buttons, one an entry."""
    tiles = "".join(_tile(entry, entry.id == current) for entry in entries)
    return f'<ul class="tiles">{tiles}</ul>' if tiles else f'<p class="nothing">{escape(empty)}</p>'


def _tile(entry: Entry, is_current: bool) -> str:
    if entry.missing:
        picture = '<span class="cover gone">deleted</span>'
    elif _is_picture(entry):
        picture = f'<img src="{file_url(entry.path)}" alt="" loading="lazy">'
    elif entry.medium == "mesh":
        picture = object_view(entry, "")
    elif entry.medium == "video":
        picture = f'<video src="{file_url(entry.path)}#t=0.1" muted playsinline preload="metadata"></video>'
    else:
        picture = glyph_cover(entry)
    said = f". {entry.provenance.badge}" if entry.provenance.badge else ""
    title, medium = escape(entry.title + said), escape(name_of(entry.medium).noun + said)
    return (
        f'<li><button type="button" data-event="open" data-entry="{escape(entry.id)}" title="{title}" '
        f'aria-label="{escape(entry.title)}, {medium}" aria-current="{str(is_current).lower()}">'
        f'{picture}<span class="caption" dir="auto">{escape(entry.title)}</span>{badge(entry)}</button></li>'
    )


def provenance(entry: Entry) -> str:
    """How it was made, as a list to read: inputs, settings, seed, and each model's checksum."""
    recipe = entry.provenance
    rows = [("Made by", escape(recipe.pipeline)), *_inputs(recipe), ("Seed", str(recipe.seed))]
    rows += [(_words(name), escape(_value(value))) for name, value in recipe.params.items() if name != "seed"]
    rows += [
        (f"Model {model.key}", f'<code title="{escape(model.checksum)}">{escape(model.checksum[:16])}</code> '
         f"{escape(model.precision)}")
        for model in recipe.models
    ]  # fmt: skip
    rows += [("Made on", moment(entry.created)), ("Size", f"{entry.size_bytes / 1000:,.1f} kB")]
    rows += [("Number in its run", str(recipe.index + 1)), ("Version", escape(recipe.version))]
    listed = "".join(f'<div><dt>{escape(term)}</dt><dd dir="auto">{text}</dd></div>' for term, text in rows)
    return f"<dl>{listed}</dl>"


def _inputs(recipe: Provenance) -> list[tuple[str, str]]:
    nouns = [name_of(str(given["medium"])).noun for given in recipe.inputs]
    shown = [str(given.get("text") or given.get("hash", ""))[:2000] for given in recipe.inputs]
    return [(f"From {escape(noun)}", escape(what)) for noun, what in zip(nouns, shown, strict=True)]


def moment(when: datetime) -> str:
    """By the clock of the machine that this runs on, and which one that is: "1 March 2026, 14:05 CET"."""
    local = when.astimezone()
    return f"{local.day} {local:%B %Y, %H:%M %Z}"


def _words(name: str) -> str:
    return name.removeprefix("num_").replace("_", " ").capitalize()


def _value(value: object) -> str:
    return "none" if value is None or value == "" else str(value)


def file_url(path: Path) -> str:
    # Relative, so that it also holds behind a proxy that serves the page under a path of its own.
    return escape(f"gradio_api/file={quote(str(path.absolute()))}")


def format_of(entry: Entry) -> str:
    """What the names of its medium's files in its format end in: ``png``, ``nii.gz``."""
    return entry.path.name.partition(".")[2]


def file_name(entry: Entry, known_as: str = "") -> str:
    """A name for the downloaded file, made of the title: ``a-red-apple.png``; ``known_as``: another format's ending."""
    words = "-".join(re.findall(r"\w+", entry.title.lower()))[:60].strip("-") or entry.medium
    return f"{words}.{known_as or format_of(entry)}"
