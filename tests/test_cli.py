"""What the command-line programs share."""

import jax
import pytest

from msa_jax import cli


@pytest.fixture
def cache_dir():
    before = jax.config.jax_compilation_cache_dir
    yield lambda path: jax.config.update("jax_compilation_cache_dir", path)
    jax.config.update("jax_compilation_cache_dir", before)


def test_compiled_programs_are_kept_in_the_users_cache(cache_dir, monkeypatch, tmp_path):
    cache_dir(None)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    cli.keep_compiled()
    assert jax.config.jax_compilation_cache_dir.startswith(f"{tmp_path}/msa_jax/")


def test_a_place_that_was_chosen_stays(cache_dir, tmp_path):
    cache_dir(str(tmp_path / "chosen"))
    cli.keep_compiled()
    assert jax.config.jax_compilation_cache_dir == str(tmp_path / "chosen")
