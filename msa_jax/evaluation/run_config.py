"""What every run of a model over memories is told, be it of a suite or of RULER."""

from __future__ import annotations

import dataclasses
from typing import Any, Self

from msa_jax.config import ConfigError, MemoryConfig, nested
from msa_jax.data.templates import TEMPLATES, PromptBuilder
from msa_jax.data.text_format import load_text_format
from msa_jax.data.tokenizer import Tokenizer
from msa_jax.engine.encode import Encoder, bank_layout
from msa_jax.engine.interleave import InterleaveConfig
from msa_jax.engine.loading import LoadedModel, describe_model, load_model
from msa_jax.fields import Count, check_fields
from msa_jax.typing import PyTree


@dataclasses.dataclass(frozen=True, kw_only=True)
class RunConfig:
    """The model, and how it is run.

    Attributes:
        workdir: where results go.
        checkpoint: the model (`load_model`).
        tokenizer: name or path; the checkpoint's own by default.
        template: name in `TEMPLATES`; the model's own by default.
        dtype: compute type; the checkpoint's by default.
        memory_tokens: sizes of memory, ascending.
        key_dtype: of routing keys; the compute type by default.
        content_dtype: of content; likewise.
        content_tier: where content goes; the nearest place with room by default.
        encode_batch_tokens: tokens encoded at once.
        batch_size: questions routed at once.
        interleave: how much is read before an answer; a `router_temperature` or `margin` of None
            is that of the model (`suit`).
    """

    workdir: str
    checkpoint: str | None = None
    tokenizer: str | None = None
    template: str | None = None
    dtype: str | None = None
    memory_tokens: tuple[Count, ...] = (16_384, 131_072, 1_048_576)
    key_dtype: str | None = None
    content_dtype: str | None = None
    content_tier: str | None = None
    encode_batch_tokens: Count = 131_072
    batch_size: Count = 64
    interleave: InterleaveConfig = nested(InterleaveConfig)

    def __post_init__(self):
        check_fields(self)
        if list(self.memory_tokens) != sorted(set(self.memory_tokens)) or not self.memory_tokens:
            raise ConfigError(f"memory_tokens must ascend, not {self.memory_tokens}.")
        if self.template not in (None, *TEMPLATES):
            raise ConfigError(f"template must be one of {', '.join(TEMPLATES)}.")

    def load(self) -> LoadedModel:
        """The model.

        Raises:
            ConfigError: if it is not named, or not there.
        """
        if self.checkpoint is None:
            raise ConfigError("checkpoint is missing; name the model to measure.")
        return load_model(self.checkpoint, self.tokenizer, self.template, dtype=self.dtype)

    def builder(self) -> PromptBuilder:
        """What writes text where no system needs the model: the model's own, if it is named.

        Raises:
            ConfigError: if neither the model nor its tokenizer is named, or not there.
        """
        if self.tokenizer is None and self.checkpoint is not None:
            return describe_model(self.checkpoint, template=self.template).builder
        if self.tokenizer is None:
            raise ConfigError("tokenizer is missing; name that of the model, or a checkpoint.")
        template = self.template or load_text_format(self.tokenizer).template or "plain"
        return PromptBuilder(TEMPLATES[template], Tokenizer.load(self.tokenizer), MemoryConfig())

    def suit(self, loaded: LoadedModel) -> Self:
        """The configuration, with what comes with the model where nothing else is asked for."""
        return dataclasses.replace(self, interleave=loaded.suit(self.interleave))

    def encoder(self, loaded: LoadedModel, params: PyTree, max_document_tokens: int) -> Encoder:
        """What encodes documents for the memories of a run.

        Args:
            loaded: the model.
            params: its parameters, on the device.
            max_document_tokens: of the longest document, with what the template puts around it.
        """
        layout = bank_layout(loaded.config, max_document_tokens, self.key_dtype, self.content_dtype)
        return Encoder(loaded.model, params, layout, batch_tokens=self.encode_batch_tokens)


def memory_conditions(config: RunConfig, loaded: LoadedModel) -> dict[str, Any]:
    """What the search of a memory depends on besides the model and the documents."""
    names = ("key_dtype", "content_dtype")
    return {name: getattr(config, name) or loaded.config.dtype for name in names}


def interleave_conditions(config: InterleaveConfig) -> dict[str, Any]:
    """What is read before an answer."""
    return {f"interleave.{name}": value for name, value in dataclasses.asdict(config).items()}
