"""Files of others: read as meant, or refused in a sentence that names them."""

import codecs
import gzip
import json
import lzma
import os
import socket

import pytest
from hypothesis import given
from hypothesis import strategies as st

from msa_jax.data.files import RecordError, opened
from msa_jax.data.records import Document, read_documents, read_questions
from tests.hostile import few, rows

LINE = b'{"id": "a", "text": "t"}\n'


@pytest.fixture
def file(tmp_path):
    def write(content, name="d.jsonl"):
        path = tmp_path / name
        path.write_bytes(content)
        return path

    return write


@pytest.mark.parametrize("name", ["d.jsonl.gz", "d.jsonl.xz", "D.JSONL.GZ"])
@pytest.mark.parametrize("damage", ["cut", "other", "empty", "middle"])
def test_a_damaged_compressed_file_is_named(file, name, damage):
    # Random text, so that damage in the middle is damage of a text.
    content = json.dumps({"id": "a", "text": os.urandom(4096).hex()}).encode()
    packed = (gzip if name.lower().endswith("gz") else lzma).compress(content)
    middle = len(packed) // 2
    damaged = {
        "cut": packed[:-9],
        "other": content,
        "empty": b"",
        "middle": packed[:middle] + bytes(8) + packed[middle + 8 :],
    }
    with pytest.raises(RecordError, match=rf"{name}: cannot be read \(.*it is cut short, damaged"):
        read_documents(file(damaged[damage], name))


def test_a_compressed_file_of_another_name_is_told(file):
    for packed, suffix in ((gzip.compress(LINE), "gz"), (lzma.compress(LINE), "xz")):
        with pytest.raises(RecordError, match=rf"jsonl:1: is compressed; .* ends in \.{suffix}"):
            read_documents(file(packed))


def test_a_mark_before_json_lines_is_skipped(file):
    assert read_documents(file(codecs.BOM_UTF8 + LINE)) == [Document("a", "t")]
    assert read_documents(file(codecs.BOM_UTF8 + gzip.compress(LINE)[:0] + b"\n" + LINE))


@pytest.mark.parametrize("encoding", ["utf-16", "utf-16-le", "utf-16-be", "utf-32"])
def test_utf16_is_refused_by_name(file, encoding):
    for text in ('{"id": "a", "text": "t"}\n', '{"id": "a", "text": "Привет, мир"}'):
        with pytest.raises(RecordError, match=r"jsonl:1: is UTF-16 or no text; convert it"):
            read_documents(file(text.encode(encoding)))


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ('{"id": "b", "text": "t", "metadata": ' + "[" * 100_000, "JSON in more levels"),
        ('{"id": "b", "text": "t", "x": ' + "[" * 70 + "]" * 70 + "}", "'x' has more than 64 lev"),
        ('{"id": "b", "text": "t", "x": NaN}', r"not a line of JSON \(NaN is no number of JSON"),
        ('{"id": "b", "text": "t", "metadata": {"x": 1e999}}', "metadata 'x' holds inf, which is"),
        ('{"id": "b", "text": "t", "x": ' + "9" * 5000 + "}", "not a line of JSON"),
        ('{"id": "b", "text": "t", "x": ["\\udc00"]}', "'x' holds an unpaired surrogate"),
        ('{"id": "b", "text": "t", "x": {"\\udc00": 1}}', "'x' holds an unpaired surrogate"),
        ('{"id": "b", "id": "c", "text": "t"}', r"not a line of JSON \('id' is given twice in one"),
        (
            '{"id": "b", "text": "t", "x": 1, "metadata": {"x": 2}}',
            "x is a field and, with another",
        ),
    ],
)
def test_json_that_cannot_be_kept_is_named_by_line(file, line, message):
    with pytest.raises(RecordError, match=rf"d\.jsonl:2: {message}"):
        read_documents(file(LINE + line.encode()))


def test_null_is_as_good_as_nothing_where_a_field_may_be_left_out(file):
    row = {"id": "a", "text": "t", "title": None, "metadata": None}
    assert read_documents(file(json.dumps(row).encode())) == [Document("a", "t")]
    row = {"id": "q", "question": "?", "positive_ids": ["a"]}
    nulls = dict.fromkeys(("answers", "negative_ids", "hops", "metadata"))
    (bare,), (with_nulls,) = (
        read_questions(file(json.dumps(x).encode(), "q.jsonl")) for x in (row, row | nulls)
    )
    assert bare == with_nulls


def test_a_field_called_where_is_not_lost(file):
    row = {"id": "q", "question": "?", "positive_ids": ["a"], "where": "here"}
    (question,) = read_questions(file(json.dumps(row).encode()))
    assert question.metadata == {"where": "here"} and question.where.endswith("d.jsonl:1")


def test_what_is_no_file_is_refused_without_opening_it(tmp_path):
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "dangling").symlink_to(tmp_path / "nothing")
    (tmp_path / "loop").symlink_to(tmp_path / "loop")
    unix = socket.socket(socket.AF_UNIX)
    here = os.getcwd()
    os.chdir(tmp_path)  # Names of sockets are short.
    unix.bind("socket")
    os.chdir(here)
    (tmp_path / "folder").mkdir()
    expected = {
        "pipe": "is a named pipe, not a file",
        "socket": "is a socket, not a file",
        "folder": "is a folder, not a file",
        "dangling": "is a link to a file that is not there",
        "loop": r"cannot be read \(Too many levels",
        "nothing": "there is no such file",
        "x" * 300: r"cannot be read \(File name too long",
        "nul\0": r"cannot be read \(embedded null byte",
    }
    for name, message in expected.items():
        with pytest.raises(RecordError, match=message), opened(tmp_path / name):
            pass
    with pytest.raises(RecordError, match="/dev/null: is a device, not a file"):
        read_documents("/dev/null")


@few(150)
@given(st.lists(rows, max_size=3))
def test_rows_are_read_whole_or_refused(tmp_path, given_rows):
    """Any row that JSON can spell: what is read is what was written, or the error names a line."""
    path = tmp_path / "d.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in given_rows), encoding="utf-8")
    try:
        documents = read_documents(path)
    except RecordError as error:
        assert "d.jsonl:" in str(error) and "\n" not in str(error)
        return
    assert [x.id for x in documents] == [row["id"] for row in given_rows]
    for document, row in zip(documents, given_rows, strict=True):
        title = row.get("title") or ""
        assert document.title == title
        text_is_title = title.strip() and not row["text"].strip()
        assert document.text == (title if text_is_title else row["text"])
        others = {name: row[name] for name in ("source", "date") if name in row}
        assert document.metadata == others | (row.get("metadata") or {})


@few(150)
@given(st.binary(max_size=80), st.sampled_from(["", ".gz", ".xz"]))
def test_any_bytes_are_read_or_refused(tmp_path, content, suffix):
    path = tmp_path / f"d.jsonl{suffix}"
    path.write_bytes(content)
    for read in (read_documents, read_questions):
        try:
            found = read(path)
        except RecordError as error:
            assert "d.jsonl" in str(error)
        else:
            assert not found and not content.strip(b" \t\r\n\x0b\x0c\xef\xbb\xbf\x1c\x1d\x1e\x1f")
