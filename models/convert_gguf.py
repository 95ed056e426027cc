"""``python -m models.convert_gguf SOURCE FOLDER``: a GGUF file of Llama's kind as a transformers folder."""

from __future__ import annotations

import sys
from pathlib import Path

import torch
from tokenizers import pre_tokenizers
from transformers import AutoModelForCausalLM, AutoTokenizer, GgufConfig
from transformers.integrations.gguf import read_gguf_metadata


def convert_gguf(source: Path, folder: Path) -> None:
    """The only GGUF file in ``source`` as the files that :func:`models.language_model.load_language_model` reads.

    The weights become float16, which is many times finer than the blocks of four bits that they come from.
    """
    [file] = source.glob("*.gguf")
    tokenizer = AutoTokenizer.from_pretrained(source, gguf_file=file.name)
    if read_gguf_metadata(str(file))[0].get("tokenizer.ggml.pre") == "smollm":
        # Transformers knows how other families split words; this one takes digits one by one, then does as GPT-2.
        tokenizer.backend_tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
            [pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(add_prefix_space=False)]
        )
    tokenizer.save_pretrained(folder)
    model = AutoModelForCausalLM.from_pretrained(
        source, gguf_file=file.name, dtype=torch.float16, quantization_config=GgufConfig(dequantize=True)
    )
    model.save_pretrained(folder)


if __name__ == "__main__":
    convert_gguf(Path(sys.argv[1]), Path(sys.argv[2]))
