"""What the package requires is what it imports, and it says where it runs."""

import os
import re
import runpy
import sys
from importlib.metadata import packages_distributions

import pytest
import setuptools

from msa_jax import file_lock
from msa_jax.config import ConfigError
from msa_jax.memory.lock import WriteLock
from tests.doc_commands import ROOT
from tests.test_layers import imported


@pytest.fixture(scope="module")
def described():
    """What setup.py passes to setuptools."""
    arguments = {}
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(setuptools, "setup", lambda **given: arguments.update(given))
        runpy.run_path(str(ROOT / "setup.py"))
    return arguments


def distributions_imported():
    """For each third-party module that the package imports, the distributions that have it."""
    files = (ROOT / "msa_jax").rglob("*.py")
    modules = {name.partition(".")[0] for path in files for name in imported(path)}
    third_party = modules - sys.stdlib_module_names - {"msa_jax", "__future__"}
    found = packages_distributions()
    return {module: {normal(name) for name in found[module]} for module in third_party}


def normal(name):
    return re.sub(r"[-_.]+", "-", name).lower()


def test_what_is_imported_is_required_and_what_is_required_is_imported(described):
    # BM25 is a baseline of evaluation, which names the extra where it is missing.
    required = described["install_requires"] + described["extras_require"]["eval"]
    required = {normal(re.match(r"[\w.-]+", line)[0]) for line in required}
    imports = distributions_imported()
    assert {module: names for module, names in imports.items() if not names & required} == {}
    assert required - set().union(*imports.values()) == set()


def test_the_systems_that_it_runs_on_are_named(described):
    systems = {x for x in described["classifiers"] if x.startswith("Operating System")}
    assert systems == {"Operating System :: MacOS", "Operating System :: POSIX :: Linux"}


def test_a_system_without_file_locks_is_named_where_one_is_needed(tmp_path, monkeypatch):
    monkeypatch.setattr(file_lock, "fcntl", None)
    with pytest.raises(ConfigError, match="need the file locks of Linux or macOS; on Windows, run"):
        WriteLock(tmp_path / "lock")


def test_a_lock_is_for_one_until_it_is_given_back(tmp_path):
    first, second = (os.open(tmp_path / "lock", os.O_RDWR | os.O_CREAT) for _ in range(2))
    file_lock.lock(first, wait=False)
    with pytest.raises(BlockingIOError):
        file_lock.lock(second, wait=False)
    file_lock.unlock(first)
    file_lock.lock(second, wait=True)
