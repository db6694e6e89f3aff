"""Files in published formats become documents and questions."""

import gzip
import json
import lzma

import pytest

from msa_jax.data.convert import convert
from msa_jax.data.formats import FORMATS, reading
from msa_jax.data.pipeline import DataConfig, TextDataset
from msa_jax.data.records import (
    RecordError,
    check_references,
    read_documents,
    read_questions,
)
from tests.data import published
from tests.data.published import LINE, lines, write_file, write_folder, write_published

COMPRESS = {".gz": gzip.compress, ".xz": lzma.compress}
# Without the time, which would make every process name its test otherwise.
_CUT_OFF = gzip.compress(b"{}" * 99, mtime=0)[:-9]


@pytest.fixture
def files(tmp_path):
    return write_published(tmp_path)


@pytest.fixture
def converted(tmp_path):
    """Converts, and reads what was written."""

    def converted(name, path):
        output = tmp_path / "out"
        convert(name, path, output)
        documents = read_documents(output / "documents.jsonl")
        asked = output / "questions.jsonl"
        questions = read_questions(asked) if asked.exists() else []
        check_references(documents, questions)
        return Converted(documents, questions)

    return converted


class Converted:
    """What was written, with ids replaced by what they stand for."""

    def __init__(self, documents, questions):
        self.documents = documents
        self.questions = {question.id: question for question in questions}
        assert len(self.questions) == len(questions)
        self._titles = {x.id: x.title or x.text for x in documents}

    def titles(self, ids):
        return [self._titles[doc_id] for doc_id in ids]

    def hops(self, question_id):
        return [self.titles(hop) for hop in self.questions[question_id].hops]

    def positives(self, question_id):
        return self.titles(self.questions[question_id].positive_ids)

    def negatives(self, question_id):
        return self.titles(self.questions[question_id].negative_ids)


def test_squad(files, converted):
    found = converted("squad", files["squad"])
    lighthouse, bridge = found.documents
    assert lighthouse.text == published.SQUAD["data"][0]["paragraphs"][0]["context"]
    assert LINE in lighthouse.text and lighthouse.title == "Orva (town)"
    assert bridge.metadata == {"source": "squad"}
    assert set(found.questions) == {"q1", "q3"}
    question = found.questions["q1"]
    assert question.question == "Who repaired the lighthouse?"
    assert question.answers == ("Ada Brun", "Brun")
    assert question.positive_ids == (lighthouse.id,) and not question.negative_ids
    assert question.metadata == {"dataset": "squad", "split": "dev"}
    assert found.questions["q3"].positive_ids == (bridge.id,)


def test_hotpotqa(files, converted):
    found = converted("hotpotqa", files["hotpotqa"])
    texts = {x.title: x.text for x in found.documents}
    assert list(texts) == ["Ines Vold", "Blue Dune", "Red Dune (film)"]
    assert texts["Red Dune (film)"] == "Red Dune is a film of 1961. It was directed by Ines Vold."
    assert set(found.questions) == {"bridge", "comparison"}
    assert found.hops("bridge") == [["Red Dune (film)"], ["Ines Vold"]]
    assert found.negatives("bridge") == ["Blue Dune"]
    assert found.positives("comparison") == ["Red Dune (film)", "Blue Dune"]
    assert found.hops("comparison") == [] == found.negatives("comparison")
    assert found.questions["bridge"].answers == ("Tarn",)
    assert found.questions["bridge"].metadata == {
        "dataset": "hotpotqa",
        "split": "dev",
        "type": "bridge",
        "level": "hard",
    }


def test_2wiki(files, converted):
    found = converted("2wiki", files["2wiki"])
    assert len(found.documents) == 4
    assert set(found.questions) == {"compositional", "bridge_comparison", "comparison"}
    assert found.hops("compositional") == [["Red Dune (film)"], ["Ines Vold"]]
    assert found.negatives("compositional") == ["Blue Dune"]
    films, directors = ["Red Dune (film)", "Blue Dune"], ["Ines Vold", "Olaf Kern"]
    assert found.hops("bridge_comparison") == [films, directors]
    assert found.hops("comparison") == []
    assert found.positives("comparison") == films


def test_2wiki_hops_are_inferred_where_evidences_use_other_names(tmp_path, converted):
    entry = published.TWO_WIKI[0]
    triples = [["Duna roja", "director", "I. Vold"], ["I. Vold", "born in", "Tarn"]]
    path = write_file(tmp_path / "dev.json", [{**entry, "evidences": triples}])
    assert converted("2wiki", path).hops("compositional") == [["Red Dune (film)"], ["Ines Vold"]]


def test_musique(files, converted):
    found = converted("musique", files["musique"])
    assert [x.title for x in found.documents] == ["Mell", "Tarn", "Olaf"]
    (question,) = found.questions.values()
    assert question.question == f"On what river{LINE} is Olaf's town?"
    assert found.hops("2hop__1_2") == [["Olaf"], ["Mell"]]
    assert found.negatives("2hop__1_2") == ["Tarn"]
    assert question.answers == ("Sil", "the Sil")
    assert question.metadata == {"dataset": "musique", "split": "dev"}


def test_beir(files, converted):
    found = converted("beir", files["beir"])
    assert [x.id for x in found.documents] == ["scifact-1", "scifact-2", "scifact-3"]
    assert found.documents[0].text == f"Salt{LINE}melts ice."
    assert [x.title for x in found.documents] == ["Salt", "", ""]
    assert set(found.questions) == {"q1", "q2"}
    assert found.questions["q1"].positive_ids == ("scifact-1",)
    assert found.questions["q1"].negative_ids == ("scifact-2",)
    assert found.questions["q2"].positive_ids == ("scifact-3",)
    assert found.questions["q1"].metadata == {"dataset": "scifact", "split": "train"}
    assert found.questions["q2"].metadata["split"] == "test"


def test_msmarco_ranking(files, converted):
    found = converted("msmarco", files["msmarco"])
    assert [x.id for x in found.documents] == ["msmarco-0", "msmarco-1", "msmarco-2"]
    assert found.documents[0].text == f"Moss is{LINE}green."
    assert set(found.questions) == {"7", "9"}
    assert found.questions["7"].positive_ids == ("msmarco-0",)
    assert found.questions["7"].metadata == {"dataset": "msmarco", "split": "train"}
    assert found.questions["9"].positive_ids == ("msmarco-2", "msmarco-0")
    assert found.questions["9"].metadata["split"] == "dev.small"


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("train_v2.1.json", published.MS_MARCO_COLUMNS),
        ("train_v2.1.jsonl", lines(published.MS_MARCO_ROWS)),
    ],
)
def test_msmarco_answering(tmp_path, converted, name, content):
    found = converted("msmarco", write_file(tmp_path / name, content))
    assert {x.text for x in found.documents} == {"Rust is red.", "Moss is green."}
    (question,) = found.questions.values()
    assert question.id == "7" and question.question == "what colour is moss"
    assert question.answers == ("Green", "It is green.", "Moss is green.")
    assert found.positives("7") == ["Moss is green."]
    assert found.negatives("7") == ["Rust is red."]
    assert question.metadata == {"dataset": "msmarco", "split": "train", "type": "ENTITY"}


def test_longmemeval(files, converted):
    found = converted("longmemeval", files["longmemeval"])
    rain, dog, dog_again = found.documents
    assert rain.title == "2023/05/20 (Sat) 02:21" and rain.metadata["session_id"] == "rain"
    assert dog.text == f"user: I have got a dog, Bo.\nassistant: How nice!{LINE}What does Bo eat?"
    assert dog_again.text == dog.text and dog_again.title == "2023/05/22 (Mon) 10:00"
    assert set(found.questions) == {"a1", "a2"}
    question = found.questions["a1"]
    assert question.question == "Today is 2023/05/30 (Tue) 23:40. What is my dog called?"
    assert question.positive_ids == (dog.id,) and question.negative_ids == (rain.id,)
    assert question.metadata["type"] == "single-session-user"
    assert found.questions["a2"].positive_ids == (dog_again.id,)
    assert found.questions["a2"].answers == ("1",)


def test_text(files, tmp_path, converted):
    found = converted("text", files["text"])
    assert [(x.id, x.text) for x in found.documents] == [("a/b.md", "# Moss\n"), ("c.txt", "Rust.")]
    assert not found.questions and not (tmp_path / "out" / "questions.jsonl").exists()
    (document,) = converted("text", files["text"] / "a" / "b.md").documents
    assert (document.id, document.title, document.text) == ("b.md", "b", "# Moss\n")


@pytest.mark.parametrize("name", FORMATS)
def test_the_same_input_gives_the_same_bytes_compressed_or_not(files, tmp_path, name):
    path = files[name]
    convert(name, path, tmp_path / "one")
    for file in [path] if path.is_file() else path.rglob("*"):
        if file.is_file() and name != "text":
            suffix = ".xz" if "qrels" in str(file) else ".gz"
            compressed = COMPRESS[suffix](file.read_bytes())
            file.with_name(file.name + suffix).write_bytes(compressed)
            file.unlink()
    again = path if path.exists() else path.with_name(path.name + ".gz")
    convert(name, again, tmp_path / "two")
    names = sorted(file.name for file in (tmp_path / "one").iterdir())
    assert names == sorted(file.name for file in (tmp_path / "two").iterdir())
    for file in names:
        assert (tmp_path / "one" / file).read_bytes() == (tmp_path / "two" / file).read_bytes()


def test_splits_of_a_dataset_share_their_documents(files, tmp_path, tokenizer_path, memory_config):
    """A training dataset is made of two conversions that have paragraphs in common."""
    train = write_file(tmp_path / "hotpot_train_v1.1.json", published.HOTPOTQA[:1])
    convert("hotpotqa", train, tmp_path / "train")
    convert("hotpotqa", files["hotpotqa"], tmp_path / "dev")
    sources = {
        name: {
            "documents": str(tmp_path / name / "documents.jsonl"),
            "questions": str(tmp_path / name / "questions.jsonl"),
            "split": name,
            "datasets": ("hotpotqa",),
        }
        for name in ("train", "dev")
    }
    data = DataConfig(
        sources=sources,
        tokenizer=str(tokenizer_path),
        template="plain",
        row_tokens=256,
        max_document_tokens=128,
    )
    dataset = TextDataset.load(data, memory_config)
    assert len(set(dataset.parents)) == 3
    assert [question.id for question in dataset.questions] == ["bridge", "bridge", "comparison"]
    assert [len(hops) for hops in dataset.hops] == [2, 2, 1]


def without(entry, *fields):
    return {name: value for name, value in entry.items() if name not in fields}


HOTPOT, WIKI, CHAIN = published.HOTPOTQA[0], published.TWO_WIKI[0], published.MUSIQUE[0]
CHAT, ASKED = published.LONGMEMEVAL[0], published.MS_MARCO_ROWS[0]


@pytest.mark.parametrize(
    ("name", "file", "content", "message"),
    [
        ("squad", "x.json", {"data": [{"paragraphs": []}]}, r"x.json, data\[0\]: title is missing"),
        ("squad", "x.json", {"data": {"qas": 1}}, "x.json: data must be a list, not an object"),
        ("squad", "x.json", {"version": "v2.0"}, "x.json: data is missing"),
        ("squad", "x.json", '{"data": [', r"x.json: not JSON \("),
        ("squad", "x.json", "", "x.json: the file is empty"),
        ("squad", "x.json", {"data": []}, "x.json: there is no document in it"),
        ("hotpotqa", "x.json", " ", "x.json: the file is empty"),
        ("hotpotqa", "x.json", [], "x.json: there is no document in it"),
        ("hotpotqa", "x.json", {}, "x.json: must be one list of objects"),
        ("hotpotqa", "x.json", [HOTPOT, 3], "x.json, entry 2: must be an object, not a number"),
        ("hotpotqa", "x.json", [without(HOTPOT, "_id")], "x.json, entry 1: _id is missing"),
        ("hotpotqa", "x.json", [without(HOTPOT, "context")], "entry 1: context is missing"),
        (
            "hotpotqa",
            "x.json",
            [HOTPOT, {**HOTPOT, "context": [["a"]]}],
            r"entry 2: context must hold lists of \[title, sentences\]",
        ),
        (
            "hotpotqa",
            "x.json",
            [{**HOTPOT, "context": [["a", "b"]]}],
            r"entry 1, context\[0\]: sentences must be a list, not text",
        ),
        ("hotpotqa", "x.json", json.dumps([HOTPOT])[:-9], "entry 1: not JSON, or cut short"),
        (
            "2wiki",
            "x.json",
            [{**WIKI, "evidences": [["a", "b"]]}],
            r"evidences must hold lists of \[subject, relation, object\]",
        ),
        ("musique", "x.jsonl", "", "x.jsonl: there is no document in it"),
        ("musique", "x.jsonl", lines([CHAIN]) + "{\n", "x.jsonl:2: not a line of JSON"),
        ("musique", "x.jsonl", lines([without(CHAIN, "question")]), "x.jsonl:1: question is miss"),
        (
            "musique",
            "x.jsonl",
            lines([{**CHAIN, "paragraphs": [{"idx": 0, "title": "a", "paragraph_text": 5}]}]),
            r"x.jsonl:1, paragraphs\[0\]: paragraph_text must be text, not a number",
        ),
        ("msmarco", "x.json", {"answers": {"0": []}}, "x.json: query_id is missing"),
        ("msmarco", "x.jsonl", lines([without(ASKED, "query")]), "x.jsonl:1: query is missing"),
        (
            "longmemeval",
            "x.json",
            [{**CHAT, "haystack_dates": []}],
            "x.json, entry 1: haystack_session_ids, .* must be equally long",
        ),
        (
            "longmemeval",
            "x.json",
            [{**CHAT, "haystack_sessions": [[], [{"role": "user"}]]}],
            r"entry 1, session 2, turns\[0\]: content is missing",
        ),
        ("squad", "x.json", b'{"data": "\xff"}', "x.json: not text in UTF-8"),
        ("hotpotqa", "x.json", b'["\xff"]', "x.json: not text in UTF-8"),
        ("squad", "x.json.gz", b"no gzip", r"x.json.gz: cannot be read \(Not a gzipped file"),
        ("squad", "x.json.gz", _CUT_OFF, "x.json.gz: cannot be read"),
        (
            "squad",
            "x.json",
            {"data": [{"title": "\ud800", "paragraphs": []}]},
            r"data\[0\]: title holds an unpaired surrogate",
        ),
    ],
)
def test_bad_files_are_named_and_nothing_is_written(tmp_path, name, file, content, message):
    path = tmp_path / file
    if isinstance(content, bytes):
        path.write_bytes(content)
    else:
        path.write_text(content if isinstance(content, str) else json.dumps(content))
    with pytest.raises(RecordError, match=message):
        convert(name, path, tmp_path / "out")
    assert list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize(
    ("name", "change", "message"),
    [
        ("beir", {"corpus.jsonl": lines([{"_id": "1"}])}, "corpus.jsonl:1: text is missing"),
        ("beir", {"queries.jsonl": None}, "the folder has no queries.jsonl"),
        ("beir", {"qrels/test.tsv": "a\tb\tscore\nq1\t1\tx\n"}, "test.tsv:2: the grade must be"),
        ("beir", {"qrels/test.tsv": "q1 1 1\n"}, "test.tsv:1: must be 3 columns .*, not 1"),
        ("beir", {"qrels/test.tsv": None, "qrels/train.tsv": None}, "qrels: there is no file of"),
        (
            "beir",
            {"corpus.jsonl": lines([{"_id": 1, "text": "a"}, {"_id": "1", "text": "b"}])},
            "scifact: id 'scifact-1' is that of two different documents",
        ),
        ("msmarco", {"collection.tsv": "0\tone\n1 two\n"}, "collection.tsv:2: must be 2 columns"),
        ("msmarco", {"queries.train.tsv": None}, "the folder has no queries.train.tsv"),
        ("msmarco", {"collection.tsv": ""}, "there is no document in it"),
    ],
)
def test_bad_folders_are_named_and_the_output_stays(files, tmp_path, name, change, message):
    output = write_folder(tmp_path / "out", {"documents.jsonl": "old", "questions.jsonl": "old"})
    for file, content in change.items():
        if content is None:
            (files[name] / file).unlink()
        else:
            write_file(files[name] / file, content)
    with pytest.raises(RecordError, match=message):
        convert(name, files[name], output)
    assert {file.name: file.read_text() for file in output.iterdir()} == {
        "documents.jsonl": "old",
        "questions.jsonl": "old",
    }


@pytest.mark.parametrize("said", FORMATS)
@pytest.mark.parametrize("name", FORMATS)
def test_another_format_than_said_is_recognised(files, tmp_path, name, said):
    if said == name:
        assert "documents" in convert(said, files[name], tmp_path / "out")
        return
    if name == "text":
        files[name] = files[name] / "c.txt"
    with pytest.raises(RecordError, match=f"is of format {name}, not {said}; say --format={name}"):
        convert(said, files[name], tmp_path / "out")
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("content", [published.MS_MARCO_COLUMNS, lines(published.MS_MARCO_ROWS)])
def test_msmarco_answering_is_recognised(tmp_path, content):
    with pytest.raises(RecordError, match="is of format msmarco, not squad"):
        convert("squad", write_file(tmp_path / "x.json", content), tmp_path / "out")


def test_a_test_set_of_hotpotqa_is_documents_alone(tmp_path, converted):
    path = write_file(tmp_path / "hotpot_test_fullwiki_v1.json", published.HOTPOTQA[3:])
    found = converted("hotpotqa", path)
    assert len(found.documents) == 1 and not found.questions
    with pytest.raises(RecordError, match="is of format hotpotqa, not beir"):
        convert("beir", path, tmp_path / "out")


def test_files_and_folders_are_told_apart(files, tmp_path):
    with pytest.raises(RecordError, match="texts: is a folder; name a file of format squad"):
        convert("squad", files["text"], tmp_path / "out")
    for name, file in (("beir", "corpus.jsonl"), ("msmarco", "collection.tsv")):
        with pytest.raises(RecordError, match=f"{file}: is a file; name the folder that has all"):
            convert(name, files[name] / file, tmp_path / "out")


def test_long_lists_are_read_in_blocks(files, tmp_path, monkeypatch):
    convert("hotpotqa", files["hotpotqa"], tmp_path / "whole")
    monkeypatch.setattr(reading, "_BLOCK", 7)
    convert("hotpotqa", files["hotpotqa"], tmp_path / "blocks")
    for name in ("documents.jsonl", "questions.jsonl"):
        assert (tmp_path / "whole" / name).read_bytes() == (tmp_path / "blocks" / name).read_bytes()
    entries = reading.read_list(files["hotpotqa"])
    assert next(entries)["_id"] == "bridge"


def test_a_collection_is_not_held_in_memory(files, tmp_path):
    """Documents come while the collection is read, before a bad line of it is reached."""
    table = "".join(f"{number}\tPassage {number}.\n" for number in range(1000))
    write_file(files["msmarco"] / "collection.tsv", table + "bad\n")
    records = FORMATS["msmarco"](files["msmarco"])
    assert [next(records).id for _ in range(1000)][-1] == "msmarco-999"
    with pytest.raises(RecordError, match="collection.tsv:1001"):
        next(records)
