"""Packaging of msa_jax; settings of the development tools are in pyproject.toml."""

import re
from pathlib import Path

from setuptools import find_packages, setup

ROOT = Path(__file__).parent


def read_version() -> str:
    """Reads the version without importing the package, whose dependencies may be absent."""
    text = (ROOT / "msa_jax" / "version.py").read_text(encoding="utf-8")
    return re.search(r'^__version__ = "(.+)"$', text, re.MULTILINE).group(1)


setup(
    name="msa_jax",
    version=read_version(),
    description="Memory Sparse Attention (arXiv 2603.23516) for JAX and Flax",
    long_description=(ROOT / "README.md").read_text(encoding="utf-8"),
    long_description_content_type="text/markdown",
    author="The msa_jax authors",
    license="Apache-2.0",
    python_requires=">=3.11",
    packages=find_packages(include=["msa_jax", "msa_jax.*"]),
    package_data={"msa_jax.data": ["tokenizers/*.json"]},
    install_requires=[
        "absl-py>=2.1",
        "flax>=0.12.8",
        "gguf>=0.17",
        "grain>=0.2.16",
        "jax>=0.10.2",
        "jaxtyping>=0.3",
        "matplotlib>=3.9",
        "ml-collections>=1.0",
        "ml-dtypes>=0.5",
        "numpy>=2.0",
        "optax>=0.2.6",
        "orbax-checkpoint>=0.12",
        "safetensors>=0.5",
        # The index of words; a bank without it works, and says so when it is asked for words.
        "tantivy>=0.25",
        "tensorboard>=2.20",
        "tokenizers>=0.21",
        "tqdm>=4.66",
    ],
    extras_require={
        "cuda": ["jax[cuda13]"],
        # Ruff lays out the signatures.
        "docs": ["mkdocs-material>=9.6", "mkdocstrings[python]>=1.0", "ruff>=0.17.6,<0.18"],
        "tpu": ["jax[tpu]"],
        # PyTorch, which the parity tests against transformers also need, is left out: on Linux
        # pip would fetch its CUDA build of several GB. CONTRIBUTING.md says how to add it.
        "test": [
            "bm25s>=0.2",
            "hypothesis>=6.100",
            # The notebooks are run with these three.
            "ipykernel>=6.29",
            "nbclient>=0.10",
            "nbformat>=5.10",
            "pytest>=8.0",
            "pytest-xdist>=3.6",
            # The module `pytrec_eval` with wheels; the package of that name must be compiled.
            "pytrec-eval-terrier>=0.5.6",
            # One minor release, because the formatting of a file may change with the next.
            "ruff>=0.17.6,<0.18",
            "transformers>=4.57",
        ],
        "eval": ["bm25s>=0.2"],
    },
    classifiers=[
        "Intended Audience :: Science/Research",
        "Operating System :: MacOS",
        "Operating System :: POSIX :: Linux",
        "Programming Language :: Python :: 3.11",
        "Programming Language :: Python :: 3.12",
        "Topic :: Scientific/Engineering :: Artificial Intelligence",
    ],
)
