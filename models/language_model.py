"""Small chat models: states of a text, scores of its next word, and replies word by word.

Any causal language model of transformers whose tokenizer has a chat template; in practice Llama's class at both sizes.
With an adapter and a head beside it, it reads requests: which media are wanted, and what is to be done.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Literal, cast

import torch
from safetensors import SafetensorError
from torch import Tensor, nn
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoTokenizer,
    DynamicCache,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)

from models.adapter import Adapter, load_adapter
from models.errors import UserError
from models.request_head import RequestHead, load_request_head

Message = Mapping[str, str]
# A text of megabytes is cut to what could matter before it is looked at word by word. Few tokens are longer.
CHARACTERS_PER_TOKEN = 32
REQUEST_TOKENS = 512
HALF_A_CHARACTER = "\ufffd"


class LanguageModel(nn.Module):
    """A tokenizer and a frozen causal language model. Control tokens in a text count as such: see :meth:`plain`."""

    def __init__(
        self,
        tokenizer: PreTrainedTokenizerBase,
        model: PreTrainedModel,
        adapter: Adapter | None = None,
        head: RequestHead | None = None,
    ) -> None:
        super().__init__()
        tokenizer.padding_side = "right"  # what follows a text cannot change its states
        tokenizer.pad_token = tokenizer.pad_token or tokenizer.eos_token
        self.tokenizer = tokenizer
        self.model = model.eval().requires_grad_(False)
        self.adapter, self.head = adapter, head
        if adapter is not None:
            adapter.attach(self.model)

    def read(self, text: str) -> tuple[dict[str, float], dict[str, float]]:
        """A request as probabilities: of each medium to be wanted, and of each act. One pass, the adapter on.

        Raises :class:`UserError` for a model that has not been taught to.
        """
        if self.adapter is None or self.head is None:
            raise UserError(
                "This language model was not taught to read requests.",
                "Teach it with 'python -m training.controller', or use the one that comes with Synesthete.",
            )
        with self.adapter.on():
            return self.head.probabilities(self.hidden_states([self.plain(text)], "last", REQUEST_TOKENS)[0])

    @property
    def context(self) -> int:
        """Tokens that the model can look back on, the reply included."""
        return int(self.model.config.max_position_embeddings)

    def plain(self, text: str) -> str:
        """``text`` with a space in every control token that somebody wrote into it: read as mere words from then on."""
        for token in self.tokenizer.added_tokens_decoder.values():
            if token.special:
                text = text.replace(token.content, f"{token.content[0]} {token.content[1:]}")
        return text

    def token_of(self, label: str) -> int:
        """The one token of ``label``. Raises ValueError if it is none or several."""
        tokens = self.tokenizer(label, add_special_tokens=False).input_ids
        if len(tokens) != 1:
            raise ValueError(f"the label {label!r} is {len(tokens)} tokens, not one")
        return int(tokens[0])

    @torch.no_grad()
    def hidden_states(
        self, texts: Sequence[str], pooling: Literal["mean", "last"] = "mean", tokens: int = 512
    ) -> Tensor:
        """States of the last layer (B, d) float32: the mean over each text's tokens, or that of its last one.

        Texts are cut after ``tokens`` tokens; there has to be one at least, and an empty one counts as its end alone.
        """
        starts = [text[: tokens * CHARACTERS_PER_TOKEN] for text in texts]
        rows = [
            row or [self.tokenizer.eos_token_id]
            for row in self.tokenizer(starts, truncation=True, max_length=tokens).input_ids
        ]
        batch = self.tokenizer.pad({"input_ids": rows}, return_tensors="pt").to(self.model.device)
        states = self.model.base_model(**batch, use_cache=False).last_hidden_state.float()
        if pooling == "last":
            return states[torch.arange(len(rows)), batch.attention_mask.sum(1) - 1]
        weights = batch.attention_mask[..., None].float()
        return (states * weights).sum(1) / weights.sum(1)

    @torch.no_grad()
    def next_token_scores(self, prefix: str, labels: Sequence[str]) -> Tensor:
        """Log-probabilities (N,) float32 of ``labels`` as the token after ``prefix``, among all tokens.

        Raises ValueError for a label that is not one token, :class:`UserError` if the prefix is too long.
        """
        chosen = [self.token_of(label) for label in labels]
        ids = self._fitting(self.tokenizer(prefix, return_tensors="pt").input_ids, 1)
        logits = self.model(input_ids=ids, use_cache=False, logits_to_keep=1).logits
        return logits[0, -1].float().log_softmax(-1)[chosen]

    @torch.no_grad()
    def reply(
        self, messages: Sequence[Message], max_new_tokens: int = 256, stopped: Callable[[], bool] = lambda: False
    ) -> Iterator[str]:
        """The answer to a conversation, piece by piece, always taking the likeliest token.

        ``messages``: ``{"role": "system" | "user" | "assistant", "content": ...}`` each; control tokens in a content
        are read as mere words. ``stopped`` is asked before every token. Raises :class:`UserError` if the conversation
        and the longest reply do not fit the model's context.
        """
        ids = self._fitting(
            self.tokenizer.apply_chat_template(
                list(messages),
                add_generation_prompt=True,
                sanitize_control_tokens=True,
                return_dict=False,
                return_tensors="pt",
            ),
            max_new_tokens,
        )
        cache = DynamicCache(config=self.model.config)
        written: list[int] = []
        said = ""
        for _ in range(max_new_tokens):
            if stopped():
                return
            logits = self.model(input_ids=ids, past_key_values=cache, use_cache=True, logits_to_keep=1).logits
            token = int(logits[0, -1].argmax())
            if token == self.tokenizer.eos_token_id:
                return
            written.append(token)
            text = cast(str, self.tokenizer.decode(written, skip_special_tokens=True))
            if len(text) > len(said) and not text.endswith(HALF_A_CHARACTER):
                yield text[len(said) :]
                said = text
            ids = ids.new_tensor([[token]])

    def _fitting(self, ids: Tensor, more: int) -> Tensor:
        length = ids.shape[1]
        if length + more > self.context:
            raise UserError(
                f"That is too long for the language model: {length} tokens, and it can take {self.context - more}.",
                "Shorten the text, or start a new conversation.",
            )
        return ids.to(self.model.device)


def load_language_model(folder: Path, reading: Path | None = None) -> LanguageModel:
    """A transformers folder (config, tokenizer, safetensors), float32 on the CPU.

    ``reading``: a folder with an adapter and the head by which the model that they were trained on reads requests;
    any other model only answers in words. Raises :class:`UserError` if that folder is damaged.
    """
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32, use_safetensors=True)
    tokenizer = AutoTokenizer.from_pretrained(folder)
    if reading is None:
        return LanguageModel(tokenizer, model)
    try:
        adapter, head = load_adapter(reading), load_request_head(reading)
    except (OSError, KeyError, ValueError, RuntimeError, SafetensorError) as error:
        raise UserError(
            f"What '{reading.name}' holds for reading requests cannot be used: {error}.",
            "Restore the folder from the repository.",
        ) from error
    return LanguageModel(tokenizer, model, adapter, head) if adapter.fits(model) else LanguageModel(tokenizer, model)


def language_model_skeleton(folder: Path) -> LanguageModel:
    """The same with its weights on the meta device, and no adapter."""
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(AutoConfig.from_pretrained(folder), dtype=torch.float32)
    return LanguageModel(AutoTokenizer.from_pretrained(folder), model)
