"""Tiny random models of every kind that is quantized, and how each is run."""

from __future__ import annotations

from collections.abc import Callable

import torch
from diffusers import AutoencoderKL, AutoencoderTiny
from torch import Tensor, nn
from transformers import BertConfig, BertModel, CLIPTextConfig, CLIPTextModel, T5Config, T5EncoderModel

from models.autoencoder import ImageAutoencoder
from models.nets.crossflow import CrossFlow, CrossFlowConfig, StageConfig
from models.precision import Precision

CPU = torch.device("cpu")
REDUCED: tuple[Precision, ...] = ("float16", "bfloat16", "int8", "nf4")
WIDE = CrossFlowConfig(
    latent_channels=4,
    latent_size=8,
    tokens=8,
    text_width=128,
    compressed_width=None,
    encoder_layers=1,
    encoder_hidden=128,
    encoder_heads=4,
    encoder_head="linear",
    stages=(StageConfig("transformer", 4, 128, 256, 3, heads=4), StageConfig("convnext", 8, 64, 128, 3)),
)


# ---------------------------------------------------------------------------------------- the models there are


def bert() -> nn.Module:
    return BertModel(
        BertConfig(vocab_size=300, hidden_size=128, intermediate_size=256, num_hidden_layers=2, num_attention_heads=4)
    )


def clip() -> nn.Module:
    return CLIPTextModel(
        CLIPTextConfig(
            vocab_size=300, hidden_size=128, intermediate_size=256, num_hidden_layers=2, num_attention_heads=4
        )
    )


def t5() -> T5EncoderModel:
    config = {"vocab_size": 300, "d_model": 128, "d_kv": 32, "d_ff": 256, "num_layers": 2, "num_heads": 4}
    return T5EncoderModel(T5Config(**config, feed_forward_proj="gated-gelu"))


def tiny_autoencoder() -> nn.Module:
    return ImageAutoencoder(AutoencoderTiny(num_encoder_blocks=(1, 1, 1, 1), num_decoder_blocks=(1, 1, 1, 1)), 1.0, 0.0)


def stable_diffusion_autoencoder() -> nn.Module:
    blocks = {"down_block_types": ("DownEncoderBlock2D",) * 2, "up_block_types": ("UpDecoderBlock2D",) * 2}
    return ImageAutoencoder(AutoencoderKL(**blocks, block_out_channels=(64, 128), latent_channels=4), 0.2, 0.0)


def crossflow() -> nn.Module:
    return CrossFlow(WIDE)


def text(model: nn.Module) -> Tensor:
    ids = torch.randint(3, 300, (2, 12), generator=torch.Generator().manual_seed(1))
    mask = torch.ones(2, 12, dtype=torch.long)
    mask[1, 7:] = 0
    states: Tensor = model(input_ids=ids, attention_mask=mask).last_hidden_state
    return states


def reconstruction(model: nn.Module) -> Tensor:
    assert isinstance(model, ImageAutoencoder)
    pixels = torch.rand(2, 3, 32, 32, generator=torch.Generator().manual_seed(1)) * 2 - 1
    return model.decode(model.encode(pixels))


def velocity(model: nn.Module) -> Tensor:
    assert isinstance(model, CrossFlow)
    generator = torch.Generator().manual_seed(1)
    states = torch.randn(2, WIDE.tokens, WIDE.text_width, generator=generator)
    mean, _ = model.encode_text(states, torch.ones(2, WIDE.tokens))
    result: Tensor = model(mean, torch.tensor([0.2, 0.7]), torch.tensor([False, True]))[-1]
    return result


MODELS: dict[str, tuple[Callable[[], nn.Module], Callable[[nn.Module], Tensor]]] = {
    "bert": (bert, text),
    "clip": (clip, text),
    "t5": (t5, text),
    "tiny autoencoder": (tiny_autoencoder, reconstruction),
    "stable diffusion autoencoder": (stable_diffusion_autoencoder, reconstruction),
    "crossflow": (crossflow, velocity),
}


def made(name: str) -> nn.Module:
    torch.manual_seed(0)
    return MODELS[name][0]().eval().requires_grad_(False)


def difference(a: Tensor, b: Tensor) -> float:
    """The length of the difference as a share of that of ``b``; in double, where squares of large values are finite."""
    a, b = a.double(), b.double()
    return float((a - b).norm() / b.norm())


class Pair:
    """A model that is no module: an object whose attributes are modules."""

    def __init__(self) -> None:
        self.name = "pair"
        self.first = nn.Linear(256, 256)
        self.second = nn.Sequential(nn.Linear(256, 256), nn.BatchNorm1d(256))
        self.second.register_buffer("steps", torch.arange(5), persistent=False)
