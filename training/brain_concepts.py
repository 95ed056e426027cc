"""Recipe of the names in ``assets/weights/brain-decoder-lite``: of every concept the mean vector of its pictures.

    python -m training.brain_concepts --data FOLDER

What is decoded of a brain is a vector of a picture, and words lie elsewhere in their common space. A concept that no
training picture shows gets the vector of its words, taken by a linear map to where pictures of it would be; the map is
fitted to the concepts that some show. Run this after ``training.brain_decoder`` if there are other pictures or another
``picture-text-lite``: the names do not depend on the decoder. Needs ``picture-captioner-lite`` for the words.

Shapes: C concepts, N pictures or scans.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor
from torch.nn import functional as F

from models.captioner import Captioner, load_captioner
from models.nets.brain_decoder import load_brain_decoder
from training.bridges import picture_vectors
from training.captioner import plain_sentence
from training.pictures import Picture, Pictures, data_folder, load_pictures, verify_checksums
from training.publish import write_sums

WEIGHTS = Path("assets/weights")
RIDGE = 0.1  # of the map, a share of the mean variance of the words


def concepts_of(pictures: Pictures) -> list[str]:
    """All that some picture shows, but for flags, in order: the captioner's."""
    return sorted({item.concept for item in pictures.select("train", "heldout-pair", "heldout-concept")})


def load_words(concepts: Sequence[str]) -> Tensor:
    """The vectors of the words for each concept, (C, 256), as the captioner has them."""
    captioner = load_captioner(WEIGHTS / "picture-captioner-lite")
    if not isinstance(captioner, Captioner) or captioner.sentences != tuple(map(plain_sentence, concepts)):
        raise SystemExit("The captioner has other concepts than the tables: train picture-captioner-lite first.")
    return captioner.concepts.float()


def mean_vectors(concepts: Sequence[str], items: Sequence[Picture], vectors: Tensor, words: Tensor) -> Tensor:
    """(C, 256): the mean of the ``vectors`` (of all pictures, by row) of the ``items`` that show it, of unit length, or
    where its ``words`` (C, 256) lead."""
    number = {concept: index for index, concept in enumerate(concepts)}
    shown = torch.tensor([number[item.concept] for item in items])
    sums = torch.zeros(len(concepts), vectors.shape[1]).index_add(0, shown, vectors[[item.row for item in items]])
    known = torch.bincount(shown, minlength=len(concepts)) > 0
    means = F.normalize(sums, dim=1)
    means[~known] = mapped(words, words[known], means[known])[~known]
    return means


def mapped(words: Tensor, sources: Tensor, targets: Tensor) -> Tensor:
    """``words`` (C, D) by the linear map that takes ``sources`` (K, D) nearest to ``targets`` (K, D)."""
    x, y = (sources - sources.mean(0)).double(), (targets - targets.mean(0)).double()
    gram = x.T @ x
    penalty = RIDGE * gram.diagonal().mean() * torch.eye(len(gram), dtype=torch.float64)
    weights = torch.linalg.solve(gram + penalty, x.T @ y).float()
    return (words - sources.mean(0)) @ weights + targets.mean(0)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", help="folder of the picture tables")
    folder = data_folder(parser.parse_args().data)
    verify_checksums(folder)
    pictures = load_pictures(folder)
    concepts = concepts_of(pictures)
    vectors = picture_vectors(pictures, WEIGHTS / "picture-text-lite")
    target = WEIGHTS / "brain-decoder-lite"
    decoder = load_brain_decoder(target)
    means = mean_vectors(concepts, pictures.select("train"), vectors, load_words(concepts))
    decoder.name_concepts([plain_sentence(concept) for concept in concepts], means)
    decoder.save_pretrained(target)
    write_sums(target)


if __name__ == "__main__":
    main()
