"""The spaces of the full profile as they are published: CLIP and CLAP, by transformers' classes and in its folders.

:class:`PublishedPictureText` is CLIP (arXiv 2103.00020), :class:`PublishedSoundText` CLAP (arXiv 2211.06687). They read
words themselves, where ours (``models.picture_text``, ``models.sound_text``) read sentence embeddings, and CLAP hears
waveforms, where ours hears mels. A space says which by ``reads`` and ``hears``; :func:`load_picture_space` and
:func:`load_sound_space` load either kind.

Shapes: B things, N samples, D dimensions.
"""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from dataclasses import fields
from pathlib import Path
from typing import Any, ClassVar, Literal, cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import (
    AutoTokenizer,
    ClapFeatureExtractor,
    ClapModel,
    ClapTextConfig,
    ClapTextModelWithProjection,
    CLIPModel,
)

from models.errors import UserError
from models.picture_text import PictureText, PictureTextConfig, load_picture_text
from models.pretrained import pretrained
from models.sound_text import SoundText, load_sound_text

CONFIG, PREPROCESSOR = "config.json", "preprocessor_config.json"
FACTOR = 3  # from the 16 kHz of all sounds here to CLAP's 48 kHz
CROSSINGS, ROLLOFF = 6, 0.99  # zero crossings of a sinc on either side, and its cutoff, by half the lower rate
PEAK = 0.5  # of what CLAP hears
SAME = 1e-4  # the most by which two computations of one vector differ
SENTENCES = ("", "Rain on a roof.", "A dog barks twice while a train goes by, far away!")  # to tell two towers apart


class PublishedPictureText(nn.Module):
    """CLIP: a picture's short side is scaled to ``side``, and the middle square of ``crop`` x ``crop`` is seen.

    ``mean`` and ``deviation`` are of its colours in [0, 1].
    """

    reads: ClassVar[Literal["words"]] = "words"

    def __init__(
        self,
        clip: CLIPModel,
        tokenizer: Any,
        side: int,
        crop: int,
        mean: Sequence[float],
        deviation: Sequence[float],
    ) -> None:
        super().__init__()
        self.clip = clip
        self.tokenizer = tokenizer
        self.side = side
        self.crop = crop
        self.mean = tuple(mean)
        self.deviation = tuple(deviation)

    @torch.no_grad()
    def embed_pictures(self, pixels: Tensor) -> Tensor:
        """Pictures (B, 3, H, W) in [-1, 1] of any size -> unit vectors (B, D) float32.

        Raises :class:`ValueError` for other shapes. What is far from a square is cut beforehand, or takes much memory.
        """
        seen = self.clip.get_image_features(pixel_values=self.scaled(pixels))
        return F.normalize(seen.pooler_output.float(), dim=-1)

    def scaled(self, pixels: Tensor) -> Tensor:
        """What the network sees of pictures (B, 3, H, W) in [-1, 1]: (B, 3, crop, crop), standardised, of 256 levels.

        As transformers scales them by Pillow, but for what lies just between two levels.
        """
        if pixels.ndim != 4 or pixels.shape[1] != 3 or not pixels.numel():
            raise ValueError(f"expected (B, 3, H, W), not {tuple(pixels.shape)}")
        height, width = pixels.shape[2:]
        size = [self.side * length // min(height, width) for length in (height, width)]
        levels = (pixels.float() + 1) * 127.5
        for stage in ([height, size[1]], size):  # Pillow scales the rows first, and rounds to whole levels each time
            levels = F.interpolate(levels, stage, mode="bicubic", antialias=True).add(0.5).floor().clamp(0, 255)
        top, left = ((length - self.crop) // 2 for length in size)
        square = levels[..., top : top + self.crop, left : left + self.crop] / 255
        mean, deviation = (square.new_tensor(value)[:, None, None] for value in (self.mean, self.deviation))
        return (square - mean) / deviation

    @torch.no_grad()
    def embed_words(self, words: Sequence[str]) -> Tensor:
        """Texts -> unit vectors (B, D) float32; of a long one, what fits into 77 tokens counts."""
        most = self.clip.config.text_config.max_position_embeddings
        said = self.clip.get_text_features(**_tokens(self.tokenizer, words, most, self.clip.device))
        return F.normalize(said.pooler_output.float(), dim=-1)


class PublishedSoundText(nn.Module):
    """CLAP without fusion; ``samples`` of a sound are heard at most, 10 s."""

    reads: ClassVar[Literal["words"]] = "words"
    hears: ClassVar[Literal["waveforms"]] = "waveforms"

    def __init__(self, clap: ClapModel, tokenizer: Any, extractor: ClapFeatureExtractor) -> None:
        super().__init__()
        self.clap = clap
        self.tokenizer = tokenizer
        self.extractor = extractor
        self.sample_rate = extractor.sampling_rate // FACTOR
        self.samples = extractor.nb_max_samples // FACTOR

    @torch.no_grad()
    def embed_sounds(self, waveforms: Tensor) -> Tensor:
        """Waveforms (B, N) of any level at ``sample_rate``, 0 < N <= ``samples`` -> unit vectors (B, D) float32.

        They are heard as SSV2A has AudioLDM's CLAP hear them: without their mean, with a peak of ``PEAK``, at 48 kHz;
        a short one as often as it fits into ``samples``, then silence. Raises :class:`ValueError` for other shapes and
        samples that are not finite.
        """
        if waveforms.ndim != 2 or not len(waveforms) or not 0 < waveforms.shape[1] <= self.samples:
            raise ValueError(f"expected (B, N) with 0 < N <= {self.samples}, not {tuple(waveforms.shape)}")
        if not waveforms.isfinite().all():
            raise ValueError("a sound has samples that are not finite")
        heard = [*upsampled(levelled(waveforms.float())).cpu().numpy()]
        features = self.extractor(heard, sampling_rate=self.extractor.sampling_rate, return_tensors="pt")
        vectors = self.clap.get_audio_features(features.input_features.to(waveforms.device)).pooler_output
        return F.normalize(vectors.float(), dim=-1)

    @torch.no_grad()
    def embed_words(self, words: Sequence[str]) -> Tensor:
        """Texts -> unit vectors (B, D) float32; of a long one, what fits into 512 tokens counts."""
        most = _positions(self.clap.config.text_config)
        said = self.clap.get_text_features(**_tokens(self.tokenizer, words, most, self.clap.device))
        return F.normalize(said.pooler_output.float(), dim=-1)


def levelled(waveforms: Tensor) -> Tensor:
    """(B, N) without their mean and with a peak of ``PEAK``; silence stays silent."""
    centred = waveforms - waveforms.mean(1, keepdim=True)
    return PEAK * centred / (centred.abs().amax(1, keepdim=True) + 1e-8)


def upsampled(waveforms: Tensor) -> Tensor:
    """(B, N) -> (B, 3 N) at three times the rate: a sinc under a Hann window, with torchaudio's defaults."""
    reach = math.ceil(CROSSINGS / ROLLOFF)
    neighbours = torch.arange(-reach, reach + 1, dtype=torch.float64)
    between = torch.arange(FACTOR, dtype=torch.float64)[:, None] / FACTOR
    crossings = (neighbours - between) * ROLLOFF
    window = (math.pi / 2 * (crossings / CROSSINGS).clamp(-1, 1)).cos().square()
    filters = (ROLLOFF * crossings.sinc() * window).to(waveforms)[:, None]
    with torch.autocast(waveforms.device.type, enabled=False):
        phases = F.conv1d(F.pad(waveforms, (reach, reach))[:, None], filters)
    return phases.transpose(1, 2).flatten(1)


def _tokens(tokenizer: Any, words: Sequence[str], most: int, device: torch.device) -> dict[str, Tensor]:
    batch = tokenizer(list(words), padding=True, truncation=True, max_length=most, return_tensors="pt")
    return {name: batch[name].to(device) for name in ("input_ids", "attention_mask")}


def _positions(config: ClapTextConfig) -> int:
    """The most tokens: RoBERTa's positions are counted from after that of padding."""
    return cast(int, config.max_position_embeddings - config.pad_token_id - 1)


# ------------------------------------------------------------------------------------------------------------ AudioLDM


@torch.no_grad()
def audioldm_words(folder: Path, words: Sequence[str]) -> Tensor:
    """What an AudioLDM folder's own CLAP (``text_encoder``, ``tokenizer``) makes of texts: unit vectors (B, D)."""
    tower = pretrained(ClapTextModelWithProjection, folder / "text_encoder")
    tokenizer = AutoTokenizer.from_pretrained(folder / "tokenizer", local_files_only=True)
    tokens = _tokens(tokenizer, words, _positions(tower.config), tower.device)
    return F.normalize(tower(**tokens).text_embeds, dim=-1)


def require_words_of(audioldm: Path, space: PublishedSoundText) -> None:
    """Raises :class:`UserError` unless ``space`` is the CLAP that an AudioLDM folder was trained with.

    Several CLAPs are alike but for their weights, and by the vectors of another the generator would make noise.
    """
    theirs, ours = audioldm_words(audioldm, SENTENCES), space.embed_words(SENTENCES).cpu()
    if theirs.shape != ours.shape or not (theirs - ours).abs().max() < SAME:
        raise UserError(
            f"This CLAP is not the one that the sound generator in '{audioldm}' was trained with.",
            "Take the CLAP that was converted from the same checkpoint.",
        )


# ------------------------------------------------------------------------------------------------------------- loading


def load_picture_space(folder: Path) -> PictureText | PublishedPictureText:
    """A folder of our space of pictures and words, or one of CLIP; float32 on the CPU but for our names of classes.

    CLIP's (``openai/clip-vit-base-patch32``, ``openai/clip-vit-large-patch14``) may have its weights as safetensors or
    as a ``.bin`` file, of which tensors alone are read. Raises :class:`UserError` if the folder holds something else.
    """
    values = json.loads((folder / CONFIG).read_text())
    if values.get("model_type") == "clip":
        return _load_clip(folder)
    if set(values) != {field.name for field in fields(PictureTextConfig)}:
        raise UserError(f"The weights in '{folder}' are no space of pictures and words.", "It must be ours, or a CLIP.")
    return load_picture_text(folder)


def load_sound_space(folder: Path, audioldm: Path | None = None) -> SoundText | PublishedSoundText:
    """A folder of our space of sounds and words, or one of CLAP; float32 on the CPU.

    CLAP's (``laion/clap-htsat-unfused``, ``sanchit-gandhi/clap-htsat-unfused-s-full-v2``) may have either file too.
    ``audioldm``: the folder of the published generator that will be given its vectors. Raises :class:`UserError` if the
    folder holds something else, or another CLAP than that generator's.
    """
    kind = json.loads((folder / CONFIG).read_text()).get("model_type")
    if kind == "clap":
        space = _load_clap(folder)
        if audioldm:
            require_words_of(audioldm, space)
        return space
    if kind != "clap_audio_model":
        raise UserError(f"The weights in '{folder}' are no space of sounds and words.", "It must be ours, or a CLAP.")
    return load_sound_text(folder)


def _load_clip(folder: Path) -> PublishedPictureText:
    clip = pretrained(CLIPModel, folder)
    reading = json.loads((folder / PREPROCESSOR).read_text())
    size, crop = reading["size"], reading["crop_size"]  # plain numbers in older files
    side = size if isinstance(size, int) else size["shortest_edge"]
    square = crop if isinstance(crop, int) else crop["height"]
    tokenizer = AutoTokenizer.from_pretrained(folder, local_files_only=True)
    return PublishedPictureText(clip, tokenizer, side, square, reading["image_mean"], reading["image_std"]).eval()


def _load_clap(folder: Path) -> PublishedSoundText:
    clap = pretrained(ClapModel, folder)
    if clap.config.audio_config.enable_fusion:
        raise UserError(
            f"The CLAP in '{folder}' fuses parts of a sound that it draws at random, which isn't done here.",
            "Take one without fusion, such as laion/clap-htsat-unfused.",
        )
    tokenizer = AutoTokenizer.from_pretrained(folder, local_files_only=True)
    extractor = ClapFeatureExtractor.from_pretrained(folder, local_files_only=True)
    return PublishedSoundText(clap, tokenizer, extractor).eval()
