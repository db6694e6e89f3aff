"""Damaged files, a full disk, a directory that cannot be written, and more than one process."""

import contextlib
import os
import pathlib
import random
import resource
import shutil
import sqlite3
import subprocess
import sys
import tempfile

import pytest

from msa_jax.data.records import Document
from msa_jax.memory.segments import block_bytes
from msa_jax.memory.store import Store, StoreError

from .banks import LAYOUT, contents, create, put

A = Document("a", "first half, second", "Title", {"year": 1907})
B = Document("b", "other")


@pytest.fixture
def path(tmp_path):
    with create(tmp_path / "bank") as store:
        put(store, A, Document("gone", "removed"))
        put(store, B, deletes=("gone",))
    return tmp_path / "bank"


def flip(file: pathlib.Path, byte: int, bit: int = 0) -> None:
    data = bytearray(file.read_bytes())
    data[byte] ^= 1 << bit
    file.write_bytes(data)


def test_every_flipped_bit_of_the_arrays_is_found(path):
    file = path / "segments" / "000001.seg"
    sizes = [block_bytes(LAYOUT, 5 + 4), block_bytes(LAYOUT, 2)]
    assert file.stat().st_size == sum(sizes)
    for byte in range(0, sum(sizes), 13):
        flip(file, byte, byte % 8)
        with Store.open(path) as store:
            (problem,) = store.verify()
            start = 0 if byte < sizes[0] else sizes[0]
            assert f"000001.seg: block at byte {start}: " in problem
            with pytest.raises(StoreError, match=problem):
                list(store.read(store.parts()))
            if "content" in problem:
                assert len(list(store.read(store.parts(), content=False))) == 2
            else:
                assert "routing keys damaged" in problem
                with pytest.raises(StoreError, match=problem):
                    list(store.read(store.parts(), content=False))
        flip(file, byte, byte % 8)


def test_compaction_copies_no_damaged_block(path):
    flip(path / "segments" / "000001.seg", 3)
    with Store.open(path, write=True) as store:
        with pytest.raises(StoreError, match="routing keys damaged"):
            store.compact(0.0)
        assert len(store.verify()) == 1


def test_flipped_bits_of_the_catalogue_are_found_or_harmless(path):
    """Those in the free space of a page, for one, change nothing."""
    file = path / "catalogue.sqlite"
    whole, rng, found = file.read_bytes(), random.Random(0), 0
    with Store.open(path) as store:
        expected = contents(store), store.changes(0).removed.tolist(), store.facts
    used = [byte for byte, value in enumerate(whole) if value]
    for byte in sorted(rng.sample(used, 250)) + list(range(100)):
        flip(file, byte, rng.randrange(8))
        try:
            with Store.open(path) as store:
                if store.verify():
                    found += 1
                else:
                    seen = contents(store), store.changes(0).removed.tolist(), store.facts
                    assert seen == expected, byte
        except StoreError:
            found += 1
        file.write_bytes(whole)
    assert found > 200


def test_a_damaged_text_is_not_passed_on(path):
    file = path / "catalogue.sqlite"
    flip(file, file.read_bytes().index(b"lf, seco") + 1)
    with Store.open(path) as store:
        with pytest.raises(StoreError, match="row of part 2 is damaged"):
            store.passage(2)
        assert store.passage(1).text == "first ha"
        assert store.verify() == [f"{file}: 1 rows of table parts are damaged"]


def test_lost_rows_are_missed(path):
    for table in ("parts", "removed", "commits", "blocks", "documents"):
        shutil.copytree(path, path.with_name(table))
        with contextlib.closing(sqlite3.connect(path.with_name(table) / "catalogue.sqlite")) as db:
            db.execute(f"DELETE FROM {table} WHERE rowid = (SELECT max(rowid) FROM {table})")
            db.commit()
        with Store.open(path.with_name(table)) as store:
            assert store.verify(), table


def test_truncated_and_missing_files_are_found_when_the_bank_is_opened(path):
    file = path / "segments" / "000001.seg"
    size = file.stat().st_size
    os.truncate(file, size - 1)
    for write in (False, True):
        with pytest.raises(StoreError, match=f"{file}: the file has {size - 1} bytes .* {size}"):
            Store.open(path, write=write)
    file.unlink()
    with pytest.raises(StoreError, match=f"{file}: the file has 0 bytes"):
        Store.open(path)


@pytest.mark.parametrize("keep", [0, 50, 4096, 3 * 4096])
def test_a_truncated_catalogue_is_found(path, keep):
    os.truncate(path / "catalogue.sqlite", keep)
    with pytest.raises(StoreError, match="catalogue.sqlite"):
        Store.open(path)


def test_a_segment_that_goes_while_the_bank_is_open(path):
    with Store.open(path) as store:
        (path / "segments" / "000001.seg").unlink()
        assert "000001.seg" in store.verify()[0]
        with pytest.raises(StoreError, match="000001.seg is missing"):
            list(store.read(store.parts()))


def test_a_newer_format_is_refused(path):
    with contextlib.closing(sqlite3.connect(path / "catalogue.sqlite")) as db:
        db.execute("PRAGMA user_version = 99")
    with pytest.raises(StoreError, match="format 99 .* update msa_jax"):
        Store.open(path)


def test_what_a_killed_writer_left_is_cut_off(path):
    segments = path / "segments"
    size = (segments / "000001.seg").stat().st_size
    with open(segments / "000001.seg", "ab") as file:
        file.write(b"orphan")
    (segments / "000002.seg").write_bytes(b"orphan")
    with Store.open(path) as store:
        assert store.verify() == []
    with Store.open(path, write=True) as store:
        assert (segments / "000001.seg").stat().st_size == size
        assert not (segments / "000002.seg").exists()
        put(store, Document("c", "more"))
        assert store.verify() == []


@contextlib.contextmanager
def no_file_above(size: int):
    """The kernel writes no file beyond this size, as if the disk were full."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


@pytest.mark.parametrize("document", [Document("big", "x" * 6000), Document("b", "y", "z" * 10**6)])
def test_a_full_disk_changes_nothing(path, document):
    """The first document has arrays that do not fit; the second has a title that does not."""
    with Store.open(path, write=True) as store:
        before = contents(store)
        segments = sum(x.stat().st_size for x in (path / "segments").iterdir())
        with no_file_above(30_000):
            for _ in range(2):
                with pytest.raises(StoreError, match="room|disk"):
                    put(store, document, deletes=("a",))
            assert contents(store) == before
        if document.id == "big":
            assert sum(x.stat().st_size for x in (path / "segments").iterdir()) == segments
        put(store, document, deletes=("a",))
        assert store.verify() == []
        after = contents(store)
    with Store.open(path, write=True) as store:
        assert contents(store) == after
        assert store.verify() == []


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can mount a small disk")
def test_a_disk_that_fills_up(tmp_path):
    mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", tmp_path])
    if mounted.returncode:
        pytest.skip("this machine does not let tests mount a disk")
    try:
        with create(tmp_path / "bank") as store:
            with pytest.raises(StoreError, match="No space|full"):
                for number in range(1000):
                    put(store, Document(f"d{number}", "text " * 100))
            kept = contents(store)
            assert len(kept) == number > 0
            assert store.verify() == []
            with contextlib.suppress(StoreError):
                store.commit(deletes=["d0"])
            store.close()
        subprocess.run(["mount", "-o", "remount,size=8m", tmp_path], check=True)
        with Store.open(tmp_path / "bank", write=True) as store:
            put(store, A)
            assert {*kept, "a"} - {"d0"} <= contents(store).keys()
            assert store.verify() == []
    finally:
        subprocess.run(["umount", tmp_path], check=True)


@contextlib.contextmanager
def cannot_write(path: pathlib.Path):
    """Files of others that only they may write; root, who may, becomes nobody meanwhile."""
    modes = [(x, x.stat().st_mode) for x in (path, *path.rglob("*"))]
    for file, mode in modes:
        file.chmod(mode & 0o555 | 0o444 | (0o111 if file.is_dir() else 0))
    root = os.geteuid() == 0
    if root:
        os.seteuid(65534)
    try:
        yield
    finally:
        if root:
            os.seteuid(0)
        for file, mode in modes:
            file.chmod(mode)


def test_a_directory_that_cannot_be_written_can_be_read(path):
    with tempfile.TemporaryDirectory() as directory:
        os.chmod(directory, 0o755)
        bank = shutil.copytree(path, pathlib.Path(directory, "bank"))
        with cannot_write(bank):
            with Store.open(bank) as store:
                assert contents(store).keys() == {"a", "b"}
                assert store.verify() == []
            with pytest.raises(StoreError, match="cannot be written"):
                Store.open(bank, write=True)
            with pytest.raises(StoreError, match="no bank can be made"):
                create(bank / "inner")


def test_a_log_that_cannot_be_replayed_is_not_ignored(path):
    with tempfile.TemporaryDirectory() as directory:
        os.chmod(directory, 0o755)
        bank = pathlib.Path(directory, "bank")
        with Store.open(path, write=True) as store:
            put(store, Document("c", "in the log only"))
            shutil.copytree(path, bank)
        (bank / "catalogue.sqlite-shm").unlink()
        with cannot_write(bank), pytest.raises(StoreError, match="catalogue.sqlite"):
            Store.open(bank)
        with Store.open(bank) as store:
            assert "c" in store


def test_a_second_writer_is_told_of_the_first(path):
    with Store.open(path, write=True) as store:
        with pytest.raises(StoreError, match=f"process {os.getpid()} has the bank open"):
            Store.open(path, write=True)
        with pytest.raises(StoreError, match="has the bank open"):
            create(path)
        put(store, Document("c", "still mine"))
    Store.open(path, write=True).close()


_OTHER_PROCESS = """
import sys
from msa_jax.memory.store import Store, StoreError
with Store.open(sys.argv[1]) as store:
    for line in sys.stdin:
        print(store.version, *store.keys(), *store.parts().ids, flush=True)
try:
    Store.open(sys.argv[1], write=True)
except StoreError as error:
    print(error)
"""


def test_another_process_sees_commits_and_cannot_write(path):
    command = [sys.executable, "-c", _OTHER_PROCESS, str(path)]
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True, "bufsize": 1}
    root = pathlib.Path(__file__).parents[2]
    with (
        Store.open(path, write=True) as store,
        subprocess.Popen(command, cwd=root, **pipes) as other,
    ):

        def asked():
            other.stdin.write("\n")
            return other.stdout.readline().strip()

        assert asked() == "2 a b 1 2 3 5"
        put(store, Document("c", "new"))
        assert asked() == "3 a b c 1 2 3 5 6"
        store.commit(deletes=["a"])
        store.compact(0.0)
        assert asked() == "4 b c 5 6"
        out, _ = other.communicate()
        assert f"process {os.getpid()} has the bank open" in out
