"""Captioners: what is seen or heard in one sentence, with a confidence and the nearest concepts.

:class:`Captioner` reads one unit vector of a space (``models.picture_text``, ``models.sound_text``). ClipCap's way
(arXiv 2111.09734): one linear map turns the vector into a prefix of a few embeddings, which a small transformer goes on
from. Where that shares no word with the concepts nearby, the name of the nearest is mostly the better guess (measured:
the weights' ``MODEL_CARD.md``), and is said instead. :class:`PublishedCaptioner` is BLIP (arXiv 2201.12086), which
reads pictures themselves. Both have ``reads``, what their ``describe`` wants, and :func:`load_captioner` loads either.

Shapes: B vectors of D dimensions, L tokens, V word pieces, C concepts, T pictures of S x S.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, ClassVar, Literal, cast

import torch
from safetensors.torch import load_file
from tokenizers import Tokenizer
from tokenizers.models import WordPiece
from tokenizers.normalizers import BertNormalizer
from tokenizers.pre_tokenizers import BertPreTokenizer
from torch import Tensor, nn
from torch.nn.utils.rnn import pad_sequence
from transformers import AutoTokenizer, BlipForConditionalGeneration, GPT2Config, GPT2LMHeadModel

from models.errors import UserError
from models.packing import save_half

CONFIG, WEIGHTS, VOCABULARY, CONCEPTS = "config.json", "model.safetensors", "vocabulary.txt", "concepts.txt"
PREPROCESSOR = "preprocessor_config.json"
END, END_PIECE = 0, "[END]"  # the first word piece of every vocabulary ends a sentence
UNKNOWN_PIECE = "[UNK]"
HEAD, EMBEDDINGS = "decoder.lm_head.weight", "decoder.transformer.wte.weight"  # one matrix, stored once
BEAMS = 3
AGREEING = 3  # the nearest concepts, with one of which a sentence has to share a word
PUBLISHED_TOKENS = 20  # the longest caption in BLIP's own evaluation
LENGTH_TOLERANCE = 1e-2  # of a unit vector that has been through 16-bit floats


@dataclass(frozen=True)
class Concept:
    """What it is called, "a bell" or "rain", and the cosine between its vector and the one that is described."""

    sentence: str
    cosine: float

    @property
    def name(self) -> str:
        """Without its article."""
        return re.sub(r"^an? ", "", self.sentence)


@dataclass(frozen=True)
class Description:
    """``sentence``: in lower case, without a full stop, perhaps empty for BLIP; ``confidence``: the geometric mean of
    its tokens' probabilities; ``sure``: whether that is as much as right sentences have and a concept nearby agrees;
    ``nearest`` concepts first."""

    sentence: str
    confidence: float
    sure: bool
    nearest: tuple[Concept, ...]


@dataclass(frozen=True)
class CaptionerConfig:
    """``width`` of the space's vectors; ``prefix``: embeddings that stand for one; ``tokens``: the most of a sentence.

    ``sure``: the least confidence of a sentence that is said without "perhaps", found on held-out data, of those that
    share a word with a concept nearby.
    """

    width: int = 256
    hidden: int = 256
    layers: int = 4
    heads: int = 4
    prefix: int = 4
    tokens: int = 16
    dropout: float = 0.1
    sure: float = 1.0


class Captioner(nn.Module):
    """From unit vectors to sentences made of ``pieces``, the first of which is :data:`END_PIECE`.

    ``sentences`` say what the concepts are called, at least one; ``concepts`` (C, D) are their unit vectors, which are
    kept in float16.
    """

    reads: ClassVar[Literal["vectors"]] = "vectors"
    concepts: Tensor

    def __init__(
        self, config: CaptionerConfig, pieces: Sequence[str], sentences: Sequence[str], concepts: Tensor
    ) -> None:
        super().__init__()
        fits = sentences and concepts.shape == (len(sentences), config.width)
        if not fits or not pieces or pieces[END] != END_PIECE:
            raise ValueError(
                f"{len(pieces)} pieces, {len(sentences)} concepts and {tuple(concepts.shape)} do not fit together"
            )
        self.config = config
        self.pieces = tuple(pieces)
        self.sentences = tuple(sentences)
        self.tokenizer = tokenizer_of(pieces)
        self.prefix = nn.Linear(config.width, config.prefix * config.hidden)
        self.decoder = GPT2LMHeadModel(
            GPT2Config(
                vocab_size=len(pieces),
                n_positions=config.prefix + config.tokens,
                n_embd=config.hidden,
                n_layer=config.layers,
                n_head=config.heads,
                embd_pdrop=config.dropout,
                resid_pdrop=config.dropout,
                attn_pdrop=config.dropout,
                bos_token_id=END,
                eos_token_id=END,
                use_cache=False,
            )
        )
        self.register_buffer("concepts", concepts.half())

    def forward(self, vectors: Tensor, tokens: Tensor) -> Tensor:
        """Unit vectors (B, D), tokens (B, L) -> logits (B, L + 1, V) float32 of the first token and those after each.

        Raises :class:`ValueError` for other shapes and for vectors that are not of unit length, or NaN.
        """
        if vectors.ndim != 2 or vectors.shape[1] != self.config.width or tokens.shape[:1] != vectors.shape[:1]:
            raise ValueError(f"expected ({len(tokens)}, {self.config.width}), not {tuple(vectors.shape)}")
        if not ((vectors.float().norm(dim=1) - 1).abs() < LENGTH_TOLERANCE).all():  # NaN is not below it either
            raise ValueError("expected unit vectors")
        # A unit vector's entries are about 1 / sqrt(D): scaled to about one, as a linear layer expects.
        prefix = self.prefix(vectors * math.sqrt(self.config.width)).unflatten(1, (self.config.prefix, -1))
        words = self.decoder.get_input_embeddings()(tokens)
        embeddings = torch.cat([prefix, words.to(prefix.dtype)], 1)
        logits = self.decoder(inputs_embeds=embeddings, use_cache=False).logits
        return cast(Tensor, logits[:, self.config.prefix - 1 :].float())

    @torch.no_grad()
    def describe(self, vectors: Sequence[Tensor], nearest: int = 5, beams: int = BEAMS) -> list[Description]:
        """One description of each unit vector (D,), with up to ``nearest`` concepts; one beam is a greedy search.

        A sentence that shares no word with the :data:`AGREEING` nearest concepts gives way to what the nearest is
        called, if the captioner has the word pieces for that, and is never sure. Raises :class:`ValueError` as
        :meth:`forward` does.
        """
        stacked = torch.stack(list(vectors))
        repeated = stacked.repeat_interleave(beams, 0)

        def next_log_probabilities(tokens: Tensor) -> Tensor:
            return self(repeated, tokens)[:, -1].log_softmax(-1)

        found = beam_search(next_log_probabilities, len(stacked), beams, self.config.tokens, stacked.device)
        descriptions: list[Description] = []
        instead: dict[int, tuple[str, list[int]]] = {}  # row -> what the nearest concept is called, and its tokens
        for row, near in enumerate(self.nearest(stacked, max(nearest, AGREEING))):
            tokens, confidence = found[row]
            sentence = sentence_of([self.pieces[token] for token in tokens])
            words_nearby = {word for concept in near[:AGREEING] for word in words_of(concept.sentence)}
            agrees = not words_nearby.isdisjoint(words_of(sentence))
            sure = agrees and confidence >= self.config.sure
            descriptions.append(Description(sentence, confidence, sure, near[:nearest]))
            if not agrees and (tokens_instead := self.tokens_of(near[0].sentence)):
                instead[row] = near[0].sentence, tokens_instead
        if instead:
            confidences = self.confidences(stacked[list(instead)], [tokens for _, tokens in instead.values()])
            for (row, (sentence, _)), confidence in zip(instead.items(), confidences, strict=True):
                descriptions[row] = replace(descriptions[row], sentence=sentence, confidence=confidence)
        return descriptions

    @torch.no_grad()
    def confidences(self, vectors: Tensor, sentences: Sequence[Sequence[int]]) -> list[float]:
        """Of each sentence for its vector (B, D): the geometric mean of its tokens' probabilities and its end's.

        ``sentences`` are up to ``config.tokens`` tokens each, without the end.
        """
        device = vectors.device
        tokens = pad_sequence([torch.tensor([*said, END], device=device) for said in sentences], True, END)
        lengths = torch.tensor([len(said) + 1 for said in sentences], device=device)
        each = self(vectors, tokens[:, :-1]).log_softmax(-1).gather(2, tokens[..., None])[..., 0]
        is_padding = torch.arange(tokens.shape[1], device=device) >= lengths[:, None]
        means: list[float] = (each.masked_fill(is_padding, 0).sum(1) / lengths).exp().tolist()
        return means

    def tokens_of(self, sentence: str) -> list[int] | None:
        """Its tokens without the end, or none where a word piece is not known or there are more than can be said."""
        tokens: list[int] = self.tokenizer.encode(sentence).ids
        return tokens if max(tokens, default=0) < len(self.pieces) and len(tokens) <= self.config.tokens else None

    @torch.no_grad()
    def nearest(self, vectors: Tensor, count: int) -> list[tuple[Concept, ...]]:
        """The ``count`` concepts, or all if there are fewer, whose vectors are nearest to each of (B, D)."""
        with torch.autocast(vectors.device.type, enabled=False):  # cosines are shown to two digits
            cosines = vectors.float() @ self.concepts.float().T
        best = cosines.topk(min(count, len(self.sentences)), dim=1)
        rows = zip(best.values.tolist(), best.indices.tolist(), strict=True)
        return [tuple(Concept(self.sentences[i], cosine) for cosine, i in zip(*row, strict=True)) for row in rows]

    def save_pretrained(self, folder: Path) -> None:
        """``config.json``, ``model.safetensors`` in float16, and as lines of text the word pieces and the concepts."""
        folder.mkdir(parents=True, exist_ok=True)
        values = {"_class_name": type(self).__name__, **asdict(self.config)}
        (folder / CONFIG).write_text(json.dumps(values, indent=2) + "\n")
        (folder / VOCABULARY).write_text("".join(f"{piece}\n" for piece in self.pieces))
        (folder / CONCEPTS).write_text("".join(f"{sentence}\n" for sentence in self.sentences))
        save_half({name: value for name, value in self.state_dict().items() if name != HEAD}, folder / WEIGHTS)


def beam_search(
    next_log_probabilities: Callable[[Tensor], Tensor], count: int, width: int, most: int, device: torch.device
) -> list[tuple[list[int], float]]:
    """The likeliest of ``count`` sequences of 1 to ``most`` tokens, each without its :data:`END`, and its confidence.

    ``next_log_probabilities`` takes tokens (count * width, L), those of one sequence together, and gives (.., V).
    Hypotheses are kept by the sum of log-probabilities; in the end the best mean counts, so that long ones are not at
    a disadvantage. Confidence is its exponential: the geometric mean of the probabilities, that of the end included.
    """
    tokens = torch.zeros(count * width, 0, dtype=torch.long, device=device)
    totals = torch.full((count, width), -math.inf, device=device)
    totals[:, 0] = 0  # all hypotheses begin alike: one is enough
    lengths = torch.zeros(count, width, dtype=torch.long, device=device)
    ended = torch.zeros(count, width, dtype=torch.bool, device=device)
    first_row = torch.arange(count, device=device)[:, None] * width
    for step in range(most):
        following = next_log_probabilities(tokens).view(count, width, -1)
        pieces = following.shape[-1]
        is_end = torch.arange(pieces, device=device) == END
        if step == 0:  # a sentence has at least one word
            following = following.masked_fill(is_end, -math.inf)
        # What has ended goes on with nothing but the end, at no cost.
        following = torch.where(ended[..., None], torch.where(is_end, 0.0, -math.inf), following)
        totals, chosen = (totals[..., None] + following).flatten(1).topk(width, dim=1)
        parents, added = chosen // pieces, chosen % pieces
        was_ended = ended.gather(1, parents)
        lengths = lengths.gather(1, parents) + ~was_ended
        ended = was_ended | (added == END)
        tokens = torch.cat([tokens[(first_row + parents).flatten()], added.view(-1, 1)], 1)
        if ended.all():
            break
    means, best = (totals / lengths).max(1)
    rows = tokens[first_row[:, 0] + best].tolist()
    words = [row[: row.index(END)] if END in row else row for row in rows]
    return list(zip(words, means.exp().tolist(), strict=True))


def sentence_of(pieces: Sequence[str]) -> str:
    """Word pieces of a BERT tokenizer to text: "a", "red", "app", "##le" -> "a red apple"."""
    words = "".join(f" {piece}" for piece in pieces).replace(" ##", "").strip()
    words = re.sub(r" ?([-'’/]) ?", r"\1", words)
    return re.sub(r" ([,.:;!?)])", r"\1", words).replace("( ", "(")


def tokenizer_of(pieces: Sequence[str]) -> Tokenizer:
    """What cuts lower-cased text as a BERT tokenizer with these word pieces does; ``len(pieces)`` is what is not known.

    The reverse of :func:`sentence_of`.
    """
    vocabulary = {piece: token for token, piece in enumerate((*pieces, UNKNOWN_PIECE))}
    tokenizer = Tokenizer(WordPiece(vocabulary, unk_token=UNKNOWN_PIECE))
    tokenizer.normalizer = BertNormalizer()
    tokenizer.pre_tokenizer = BertPreTokenizer()
    return tokenizer


def words_of(text: str) -> list[str]:
    """In lower case, without punctuation and articles."""
    return [word for word in re.findall(r"[a-z0-9]+", text.lower()) if word not in ("a", "an", "the", "some")]


# --------------------------------------------------------------------------------------------------------- published


class PublishedCaptioner(nn.Module):
    """BLIP, which reads pictures of ``side`` x ``side``; ``mean`` and ``deviation`` are of its colours in [0, 1].

    It has no table of concepts, and how confident its right captions are was never measured here, so it is always sure.
    """

    reads: ClassVar[Literal["pictures"]] = "pictures"

    def __init__(
        self,
        blip: BlipForConditionalGeneration,
        tokenizer: Any,
        side: int,
        mean: Sequence[float],
        deviation: Sequence[float],
    ) -> None:
        super().__init__()
        self.blip = blip
        self.tokenizer = tokenizer
        self.side = side
        self.mean = tuple(mean)
        self.deviation = tuple(deviation)

    @torch.no_grad()
    def describe(self, shown: Sequence[Tensor], nearest: int = 5, beams: int = BEAMS) -> list[Description]:
        """One description of each (T, 3, S, S) in [-1, 1], where S = ``side``: a picture, or T frames of a clip.

        What is seen in several frames is read as one sequence (BLIP, section 5.6). Raises :class:`ValueError` for other
        shapes. ``nearest`` is what the other captioner knows.
        """
        return [self._describe(pictures, beams) for pictures in shown]

    def _describe(self, pictures: Tensor, beams: int) -> Description:
        if pictures.ndim != 4 or pictures.shape[1:] != (3, self.side, self.side) or not len(pictures):
            raise ValueError(f"expected (T, 3, {self.side}, {self.side}), not {tuple(pictures.shape)}")
        mean, deviation = (pictures.new_tensor(value)[:, None, None] for value in (self.mean, self.deviation))
        seen = self.blip.vision_model(pixel_values=((pictures + 1) / 2 - mean) / deviation).last_hidden_state
        seen = seen.flatten(0, 1)[None]
        text = self.blip.config.text_config
        tokens = self.blip.text_decoder.generate(
            input_ids=torch.tensor([[text.bos_token_id]], device=seen.device),
            encoder_hidden_states=seen,
            encoder_attention_mask=torch.ones(seen.shape[:2], dtype=torch.long, device=seen.device),
            eos_token_id=text.sep_token_id,
            pad_token_id=text.pad_token_id,
            max_new_tokens=PUBLISHED_TOKENS,
            num_beams=beams,
            do_sample=False,
        )
        confidence = self._confidence(tokens, seen)
        return Description(self.tokenizer.decode(tokens[0], skip_special_tokens=True).strip(), confidence, True, ())

    def _confidence(self, tokens: Tensor, seen: Tensor) -> float:
        """The geometric mean of the probabilities of all ``tokens`` (1, L) but the first."""
        logits = self.blip.text_decoder(input_ids=tokens[:, :-1], encoder_hidden_states=seen, use_cache=False).logits
        chosen = logits.float().log_softmax(-1).gather(-1, tokens[:, 1:, None])
        return float(chosen.mean().exp())


def load_captioner(folder: Path) -> Captioner | PublishedCaptioner:
    """A folder as :meth:`Captioner.save_pretrained` writes it, or one of BLIP; float32 on the CPU but for the concepts.

    BLIP's (``Salesforce/blip-image-captioning-base``) may have its weights as safetensors or as the ``.bin`` file that
    the Hub has, of which tensors alone are read. Raises :class:`UserError` if the folder holds something else.
    """
    values = json.loads((folder / CONFIG).read_text())
    if values.get("model_type") == "blip":
        return _load_published(folder)
    if values.pop("_class_name", None) != Captioner.__name__:
        raise UserError(f"The weights in '{folder}' are no captioner.", "It must be ours, or BLIP's for captions.")
    weights = load_file(folder / WEIGHTS)
    pieces, sentences = ((folder / name).read_text().splitlines() for name in (VOCABULARY, CONCEPTS))
    model = Captioner(CaptionerConfig(**values), pieces, sentences, weights["concepts"])
    model.load_state_dict({**weights, HEAD: weights[EMBEDDINGS]})
    return model.eval()


def _load_published(folder: Path) -> PublishedCaptioner:
    blip = BlipForConditionalGeneration.from_pretrained(folder, dtype=torch.float32, local_files_only=True)
    reading = json.loads((folder / PREPROCESSOR).read_text())
    tokenizer = AutoTokenizer.from_pretrained(folder, local_files_only=True)
    side = blip.config.vision_config.image_size
    return PublishedCaptioner(blip, tokenizer, side, reading["image_mean"], reading["image_std"]).eval()
