"""Documents from files, folders and standard input, one at a time."""

import gzip
import io
import json
import lzma
import os
import types

import pytest
from hypothesis import given
from hypothesis import strategies as st

from msa_jax.data.records import Document, RecordError
from msa_jax.data.sources import open_source
from tests.hostile import clean_texts, few

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


def test_a_folder_that_cannot_be_read_is_named_and_nothing_is_left_out(folder, monkeypatch):
    scandir = os.scandir

    def locked(path):
        if os.path.basename(path) == "deep":
            raise PermissionError(13, "Permission denied", path)
        return scandir(path)

    monkeypatch.setattr(os, "scandir", locked)
    with pytest.raises(RecordError, match=r"a/deep: the folder cannot be read \(Permission denied"):
        open_source(folder)


def test_what_is_no_file_is_left_out_with_a_note_on_each(folder, capsys):
    os.mkfifo(folder / "pipe.txt")
    (folder / "a" / "gone.md").symlink_to(folder / "nothing")
    (folder / "loop.txt").symlink_to(folder / "loop.txt")
    (folder / "null\x1b[2J.txt").symlink_to("/dev/null")
    (folder / "again").symlink_to(folder / "a", target_is_directory=True)
    (folder / "good.txt").symlink_to(folder / "b.txt")
    (folder / "folder.txt").mkdir()
    assert [x.id for x in open_source(folder)] == [
        *("a/READ me.md", "a/deep/c.RST", "b.txt", "good.txt")
    ]
    notes = capsys.readouterr().err.splitlines()
    assert sorted(note.removeprefix(f"skipped: {folder}/") for note in notes) == [
        "a/gone.md: is a link that leads to no file.",
        "again: is a link to a folder.",
        "loop.txt: is a link that leads to no file.",
        "null\\x1b[2J.txt: is no file but a device.",
        "pipe.txt: is no file but a named pipe.",
    ]


def test_a_file_that_goes_while_its_folder_is_read_is_named(folder):
    documents = iter(open_source(folder))
    next(documents)
    (folder / "b.txt").unlink()
    next(documents)
    with pytest.raises(RecordError, match=r"b\.txt: cannot be read \(No such file"):
        next(documents)


def test_a_pipe_is_not_waited_for(tmp_path):
    os.mkfifo(tmp_path / "docs.jsonl")
    for name in ("docs.jsonl", "docs.txt"):
        if name == "docs.txt":
            os.mkfifo(tmp_path / name)
        with pytest.raises(RecordError, match=rf"{name}: is a named pipe, not a file"):
            open_source(tmp_path / name)
    (tmp_path / "gone.jsonl").symlink_to(tmp_path / "nothing")
    with pytest.raises(RecordError, match="gone.jsonl: is a link to a file that is not there"):
        open_source(tmp_path / "gone.jsonl")


@pytest.mark.parametrize("encoding", ["utf-16", "utf-16-le", "utf-16-be"])
def test_text_in_utf16_is_refused_by_name(folder, encoding):
    (folder / "b.txt").write_bytes("Привет, мир".encode(encoding))
    with pytest.raises(RecordError, match=r"b\.txt: is UTF-16 or no text"):
        list(open_source(folder))


def test_closed_standard_input_is_an_error(monkeypatch):
    monkeypatch.setattr("sys.stdin", None)
    with pytest.raises(RecordError, match="standard input is closed"):
        list(open_source("-"))


names = clean_texts.map(lambda x: x.replace("/", "_").replace("\0", "_").lstrip(".")[:40])


@few(100)
@given(st.dictionaries(names, clean_texts, max_size=3))
def test_every_text_file_is_a_document_or_an_error(tmp_path_factory, contents):
    folder = tmp_path_factory.mktemp("hostile")
    (folder / "first.txt").write_text("first")
    written = {"first.txt": "first"}
    for name, text in contents.items():
        path = folder / f"{name}.txt"
        if name and len(os.fsencode(path.name)) < 250:
            path.write_bytes(text.encode())
            written[path.name] = text.removeprefix("\ufeff")
    try:
        documents = list(open_source(folder))
    except RecordError as error:
        assert str(folder) in str(error) and any("\0" in text for text in written.values())
    else:
        assert {x.id: x.text for x in documents} == written


@pytest.mark.parametrize("name", ["docs.jsonl", "a.txt"])
def test_a_pointer_of_git_lfs_is_called_that(tmp_path, name):
    (tmp_path / name).write_text("version https://git-lfs.github.com/spec/v1\noid sha256:0\n")
    with pytest.raises(RecordError, match=rf"{name}.*: it is a Git LFS pointer.*git lfs pull"):
        list(open_source(tmp_path / name))
