"""Small invented datasets in the formats of published ones."""

import json
from pathlib import Path

LINE = "\u2028"  # a line separator, which splits no line of a file

_LIGHTHOUSE = {
    "context": f"The lighthouse of Orva was built in 1871.{LINE}Ada Brun repaired it.",
    "qas": [
        {
            "id": "q1",
            "question": " Who repaired the lighthouse? ",
            "answers": [
                {"text": "Ada Brun", "answer_start": 42},
                {"text": "Brun", "answer_start": 46},
                {"text": "Ada Brun", "answer_start": 42},
            ],
            "is_impossible": False,
        },
        {
            "id": "q2",
            "question": "Who painted the lighthouse?",
            "answers": [],
            "plausible_answers": [{"text": "Ada Brun", "answer_start": 42}],
            "is_impossible": True,
        },
    ],
}
_BRIDGE = {
    "context": "Its bridge has four arches.",
    # As in version 1.1: nothing says what is impossible.
    "qas": [
        {
            "id": "q3",
            "question": "How many arches has the bridge?",
            "answers": [{"text": "four", "answer_start": 15}],
        }
    ],
}
SQUAD = {
    "version": "v2.0",
    "data": [
        {"title": "Orva_%28town%29", "paragraphs": [_LIGHTHOUSE, _BRIDGE]},
        # The same paragraph, asked about again.
        {"title": "Orva_%28town%29", "paragraphs": [{**_BRIDGE, "qas": []}]},
    ],
}

_FILM = ["Red Dune (film)", ["Red Dune is a film of 1961.", " It was directed by Ines Vold."]]
_DIRECTOR = ["Ines Vold", ["Ines Vold was born in Tarn.", " She had two brothers."]]
_OTHER_FILM = ["Blue Dune", ["Blue Dune is a film of 1975 by Olaf Kern."]]
_OTHER_DIRECTOR = ["Olaf Kern", ["Olaf Kern was born in Mell."]]
HOTPOTQA = [
    {
        "_id": "bridge",
        "question": "Where was the director of Red Dune born?",
        "answer": "Tarn",
        "type": "bridge",
        "level": "hard",
        # Not in the order in which they are needed.
        "supporting_facts": [["Ines Vold", 0], ["Red Dune (film)", 1], ["Ines Vold", 1]],
        "context": [_DIRECTOR, _OTHER_FILM, _FILM],
    },
    {
        "_id": "comparison",
        "question": "Which came first, Red Dune or Blue Dune?",
        "answer": "Red Dune",
        "type": "comparison",
        "level": "easy",
        "supporting_facts": [["Red Dune (film)", 0], ["Blue Dune", 0]],
        "context": [_FILM, _OTHER_FILM],
    },
    {
        "_id": "not found",
        "question": "Where was the director of Blue Dune born?",
        "answer": "Mell",
        "type": "bridge",
        "level": "hard",
        "supporting_facts": [["Blue Dune", 0], ["Olaf Kern", 0]],
        "context": [_OTHER_FILM],
    },
    # As in a test set.
    {"_id": "test", "question": "Who directed it?", "context": [_FILM]},
]
TWO_WIKI = [
    {
        "_id": "compositional",
        "type": "compositional",
        "question": "Where was the director of Red Dune born?",
        "context": [_DIRECTOR, _OTHER_FILM, _FILM],
        "entity_ids": "Q1_Q2",
        "supporting_facts": [["Ines Vold", 0], ["Red Dune (film)", 1]],
        "evidences": [["Red Dune", "director", "Ines Vold"], ["Ines Vold", "born in", "Tarn"]],
        "answer": "Tarn",
    },
    {
        "_id": "bridge_comparison",
        "type": "bridge_comparison",
        "question": "Are the directors of Red Dune and Blue Dune from one place?",
        "context": [_DIRECTOR, _OTHER_DIRECTOR, _OTHER_FILM, _FILM],
        "supporting_facts": [
            ["Red Dune (film)", 1],
            ["Blue Dune", 0],
            ["Ines Vold", 0],
            ["Olaf Kern", 0],
        ],
        "evidences": [
            ["Red Dune", "director", "Ines Vold"],
            ["Blue Dune", "director", "Olaf Kern"],
            ["Ines Vold", "born in", "Tarn"],
            ["Olaf Kern", "born in", "Mell"],
        ],
        "answer": "no",
    },
    {
        "_id": "comparison",
        "type": "comparison",
        "question": "Which came first, Red Dune or Blue Dune?",
        "context": [_FILM, _OTHER_FILM],
        "supporting_facts": [["Red Dune (film)", 0], ["Blue Dune", 0]],
        "evidences": [["Red Dune", "year", "1961"], ["Blue Dune", "year", "1975"]],
        "answer": "Red Dune",
    },
    # As in a test set.
    {
        "_id": "test",
        "type": "inference",
        "question": "Who was her brother?",
        "context": [_DIRECTOR],
        "supporting_facts": [],
        "evidences": [],
        "answer": "",
    },
]

_PARAGRAPHS = [
    {"idx": 0, "title": "Mell", "paragraph_text": "Mell lies on the Sil.", "is_supporting": True},
    {"idx": 1, "title": "Tarn", "paragraph_text": "Tarn is a city.", "is_supporting": False},
    {"idx": 2, "title": "Olaf", "paragraph_text": "Olaf is from Mell.", "is_supporting": True},
]
MUSIQUE = [
    {
        "id": "2hop__1_2",
        "paragraphs": _PARAGRAPHS,
        "question": f"On what river{LINE} is Olaf's town?",
        "question_decomposition": [
            {"id": 1, "question": "Olaf >> town", "answer": "Mell", "paragraph_support_idx": 2},
            {"id": 2, "question": "#1 >> river", "answer": "Sil", "paragraph_support_idx": 0},
            {"id": 3, "question": "#2 >> town", "answer": "Mell", "paragraph_support_idx": 0},
        ],
        "answer": "Sil",
        "answer_aliases": ["the Sil", "Sil"],
        "answerable": True,
    },
    # Its twin, of which a paragraph was taken away.
    {
        "id": "2hop__1_2",
        "paragraphs": _PARAGRAPHS[1:],
        "question": "On what river is Olaf's town?",
        "question_decomposition": [
            {"id": 1, "question": "Olaf >> town", "answer": "Mell", "paragraph_support_idx": 2},
            {"id": 2, "question": "#1 >> river", "answer": "Sil", "paragraph_support_idx": None},
        ],
        "answer": "Sil",
        "answer_aliases": [],
        "answerable": False,
    },
    # As in a test set.
    {"id": "2hop__3_4", "paragraphs": _PARAGRAPHS, "question": "Who?"},
]

BEIR_CORPUS = [
    {"_id": "1", "title": "Salt", "text": f"Salt{LINE}melts ice.", "metadata": {}},
    {"_id": "2", "title": "", "text": "Sand does not."},
    {"_id": "3", "text": "Water freezes at zero."},
]
BEIR_QUERIES = [
    {"_id": "q1", "text": "What melts ice?", "metadata": {}},
    {"_id": "q2", "text": "When does water freeze?"},
    {"_id": "q3", "text": "Nobody judged this."},
]
BEIR_JUDGEMENTS = {
    "train": "query-id\tcorpus-id\tscore\nq1\t1\t2\nq1\t2\t0\nq1\tnowhere\t1\n",
    "test": "query-id\tcorpus-id\tscore\nq2\t3\t1\nq2\tnowhere\t1\nunknown\t3\t1\r\n",
}

MS_MARCO_FOLDER = {
    "collection.tsv": f"0\tMoss is{LINE}green.\n1\tRust is red.\n2\tMoss grows on stones.\n",
    "queries.train.tsv": "7\twhat colour is moss\n8\twhat is not judged\n",
    "qrels.train.tsv": "7\t0\t0\t1\n",
    "queries.dev.small.tsv": "9\twhere grows moss\n",
    "qrels.dev.small.tsv": "9\t0\t2\t1\n9\t0\t0\t1\n",
    "queries.eval.small.tsv": "10\tof these nobody knows\n",
}
_MOSS = {"is_selected": 1, "url": "http://moss.example", "passage_text": "Moss is green."}
_RUST = {"is_selected": 0, "url": "http://rust.example", "passage_text": "Rust is red."}
MS_MARCO_ROWS = [
    {
        "answers": ["Green", "It is green."],
        "passages": [_RUST, _MOSS, {**_RUST, "url": "http://copy.example"}],
        "query": "what colour is moss",
        "query_id": 7,
        "query_type": "ENTITY",
        "wellFormedAnswers": ["Moss is green.", "Green"],
    },
    {
        "answers": ["No Answer Present."],
        "passages": [_RUST],
        "query": "who is moss",
        "query_id": 8,
        "query_type": "PERSON",
        "wellFormedAnswers": "[]",
    },
]
MS_MARCO_COLUMNS = {
    name: {str(row): values[name] for row, values in enumerate(MS_MARCO_ROWS)}
    for name in MS_MARCO_ROWS[0]
}

_KIND = "single-session-user"
_DOG = [
    {"role": "user", "content": "I have got a dog, Bo.", "has_answer": True},
    {"role": "assistant", "content": f"How nice!{LINE}What does Bo eat?"},
]
_RAIN = [{"role": "user", "content": "Will it rain?"}, {"role": "assistant", "content": "Yes."}]
LONGMEMEVAL = [
    {
        "question_id": "a1",
        "question_type": _KIND,
        "question": "What is my dog called?",
        "answer": "Bo",
        "question_date": "2023/05/30 (Tue) 23:40",
        "haystack_dates": ["2023/05/20 (Sat) 02:21", "2023/05/21 (Sun) 10:00"],
        "haystack_session_ids": ["rain", "answer_1"],
        "haystack_sessions": [_RAIN, _DOG],
        "answer_session_ids": ["answer_1"],
    },
    {
        "question_id": "a2",
        "question_type": "multi-session",
        "question": "How many dogs have I got?",
        "answer": 1,
        "question_date": "2023/06/30 (Fri) 09:00",
        # One session as before, and one on another day.
        "haystack_dates": ["2023/05/20 (Sat) 02:21", "2023/05/22 (Mon) 10:00"],
        "haystack_session_ids": ["rain", "answer_1"],
        "haystack_sessions": [_RAIN, _DOG],
        "answer_session_ids": ["answer_1"],
    },
    {
        "question_id": "a3_abs",
        "question_type": _KIND,
        "question": "What is my cat called?",
        "answer": "You never spoke of a cat.",
        "question_date": "2023/05/30 (Tue) 23:40",
        "haystack_dates": ["2023/05/21 (Sun) 10:00"],
        "haystack_session_ids": ["answer_1"],
        "haystack_sessions": [_DOG],
        "answer_session_ids": ["answer_1"],
    },
]


def lines(rows) -> str:
    """JSON Lines."""
    return "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)


def write_file(path: Path, content) -> Path:
    """Writes text as it is, and anything else as JSON."""
    path.parent.mkdir(parents=True, exist_ok=True)
    text = content if isinstance(content, str) else json.dumps(content, ensure_ascii=False)
    path.write_bytes(text.encode())
    return path


def write_folder(folder: Path, files) -> Path:
    """Writes files by name."""
    for name, content in files.items():
        write_file(folder / name, content)
    return folder


def write_published(folder: Path) -> dict[str, Path]:
    """Writes a dataset in each format; returns where."""
    beir = {f"qrels/{split}.tsv": table for split, table in BEIR_JUDGEMENTS.items()}
    beir |= {"corpus.jsonl": lines(BEIR_CORPUS), "queries.jsonl": lines(BEIR_QUERIES)}
    return {
        "squad": write_file(folder / "dev-v2.0.json", SQUAD),
        "hotpotqa": write_file(folder / "hotpot_dev_distractor_v1.json", HOTPOTQA),
        "2wiki": write_file(folder / "2wiki" / "dev.json", TWO_WIKI),
        "musique": write_file(folder / "musique_full_v1.0_dev.jsonl", lines(MUSIQUE)),
        "beir": write_folder(folder / "scifact", beir),
        "msmarco": write_folder(folder / "collectionandqueries", MS_MARCO_FOLDER),
        "longmemeval": write_file(folder / "longmemeval_s.json", LONGMEMEVAL),
        "text": write_folder(folder / "texts", {"a/b.md": "# Moss\n", "c.txt": "Rust."}),
    }
