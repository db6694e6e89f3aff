"""Documents from files, folders and standard input, one at a time."""

import gzip
import io
import json
import lzma
import os
import types

import pytest

from msa_jax.data.records import Document, RecordError
from msa_jax.data.sources import open_source

ROWS = [{"id": f"d{n}", "text": f"text {n}", "title": "T", "topic": n} for n in range(200)]
LINES = "".join(json.dumps(row) + "\n" for row in ROWS).encode()
DOCUMENTS = [Document(f"d{n}", f"text {n}", "T", {"topic": n}) for n in range(200)]


@pytest.mark.parametrize(
    ("suffix", "compress"), [("", bytes), (".gz", gzip.compress), (".xz", lzma.compress)]
)
def test_lines_are_read_one_by_one_from_any_file(tmp_path, suffix, compress):
    path = tmp_path / f"docs.jsonl{suffix}"
    path.write_bytes(compress(LINES))
    source = open_source(path)
    assert source.fraction == 0
    documents = iter(source)
    assert next(documents) == DOCUMENTS[0]
    assert source.fraction < 1 or suffix
    assert list(documents) == DOCUMENTS[1:]
    assert source.fraction == 1


def test_standard_input_has_no_known_end(monkeypatch):
    monkeypatch.setattr("sys.stdin", types.SimpleNamespace(buffer=io.BytesIO(LINES + b"{}\n")))
    source = open_source("-")
    documents = iter(source)
    assert [next(documents) for _ in DOCUMENTS] == DOCUMENTS
    assert source.fraction is None
    with pytest.raises(RecordError, match="standard input:201: id is missing"):
        next(documents)


def test_good_lines_come_before_an_error_is_reached(tmp_path):
    path = tmp_path / "docs.jsonl"
    path.write_bytes(LINES + LINES[: LINES.index(b"\n") + 1])
    documents = iter(open_source(path))
    assert [next(documents) for _ in DOCUMENTS] == DOCUMENTS
    with pytest.raises(RecordError, match="docs.jsonl:201: id 'd0' is already used at .*jsonl:1"):
        next(documents)


@pytest.fixture
def folder(tmp_path):
    files = {
        "b.txt": b"plain",
        "a/READ me.md": "\ufeff# é\r\n".encode(),
        "a/deep/c.RST": b"",
        "a/code.py": b"no text",
        ".hidden/x.txt": b"hidden",
        "a/.y.txt": b"hidden",
    }
    for name, content in files.items():
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)
    return tmp_path


def test_text_files_of_a_folder_are_documents(folder):
    source = open_source(folder)
    assert list(source) == [
        Document("a/READ me.md", "# é\r\n", "READ me"),
        Document("a/deep/c.RST", ""),
        Document("b.txt", "plain", "b"),
    ]
    assert source.fraction == 1


def test_a_file_that_is_not_utf8_is_named(folder):
    (folder / "b.txt").write_bytes(b"caf\xe9")
    with pytest.raises(RecordError, match=r"b\.txt: not text in UTF-8 \(byte 3\); convert or"):
        list(open_source(folder))


def test_a_file_name_that_is_not_utf8_is_named(folder):
    try:
        (folder / os.fsdecode(b"caf\xe9.txt")).write_text("x")
    except OSError:
        pytest.skip("this file system has UTF-8 names only")
    with pytest.raises(RecordError, match=r"caf\\udce9.*name is not UTF-8; rename it"):
        list(open_source(folder))


def test_a_folder_without_text_and_a_missing_path_are_refused(tmp_path):
    with pytest.raises(RecordError, match=r"the folder has no \.txt, \.md, \.rst file"):
        open_source(tmp_path)
    with pytest.raises(RecordError, match="nowhere: there is no such file or folder"):
        open_source(tmp_path / "nowhere")
