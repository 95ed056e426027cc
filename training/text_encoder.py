"""``assets/weights/text-encoder-lite``: the pretrained sentence encoder, its table of word pieces in int8 rows.

    python -m training.text_encoder --pretrained FOLDER

Nothing is trained. The table is half of the weights and loses least by fewer bits: the rest stays as it is. FOLDER is
the transformers folder of all-MiniLM-L6-v2 (the model card says where from). Prints how far the two encoders agree.
"""

from __future__ import annotations

import argparse
import shutil
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from models.packing import pack_int8
from models.text_encoder import WEIGHTS as FILE
from models.text_encoder import TextEncoder, load_text_encoder
from training.pictures import data_folder, load_pictures
from training.publish import write_sums

TARGET = Path("assets/weights/text-encoder-lite")
PACKED = "embeddings.word_embeddings.weight"
COUNTED = "embeddings.position_ids"  # 0, 1, 2 ...: no weight
SETTINGS = ("config.json", "tokenizer.json", "tokenizer_config.json", "special_tokens_map.json", "vocab.txt")
TOKENS = 24


def pack(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """What is published of the pretrained tensors."""
    kept = {name: value for name, value in state.items() if name != COUNTED}
    return {**kept, **pack_int8({PACKED: kept[PACKED]})}


def agreement(one: TextEncoder, other: TextEncoder, captions: list[str]) -> tuple[float, float, float]:
    """Relative error of the token states; the mean and the least cosine of the sentence embeddings."""
    first, second = one.encode(captions, TOKENS), other.encode(captions, TOKENS)
    there = first.mask.bool()
    error = (first.states - second.states)[there].norm() / first.states[there].norm()
    cosines = (one.sentence_embeddings(captions) * other.sentence_embeddings(captions)).sum(1)
    return float(error), float(cosines.mean()), float(cosines.min())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--pretrained", type=Path, required=True)
    parser.add_argument("--data", help="folder of the tables of pictures, whose captions are compared")
    arguments = parser.parse_args()
    for name in SETTINGS:
        shutil.copyfile(arguments.pretrained / name, TARGET / name)
    save_file(pack(load_file(arguments.pretrained / FILE)), TARGET / FILE)
    write_sums(TARGET)
    captions = sorted({item.concept for item in load_pictures(data_folder(arguments.data)).items})
    encoders = load_text_encoder(arguments.pretrained), load_text_encoder(TARGET)
    with torch.no_grad():
        error, mean, least = agreement(*encoders, captions)
    print(f"{len(captions)} captions: token states off by {error:.2%}, sentence cosine {mean:.5f}, least {least:.5f}")


if __name__ == "__main__":
    main()
