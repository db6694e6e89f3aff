"""Text on disk to batches of tokens with roles."""

from msa_jax.data.pipeline import (
    BatchShape,
    DataConfig,
    SourceConfig,
    TextDataset,
    training_iterator,
)
from msa_jax.data.records import (
    Document,
    Question,
    RecordError,
    check_references,
    read_documents,
    read_questions,
    write_documents,
    write_questions,
)
from msa_jax.data.templates import TEMPLATES, Piece, PromptBuilder, Template
from msa_jax.data.tokenizer import Tokenizer

__all__ = [
    "TEMPLATES",
    "BatchShape",
    "DataConfig",
    "Document",
    "Piece",
    "PromptBuilder",
    "Question",
    "RecordError",
    "SourceConfig",
    "Template",
    "TextDataset",
    "Tokenizer",
    "check_references",
    "read_documents",
    "read_questions",
    "training_iterator",
    "write_documents",
    "write_questions",
]
