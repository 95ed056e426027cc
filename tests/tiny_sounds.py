"""The models of both sound pipelines, real and tiny and untrained, behind a real manager."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
from diffusers import AutoencoderTiny, DDIMScheduler, UNet2DConditionModel
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import Whitespace
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import BertConfig, BertModel, ClapAudioConfig, PreTrainedTokenizerFast

from models.bind import BindAudio
from models.bridges import Bridge, DiffusionBridge, MeanShift, RegressionBridge
from models.manager import ModelManager
from models.mel import LITE_MEL, MelConfig
from models.nets.audio_autoencoder import AudioAutoencoder
from models.nets.efficientnet_lite import CLASSES, FEATURES
from models.nets.vocoder import IstftVocoder, VocoderConfig
from models.picture_text import SENTENCE_WIDTH, PictureText, PictureTextConfig
from models.sound_generator import SoundGenerator
from models.sound_text import SoundText
from models.text_encoder import TextEncoder
from pipelines.base import Event, Pipeline, Produced, Runtime
from pipelines.media import Artifact, Audio, Image, Video
from tests.tiny_models import manager_of, spec_of
from training.sound_diffusion import CONFIG, SCHEDULE
from training.sound_text import audio_config

WIDTH = 16
WINDOW = 16  # latent frames: 1.024 s of lite's spectrograms, 0.64 s of AudioLDM's
WORDS = ("[PAD]", "[UNK]", "a", "photo", "of", "rain", "dog", "the", "sound", "bell")
GENERATOR = {
    **CONFIG,
    "sample_size": (WINDOW, 16),
    "in_channels": 4,
    "out_channels": 4,
    "down_block_types": ("DownBlock2D", "CrossAttnDownBlock2D"),
    "up_block_types": ("CrossAttnUpBlock2D", "UpBlock2D"),
    "block_out_channels": (8, 16),
    "cross_attention_dim": (8, 16),
    "attention_head_dim": 2,
    "norm_num_groups": 4,
    "projection_class_embeddings_input_dim": WIDTH,
}


class Backbone(nn.Module):
    """One layer in place of EfficientNet's many: sixteen patches' colours to features, features to classes."""

    def __init__(self) -> None:
        super().__init__()
        self.patches = nn.Linear(3 * 16, FEATURES)
        self.classes = nn.Linear(FEATURES, CLASSES)

    def features(self, pictures: Tensor) -> Tensor:
        return cast(Tensor, self.patches(F.adaptive_avg_pool2d(pictures, 4).flatten(1))).clamp(0, 6)

    def classify(self, features: Tensor) -> Tensor:
        return cast(Tensor, self.classes(features)) * 10


def _picture_text() -> PictureText:
    names = F.normalize(torch.randn(CLASSES, SENTENCE_WIDTH), dim=1)
    backbone: Any = Backbone()
    return PictureText(PictureTextConfig(width=WIDTH, hidden=32), backbone, names)


def _sound_text() -> SoundText:
    return SoundText(ClapAudioConfig.from_dict({**audio_config().to_dict(), "projection_dim": WIDTH}), LITE_MEL)


def _bind_audio() -> BindAudio:
    return BindAudio(ClapAudioConfig.from_dict({**audio_config().to_dict(), "projection_dim": WIDTH}), LITE_MEL)


def _sentence_encoder() -> TextEncoder:
    tokenizer = Tokenizer(WordLevel({word: index for index, word in enumerate(WORDS)}, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = Whitespace()
    fast = PreTrainedTokenizerFast(tokenizer_object=tokenizer, pad_token="[PAD]", unk_token="[UNK]")
    config = BertConfig(
        vocab_size=len(WORDS),
        hidden_size=SENTENCE_WIDTH,
        num_hidden_layers=1,
        num_attention_heads=2,
        intermediate_size=32,
        initializer_range=0.5,
    )
    return TextEncoder(fast, BertModel(config), masked=True, factor=1.0)


def _generator() -> SoundGenerator:
    unet = UNet2DConditionModel(**GENERATOR)
    return SoundGenerator(unet, DDIMScheduler(**SCHEDULE), torch.randn(WIDTH), WINDOW, 16)


def _autoencoder(mel: MelConfig) -> AudioAutoencoder:
    model = AutoencoderTiny(
        in_channels=1,
        out_channels=1,
        encoder_block_out_channels=(8, 8, 8),
        decoder_block_out_channels=(8, 8, 8),
        num_encoder_blocks=(0, 1, 1),
        num_decoder_blocks=(1, 1, 0),
        latent_channels=4,
    )
    with torch.no_grad():
        model.decoder.layers[-1].weight.mul_(20)  # untrained, it would write much the same whatever it reads
    return AudioAutoencoder(model, mel)


def _mean_shift() -> Bridge:
    return MeanShift.between(*(F.normalize(torch.randn(8, WIDTH), dim=1) for _ in range(2)))


def sound_manager(
    folder: Path,
    mel: MelConfig = LITE_MEL,
    vocoder_mel: MelConfig | None = None,
    instead: Mapping[str, Callable[[], nn.Module]] | None = None,
) -> ModelManager:
    """Everything that both pipelines may lease; the vocoder's spectrograms are the autoencoder's unless told.

    ``instead``: other models than the usual ones, by key.
    """
    models: dict[str, Callable[[], nn.Module]] = {
        "picture-text": _picture_text,
        "sound-text": _sound_text,
        "bind-audio": _bind_audio,
        "sentence-encoder": _sentence_encoder,
        "v2a-mapper": lambda: DiffusionBridge(WIDTH, heads=1, layers=1, one_space=False),
        "v2a-regression": lambda: RegressionBridge(WIDTH, 32),
        "clipsonic-prior": lambda: DiffusionBridge(WIDTH, heads=1, layers=1, one_space=True),
        "clipsonic-mean-shift": _mean_shift,
        "sound-generator": _generator,
        "clipsonic": _generator,
        "audio-autoencoder": lambda: _autoencoder(mel),
        "vocoder": lambda: IstftVocoder(VocoderConfig(width=16, hidden=32, blocks=1), vocoder_mel or mel),
        **(instead or {}),
    }

    def load(index: int, build: Callable[[], nn.Module]) -> nn.Module:
        torch.manual_seed(index)
        return build().eval()

    def spec(index: int, key: str) -> Any:
        return spec_of(key, folder, load=lambda _: load(index, models[key]))

    return manager_of(100_000, *(spec(index, key) for index, key in enumerate(models)))


def events(
    manager: ModelManager, pipeline: Pipeline, given: Sequence[Artifact], micro_batch: int = 16, **params: Any
) -> Iterator[Event]:
    values = {"steps": 2, "duration": 0.5, **params}
    return pipeline.run(given, pipeline.parse_params(values), Runtime(manager, micro_batch=micro_batch))


def produced(manager: ModelManager, pipeline: Pipeline, *given: Artifact, **params: Any) -> list[Any]:
    return [event.artifact for event in events(manager, pipeline, given, **params) if isinstance(event, Produced)]


def picture(seed: int, height: int = 24, width: int = 24) -> Image:
    """Four patches of random colours, as far as there is room."""
    colours = np.random.default_rng(seed).integers(0, 256, (2, 2, 3), dtype=np.uint8)
    return Image(colours.repeat(-(-height // 2), 0).repeat(-(-width // 2), 1)[:height, :width])


def tone(hertz: float, seconds: float = 0.5, level: float = 0.5, rate: int = 16_000) -> Audio:
    """``level``: its peak."""
    wave = level * np.sin(2 * np.pi * hertz * np.arange(round(seconds * rate)) / rate)
    return Audio(wave[None].astype(np.float32), rate)


def clip(count: int = 12, frame_rate: float = 12.0, seed: int = 0) -> Video:
    return Video(np.stack([picture(seed + index).pixels for index in range(count)]), frame_rate)
