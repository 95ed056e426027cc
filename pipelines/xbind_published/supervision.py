"""What tells XBind's optimisation how an object should look, by the two priors of the paper (arXiv 2411.14715).

Stable unCLIP looks at rendered views for the condition (planar supervision), Zero-1-to-3 for the reference picture and
the camera (stereoscopic supervision), each in its latents, and the eyes of the first for Modality Similarity. A view is
shown to them as a picture: in its colours, or, to Stable unCLIP while the geometry alone changes, as its normals.
Zero-1-to-3 has never seen normals. Views have no perspective; Zero-1-to-3's field of view is narrow.

Shapes: B views, S side of a view, as in ``models/nets/view_diffusion.py``; s side of latents.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from PIL import Image as PillowImage
from torch import Tensor
from torch.nn import functional as F

from models.ddim import mixed
from models.latent_prior import Asked, LatentPrior
from models.nets.view_diffusion import MASK, NORMALS
from models.stable_unclip import StableUnCLIP
from models.zero123 import Seen, Zero123
from pipelines.base import Runtime, precision
from pipelines.media import Image
from pipelines.xbind.phases import DISTANCES, Phase
from pipelines.xbind.rendering import Cameras, Framing, lit, render
from pipelines.xbind.supervision import Chance, Weights

PLANAR_GUIDANCE, STEREOSCOPIC_GUIDANCE = 10.0, 3.0  # the usual ones of either model
PLANAR_LATENTS = 64  # a side at most: 512 pixels, where 768 would be drawn
SIDE = 128  # of a view that is optimised
MARGIN = 0.1  # of a picture's side, on every side of the object
USUAL = 0.1  # root mean square of what a view still lacks, of 2
LOOKED_AT = 256  # pixels a side of the reference
WHITE = 250  # of 255: what is darker is the object
AROUND = 12  # azimuths at which the start is compared with the reference


@dataclass(frozen=True)
class Meant:
    """``vector`` (D,) of Stable unCLIP's space; ``words`` beside it, or none; ``level`` of noise on the vector."""

    vector: Tensor
    words: str
    level: int


@dataclass(frozen=True)
class Teacher:
    """One of the two supervisions: ``prior`` sees views as pictures ``shown`` at a ``side``, and says what they should
    be as ``asked``; ``free`` is what ``guidance`` leads away from."""

    prior: LatentPrior
    shown: Callable[[Tensor], Tensor]
    side: int
    asked: Asked
    free: Asked
    guidance: float


class PublishedSupervision:
    """Of one object. ``reference``: the picture on white of what it looks like from ``camera``. ``stereoscopic`` may be
    missing if it has no weight."""

    def __init__(
        self,
        planar: StableUnCLIP,
        stereoscopic: Zero123 | None,
        meant: Meant,
        reference: Image,
        camera: Cameras,
        weights: Weights,
        seed: int,
        runtime: Runtime,
        side: int = SIDE,
    ) -> None:
        self.planar, self.stereoscopic, self.meant = planar, stereoscopic, meant
        device = runtime.models.device
        self.reference, self.weights = reference, weights
        self.camera = Cameras(camera.azimuths.to(device), camera.elevations.to(device))
        self.runtime, self.side, self.chance = runtime, side, Chance(seed)
        self.condition = meant.vector.float().to(device)
        with precision(runtime.models):
            self.one = planar.asked(self.condition[None], meant.words, meant.level, [seed])
            self.anything = planar.free(1)
        self.first, self.seen = torch.ones(1, 3, side, side), Seen(torch.empty(0), torch.empty(0))

    @torch.no_grad()
    def draw_reference(self, seen: Tensor) -> Image:
        """It was drawn before the object began; here it gets the place that the object has in the view ``seen``."""
        device = self.runtime.models.device
        assert self.stereoscopic is not None
        placed = in_place(self.reference, seen[MASK][0] > 0)
        self.first = as_pixels(placed, self.side).to(device)
        with precision(self.runtime.models):
            self.seen = self.stereoscopic.look(with_margin(as_pixels(placed, LOOKED_AT).to(device)))
        return placed

    def slope(self, views: Tensor, cameras: Cameras, time: float, phase: Phase) -> Tensor:
        """Where views (B, 7, S, S) should go less, in the channels that ``phase`` goes by. The first of ``cameras`` is
        that of the reference, whose picture that view should be.

        Each supervision has its weight times the norm that a mean squared error of :data:`USUAL` has, since latents are
        not of one scale, nor of that of views. Zero, and nothing is computed, if both weights are.
        """
        total = torch.zeros_like(views)
        planar = self.weights.planar * phase.planar
        if planar > 0:
            self._add(total, planar, self._told(self._planar(phase, len(views)), views, time, phase), phase)
        if self.weights.stereoscopic > 0:
            others = Cameras(cameras.azimuths[1:], cameras.elevations[1:])
            slope = self._told(self._stereoscopic(others), views[1:], time, phase)
            slope = torch.cat([self._to_reference(views[:1], slope), slope])
            self._add(total, self.weights.stereoscopic, slope, phase)
        return total

    def likeness(self, views: Tensor) -> Tensor:
        """The cosine of each of views (B, 7, S, S), lit, to the condition, (B,): what Modality Similarity is of."""
        with precision(self.runtime.models):
            vectors = self.planar.embed_pictures(with_margin(lit(views)))
        return vectors @ self.condition

    # --------------------------------------------------------------------------------------------------------- helpers

    def _planar(self, phase: Phase, count: int) -> Teacher:
        asked = self.one.times(count)
        shown = normals_shown if phase.changed == DISTANCES else lit
        side = min(PLANAR_LATENTS, self.planar.latent_side) * self.planar.factor
        return Teacher(self.planar, shown, side, asked, self.anything.times(count), PLANAR_GUIDANCE)

    def _stereoscopic(self, cameras: Cameras) -> Teacher:
        assert self.stereoscopic is not None
        turned, raised = cameras.azimuths - self.camera.azimuths, cameras.elevations - self.camera.elevations
        side = self.stereoscopic.latent_side * self.stereoscopic.factor
        with precision(self.runtime.models):
            asked = self.stereoscopic.asked(self.seen, turned, raised)
        return Teacher(self.stereoscopic, lit, side, asked, self.stereoscopic.free(len(turned)), STEREOSCOPIC_GUIDANCE)

    def _told(self, teacher: Teacher, views: Tensor, time: float, phase: Phase) -> Tensor:
        """The slope (B, 7, S, S) of what the teacher says of all views, as many at once as may be."""
        latent = teacher.side // teacher.prior.factor
        noise = self.chance.noise(views.new_empty(len(views), teacher.prior.channels, latent, latent), phase)
        later = self.chance.later(time) if phase.distillation == "cds" else time
        slopes = [views[:0]]
        for start in range(0, len(views), self.runtime.micro_batch):
            part = slice(start, start + self.runtime.micro_batch)
            with torch.enable_grad(), precision(self.runtime.models):
                given = views[part].detach().requires_grad_()
                latents = teacher.prior.encode(at_side(with_margin(teacher.shown(given)), teacher.side))
                away = _away(teacher, part, latents.detach(), noise[part], (later, time), phase)
                slopes += torch.autograd.grad(latents, given, away)
        return torch.cat(slopes)

    def _to_reference(self, view: Tensor, others: Tensor) -> Tensor:
        """The slope of one view (1, 7, S, S) away from the reference, as long as that of each of the ``others`` is."""
        with torch.enable_grad():
            given = view.detach().requires_grad_()
            [slope] = torch.autograd.grad((lit(given) - self.first).square().sum() / 2, given)
        if not len(others) or not slope.any():
            return slope
        return slope * others.norm() / len(others) ** 0.5 / slope.norm()

    @staticmethod
    def _add(total: Tensor, weight: float, slope: Tensor, phase: Phase) -> None:
        kept = slope[:, phase.seen]
        usual = 2 * USUAL * kept.numel() ** 0.5 / (len(total) * total.shape[-1] ** 2)
        total[:, phase.seen] += weight * usual * kept / kept.norm().clamp(min=torch.finfo(torch.float32).tiny)


@torch.no_grad()
def _away(
    teacher: Teacher, part: slice, latents: Tensor, noise: Tensor, times: tuple[float, float], phase: Phase
) -> Tensor:
    """Latents (B, 4, s, s) less what they should be (``pipelines/xbind/supervision.py``, SDS and CDS). ``times``: the
    noisier one, and for CDS the one nearer to clean."""
    prior, (time, earlier) = teacher.prior, times
    told = teacher.asked[part], teacher.free[part], teacher.guidance
    clean, rest = prior.estimate(mixed(latents, noise, prior.share(time)), time, *told)
    if phase.distillation == "sds":
        return latents - clean
    nearer, _ = prior.estimate(mixed(clean, rest, prior.share(earlier)), earlier, *told)
    return nearer - clean


def facing(start: Tensor, reference: Image, planar: StableUnCLIP, runtime: Runtime) -> Cameras:
    """From where a grid (4, R, R, R) looks most like its reference, at its height: nobody says how a start stands."""
    degrees = [(360.0 * number / AROUND, 0.0) for number in range(AROUND)]
    cameras = Cameras.of(*degrees)
    there = Cameras(cameras.azimuths.to(start.device), cameras.elevations.to(start.device))
    with torch.no_grad():
        views = with_margin(lit(render(start, there, Framing.of(start[0]), SIDE)))
        shown = with_margin(as_pixels(reference, LOOKED_AT)).to(start.device)
        with precision(runtime.models):
            wanted = planar.embed_pictures(shown)[0]
            found = torch.cat([planar.embed_pictures(part) for part in views.split(runtime.micro_batch)])
    return there[[int((found @ wanted).argmax())]]


def normals_shown(views: Tensor) -> Tensor:
    """Views (B, 7, S, S) as pictures (B, 3, S, S) in [-1, 1] of their normals, on white."""
    return views[:, NORMALS] + (1 - views[:, MASK]) / 2


def with_margin(pictures: Tensor) -> Tensor:
    """White around (B, 3, S, S): views end where the object does."""
    margin = round(MARGIN * pictures.shape[-1])
    return F.pad(pictures, (margin, margin, margin, margin), value=1.0)


def at_side(pictures: Tensor, side: int) -> Tensor:
    return F.interpolate(pictures, (side, side), mode="bilinear", antialias=True)


def as_pixels(picture: Image, side: int) -> Tensor:
    """(1, 3, side, side) in [-1, 1] of a square picture."""
    pixels = np.asarray(PillowImage.fromarray(picture.pixels).resize((side, side)))
    return torch.from_numpy(pixels.copy()).permute(2, 0, 1)[None].float() / 127.5 - 1


def in_place(picture: Image, covered: Tensor) -> Image:
    """What a picture on white shows, in the middle of where a view is ``covered`` (S, S) bool, and as large."""
    shown = torch.from_numpy((picture.pixels < WHITE).any(2))
    if not shown.any() or not covered.any():
        return picture
    scale = LOOKED_AT / len(covered)
    (top, bottom), (left, right) = (_ends(covered.any(axis)) for axis in (1, 0))
    (first, last), (start, end) = (_ends(shown.any(axis)) for axis in (1, 0))
    part = PillowImage.fromarray(picture.pixels[first:last, start:end])
    zoom = scale * min((bottom - top) / part.height, (right - left) / part.width)
    part = part.resize((max(1, round(part.width * zoom)), max(1, round(part.height * zoom))))
    canvas = PillowImage.new("RGB", (LOOKED_AT, LOOKED_AT), "white")
    middle = scale * (left + right) / 2, scale * (top + bottom) / 2
    canvas.paste(part, (round(middle[0] - part.width / 2), round(middle[1] - part.height / 2)))
    return Image(np.asarray(canvas).copy())


def _ends(places: Tensor) -> tuple[int, int]:
    """The first of bools (N,) that is true, and the one after the last."""
    found = places.nonzero()
    return int(found.min()), int(found.max()) + 1
