"""Memory Sparse Attention (arXiv 2603.23516) in JAX and Flax.

The public names; everything else is importable from the module that its folder names.
"""

from msa_jax.config import ConfigError, MemoryConfig, ModelConfig
from msa_jax.core.segments import Segments, TokenBlock, TrainingBatch
from msa_jax.modules.attention import MemorySparseAttention, RouterProjector
from msa_jax.modules.init import init_params
from msa_jax.modules.state import Cache, Memory
from msa_jax.modules.transformer import Transformer, init_cache
from msa_jax.version import __version__

__all__ = [
    "Cache",
    "ConfigError",
    "Memory",
    "MemoryConfig",
    "MemorySparseAttention",
    "ModelConfig",
    "RouterProjector",
    "Segments",
    "TokenBlock",
    "TrainingBatch",
    "Transformer",
    "__version__",
    "init_cache",
    "init_params",
]
