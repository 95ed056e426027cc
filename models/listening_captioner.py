"""Our captioner of sounds with our space of sounds and words, for a profile whose own space is another."""

from __future__ import annotations

from pathlib import Path
from typing import ClassVar, Literal

from torch import nn

from models.captioner import Captioner, load_captioner
from models.errors import UserError
from models.sound_text import SoundText, load_sound_text
from models.sources import Bundled

SPACE = "sound-text-lite"


class ListeningCaptioner(nn.Module):
    """``captioner`` reads the vectors that ``space`` makes of sounds; whoever leases this leases both."""

    reads: ClassVar[Literal["sounds"]] = "sounds"

    def __init__(self, space: SoundText, captioner: Captioner) -> None:
        super().__init__()
        self.space = space
        self.captioner = captioner


def load_listening_captioner(folder: Path) -> ListeningCaptioner:
    """The captioner of ``folder`` and the space of this repository; float32 on the CPU.

    Raises :class:`UserError` for anything else, and if the space is missing or damaged.
    """
    captioner = load_captioner(folder)
    if not isinstance(captioner, Captioner):
        raise UserError(f"The captioner in '{folder}' reads pictures.", "Take one that was trained on sounds.")
    space = load_sound_text(Bundled(SPACE).resolve(lambda share, said: None).folder)
    return ListeningCaptioner(space, captioner).eval()
