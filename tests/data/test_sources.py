"""Question files: what is read, and what is refused in one line that names file and row."""

import csv
import json
import re
from collections import Counter

import datasets
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from pydantic import ValidationError

from jaxift.config import DomainConfig
from jaxift.data.mmlu import SUBCATEGORY
from jaxift.data.questions import demonstrations
from jaxift.data.sources import check_demonstrations, read_domain, read_source, read_sources
from jaxift.errors import UserError
from jaxift.source_config import Fields, QuestionSource

GOOD = {"id": "g1", "question": "Which?", "options": ["red", "green", "blue"], "answer": 1, "subject": "colour"}


def write(folder, *rows, name="questions.jsonl"):
    """Rows as JSONL; a row that is a text is written as it is."""
    lines = [row if isinstance(row, str) else json.dumps(row, ensure_ascii=False) for row in rows]
    (folder / name).write_text("\n".join(lines) + "\n", encoding="utf-8")
    return QuestionSource(path=name)


def write_csv(folder, *rows, name="anatomy_test.csv"):
    with (folder / name).open("w", newline="", encoding="utf-8") as file:
        csv.writer(file).writerows(rows)
    return QuestionSource(path=name, format="mmlu_csv")


def row(**fields):
    return {**GOOD, **fields}


def domain(folder, **splits):
    """A domain of one-question splits, each with ids of its own, some replaced."""
    made = {
        name: [row(id=f"{name}-1", question=f"Which in {name}?")] for name in ("dev", "train", "homo", "id", "ood")
    } | splits
    sources = {name: (write(folder, *rows, name=f"{name}.jsonl"),) for name, rows in made.items()}
    return DomainConfig(name="colours", **sources)


def without(name):
    return {key: value for key, value in GOOD.items() if key != name}


BROKEN_JSONL = {
    "bad JSON": ("{", "not valid JSON"),
    "a list": ("[1]", "holds list, not an object"),
    "no question": (without("question"), "field 'question' is missing"),
    "no options": (without("options"), "field 'options' is missing"),
    "no answer": (without("answer"), "field 'answer' is missing"),
    "empty question": (row(question="  "), "field 'question' must be a non-empty text"),
    "question is a number": (row(question=5), "field 'question' must be a non-empty text"),
    "options are a text": (row(options="red green"), "field 'options' must be a list"),
    "an option is a number": (row(options=["red", 5]), "field 'options' must be a list of non-empty texts"),
    "an option is empty": (row(options=["red", "", "blue"]), "field 'options' must be a list of non-empty texts"),
    "answer is another text": (row(answer="yellow"), "answer 'yellow' is not among the options"),
    "answer is a letter too far": (row(answer="D"), "answer 'D' is not among the options"),
    "answer is an index too far": (row(answer=3), "answer 3 is not among the 3 options"),
    "answer is negative": (row(answer=-1), "answer -1 is not among the 3 options"),
    "answer is true": (row(answer=True), "answer True is not among the options"),
    "answer is null": (row(answer=None), "answer None is not among the options"),
    "answer is a list": (row(answer=[1]), "answer [1] is not among the options"),
    "one option": (row(options=["red"], answer=0), "1 options; give 2 to 26"),
    "27 options": (row(options=[f"o{number}" for number in range(27)]), "27 options; give 2 to 26"),
}


def refusal(call, *arguments):
    """The one line that a call refuses with."""
    with pytest.raises(UserError) as caught:
        call(*arguments)
    message = str(caught.value)
    assert message
    assert "\n" not in message
    return message


@pytest.mark.parametrize("name", BROKEN_JSONL)
def test_broken_row_is_refused_by_file_and_row(name, tmp_path):
    broken, expected = BROKEN_JSONL[name]
    message = refusal(read_source, write(tmp_path, GOOD, broken), str(tmp_path))
    assert f"{tmp_path / 'questions.jsonl'}:2: " in message
    assert expected in message


BROKEN_CSV = {
    "letter too far": (["Which?", "red", "green", "E"], "answer 'E' is not among the options"),
    "empty letter": (["Which?", "red", "green", ""], "answer '' is not among the options"),
    "letter in lower case": (["Which?", "red", "green", "a"], "answer 'a' is not among the options"),
    "an empty option": (["Which?", "red", "", "B"], "must be non-empty texts"),
    "an empty question": (["", "red", "green", "B"], "must be non-empty texts"),
    "two letters": (["Which?", "red", "green", "AB"], "answer 'AB' is not among the options"),
    "too few columns": (["Which?", "A"], "has 2 columns"),
    "27 options": (["Which?", *[f"o{number}" for number in range(27)], "A"], "27 options; give 2 to 26"),
}


@pytest.mark.parametrize("name", BROKEN_CSV)
def test_broken_csv_row_is_refused_by_file_and_row(name, tmp_path):
    broken, expected = BROKEN_CSV[name]
    message = refusal(read_source, write_csv(tmp_path, ["Which?", "red", "green", "B"], broken), str(tmp_path))
    assert f"{tmp_path / 'anatomy_test.csv'}: row 2: " in message
    assert expected in message


def test_a_subject_is_not_taken_for_another(tmp_path):
    source = write_csv(tmp_path, ["Which?", "red", "green", "B"]).model_copy(update={"subjects": "history"})
    assert "anatomy_test.csv: is not of the subjects history" in refusal(read_source, source, str(tmp_path))
    assert read_source(source.model_copy(update={"subjects": "medicine"}), str(tmp_path))


def test_a_quote_that_never_ends_is_refused(tmp_path):
    (tmp_path / "law_test.csv").write_text('"' + "x" * 200_000)
    source = QuestionSource(path="law_test.csv", format="mmlu_csv")
    assert "law_test.csv: not valid CSV" in refusal(read_source, source, str(tmp_path))


def test_missing_file_is_refused(tmp_path):
    message = refusal(read_source, QuestionSource(path="nothing.jsonl"), str(tmp_path))
    assert f"{tmp_path / 'nothing.jsonl'}: no such file" in message


@pytest.mark.parametrize("ending", ["jsonl", "csv", "parquet"])
def test_folder_in_place_of_a_file_is_refused(tmp_path, ending):
    (tmp_path / f"folder.{ending}").mkdir()
    assert "no such file" in refusal(read_source, QuestionSource(path=f"folder.{ending}"), str(tmp_path))


def test_text_that_is_not_utf8_is_refused(tmp_path):
    (tmp_path / "latin.jsonl").write_bytes(b'{"question": "caf\xe9"}\n')
    message = refusal(read_source, QuestionSource(path="latin.jsonl"), str(tmp_path))
    assert f"{tmp_path / 'latin.jsonl'}: cannot be read as UTF-8" in message


def test_duplicate_ids_are_refused(tmp_path):
    sources = [write(tmp_path, GOOD, name="a.jsonl"), write(tmp_path, GOOD, name="b.jsonl")]
    message = refusal(read_sources, sources, str(tmp_path))
    assert "a.jsonl, b.jsonl: id g1 occurs twice" in message


@pytest.mark.parametrize("split", ["train", "homo", "id", "ood"])
def test_empty_set_is_refused(split, tmp_path):
    message = refusal(read_domain, domain(tmp_path, **{split: [""]}), str(tmp_path))
    assert f"domain colours: its {split} set is empty" in message


@pytest.mark.parametrize("split", ["homo", "id", "ood"])
def test_training_question_in_a_test_set_is_refused(split, tmp_path):
    rows = [row(id="fresh", question="Fresh?"), row(id="twin", question="which, in TRAIN")]
    message = refusal(read_domain, domain(tmp_path, **{split: rows}), str(tmp_path))
    assert f"domain colours: train has questions that are also in {split} (1, e.g. train-1)" in message


@pytest.mark.parametrize(("first", "second"), [("train", "homo"), ("train", "ood"), ("dev", "train"), ("dev", "id")])
def test_the_same_question_under_another_id_is_still_the_same(first, second, tmp_path):
    rows = [row(id="disguised", question=f"Which in {first}?", options=GOOD["options"][::-1])]
    message = refusal(read_domain, domain(tmp_path, **{second: rows}), str(tmp_path))
    kept, other = ("train", "dev") if (first, second) == ("dev", "train") else (first, second)
    assert f"{kept} has questions that are also in {other} (1, e.g. " in message


def test_domain_may_have_no_demonstrations(tmp_path):
    splits = read_domain(domain(tmp_path, dev=[""]), str(tmp_path)).splits
    assert [len(split) for split in splits.values()] == [0, 1, 1, 1, 1]


@pytest.mark.parametrize("answer", [1, "green", "B"])
def test_answer_is_an_index_a_text_or_a_letter(answer, tmp_path):
    [question] = read_source(write(tmp_path, row(answer=answer)), str(tmp_path))
    assert (question.id, question.answer, question.subject) == ("g1", 1, "colour")


def test_an_answer_that_means_two_options_is_refused(tmp_path):
    message = refusal(read_source, write(tmp_path, row(options=["B", "C", "A"], answer="A")), str(tmp_path))
    assert "answer 'A' could be an option's text, its letter or its index; set the source's answers" in message
    [question] = read_source(write(tmp_path, row(options=["A", "C", "B"], answer="A")), str(tmp_path))
    assert question.answer == 0


def test_columns_have_the_names_that_the_source_gives(tmp_path):
    renamed = {"qid": 7, "stem": "Which?", "choices": ["a", "b"], "label": "b", "topic": "t"}
    fields = Fields(id="qid", question="stem", options="choices", answer="label", subject="topic")
    source = write(tmp_path, renamed).model_copy(update={"fields": fields})
    [question] = read_source(source, str(tmp_path))
    assert (question.id, question.question, question.options, question.answer) == ("7", "Which?", ("a", "b"), 1)


def test_row_number_serves_where_there_is_no_id(tmp_path):
    rows = [without("id"), "", without("id")]
    questions = read_source(write(tmp_path, *rows), str(tmp_path))
    assert [question.id for question in questions] == ["questions-1", "questions-3"]


@pytest.mark.parametrize("mark", ["\u2028", "\u2029", "\x85", "\x0b", "\x0c", "\x1c"])
def test_line_separators_inside_json_texts_are_no_line_ends(mark, tmp_path):
    written = mark if ord(mark) >= 32 else f"\\u{ord(mark):04x}"  # JSON has control characters escaped
    text = '{"id": "1", "question": "one|two", "options": ["a", "b|c"], "answer": 1}'.replace("|", written)
    questions = read_source(write(tmp_path, text, row(id="2")), str(tmp_path))
    assert [question.id for question in questions] == ["1", "2"]
    assert (questions[0].question, questions[0].options[1]) == (f"one{mark}two", f"b{mark}c")


@pytest.mark.parametrize("end", ["\n", "\r\n"])
def test_newlines_inside_quoted_csv_fields_stay(end, tmp_path):
    text = f'"first{end}second, ""quoted""",red,"gr{end}een",A{end}Which?,red,green,B{end}'
    (tmp_path / "law_test.csv").write_bytes(text.encode())
    first, second = read_source(QuestionSource(path="law_test.csv", format="mmlu_csv"), str(tmp_path))
    assert first.question.split() == ["first", "second,", '"quoted"']
    assert first.options[1].split() == ["gr", "een"]
    assert (second.question, second.answer, second.id, second.subject) == ("Which?", 1, "law_test-2", "law")


def test_shuffle_goes_before_limit_and_follows_its_seed(tmp_path):
    plain = write(tmp_path, *[row(id=str(number)) for number in range(20)])

    def ids(**fields):
        return [question.id for question in read_source(plain.model_copy(update=fields), str(tmp_path))]

    assert ids(limit=3) == ["0", "1", "2"]
    shuffled = ids(shuffle_seed=1)
    assert shuffled != ids()
    assert sorted(shuffled) == sorted(ids())
    assert ids(shuffle_seed=1, limit=5) == shuffled[:5]
    assert ids(shuffle_seed=2) != shuffled


def test_all_of_mmlu_reads(shared_data):
    files = sorted((shared_data / "mmlu" / "test").glob("*.csv"))
    assert len(files) == 57
    counts = Counter()
    for file in files:
        for question in read_source(QuestionSource(path=file.name, format="mmlu_csv"), str(file.parent)):
            counts[question.subject] += 1
            assert len(question.options) == 4
    assert counts.total() == 14_042
    assert counts["electrical_engineering"] == 145
    history = [f"high_school_{place}_history" for place in ("european", "us", "world")]
    assert sum(counts[subject] for subject in [*history, "prehistory"]) == 930


def test_arc_reads_with_three_to_five_options(shared_data):
    fields = Fields(options="choices")
    files = sorted((shared_data / "arc").glob("*.jsonl"))
    assert len(files) == 6
    sources = [QuestionSource(path=f"arc/{file.name}", fields=fields) for file in files]
    questions = read_sources(sources, str(shared_data))
    assert {len(question.options) for question in questions} == {3, 4, 5}


@pytest.mark.parametrize(
    ("answer", "kind", "expected"),
    [
        ("3", "text", 0), ("3", "index", 3), ("3", "index_from_1", 2), (1, "index_from_1", 0), ("1", "auto", 1),
        ("D", "letter", 3), ("D", "auto", 3), (2, "auto", 2), ("2000", "auto", 1),
    ],
)  # fmt: skip
def test_answers_are_what_the_source_says(tmp_path, answer, kind, expected):
    source = write(tmp_path, row(options=["3", "2000", "1st", "4"], answer=answer))
    [question] = read_source(source.model_copy(update={"answers": kind}), str(tmp_path))
    assert question.answer == expected


@pytest.mark.parametrize(
    ("answer", "kind"), [("3", "auto"), ("9", "index"), ("3", "letter"), ("D", "text"), ("D", "index")]
)
def test_answers_that_are_something_else_are_refused(tmp_path, answer, kind):
    source = write(tmp_path, row(options=["3", "2000", "1st", "4"], answer=answer))
    assert f"answer {answer!r}" in refusal(read_source, source.model_copy(update={"answers": kind}), str(tmp_path)) or (
        "answer 9 is not among the 4 options"
        in refusal(read_source, source.model_copy(update={"answers": kind}), str(tmp_path))
    )


# other kinds of sources: the same four questions from each

FOUR = [
    {"id": f"q{n}", "question": f"Which is {n}?", "options": ["zero", "one", "two", "three"], "answer": n,
     "kind": "ab"[n % 2], "explanation": f"Because {n}." if n else "", "context": f"There is {n}."}
    for n in range(4)
]  # fmt: skip
COLUMNS = ("first", "second", "third", "fourth")


def as_columns(item):
    """The same item with a column for each option."""
    return {
        **{key: value for key, value in item.items() if key != "options"},
        **dict(zip(COLUMNS, item["options"], strict=True)),
    }


def csv_source(folder):
    with (folder / "four.csv").open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, list(as_columns(FOUR[0])))
        writer.writeheader()
        writer.writerows(map(as_columns, FOUR))
    return QuestionSource(path="four.csv", fields=Fields(options=COLUMNS))


def parquet_source(folder):
    pq.write_table(pa.Table.from_pylist(FOUR), folder / "four.parquet")
    return QuestionSource(path="four.parquet")


def saved_source(folder):
    """What `save_to_disk` of Hugging Face datasets writes, with options and labels nested as ARC has them."""
    rows = [
        {**{k: v for k, v in item.items() if k != "options"}, "answer": "1234"[item["answer"]],
         "choices": {"text": item["options"], "label": list("1234")}}
        for item in FOUR
    ]  # fmt: skip
    found = datasets.DatasetDict({"test": datasets.Dataset.from_list(rows)})
    found.save_to_disk(str(folder / "saved"))
    return QuestionSource(
        path="saved", format="datasets", split="test", fields=Fields(options="choices.text", labels="choices.label")
    )


def files_source(folder):
    """A folder of data files that datasets reads, as a clone of a repository of the Hub."""
    (folder / "files").mkdir()
    (folder / "files" / "test.jsonl").write_text("".join(json.dumps(item) + "\n" for item in FOUR))
    return QuestionSource(path="files", format="datasets", split="test")


def tfds_source(folder):
    """A prepared TFDS dataset in ArrayRecord, written without TensorFlow."""
    import tensorflow_datasets as tfds
    from array_record.python.array_record_module import ArrayRecordWriter
    from tensorflow_datasets.proto import tf_example_pb2

    home = folder / "tiny" / "1.0.0"
    home.mkdir(parents=True)
    text = tfds.features.Text()
    features = tfds.features.FeaturesDict(
        {name: text for name in ("id", "question", "kind", "explanation", "context")}
        | {"options": tfds.features.Sequence(text), "answer": np.int64}
    )
    features.save_config(home)
    writer = ArrayRecordWriter(str(home / "tiny-test.array_record-00000-of-00001"), "group_size:1")
    for item in FOUR:
        example = tf_example_pb2.Example()
        for name, value in item.items():
            feature = example.features.feature[name]
            if name == "answer":
                feature.int64_list.value.append(value)
            else:
                texts = value if isinstance(value, list) else [value]
                feature.bytes_list.value.extend(each.encode() for each in texts)
        writer.write(example.SerializeToString())
    writer.close()
    split = {
        "name": "test",
        "shardLengths": ["4"],
        "numBytes": "1",
        "filepathTemplate": "{DATASET}-{SPLIT}.{FILEFORMAT}-{SHARD_X_OF_Y}",
    }
    about = {"name": "tiny", "version": "1.0.0", "fileFormat": "array_record", "moduleName": "none", "splits": [split]}
    (home / "dataset_info.json").write_text(json.dumps(about))
    return QuestionSource(path="tfds:tiny/1.0.0", split="test")


SOURCES = {
    "csv": csv_source, "parquet": parquet_source, "saved": saved_source, "files": files_source, "tfds": tfds_source,
}  # fmt: skip


@pytest.mark.parametrize("kind", SOURCES)
def test_every_kind_of_source_gives_the_same_questions(kind, tmp_path):
    (tmp_path / "plain.jsonl").write_text("".join(json.dumps(item) + "\n" for item in FOUR))
    expected = read_source(QuestionSource(path="plain.jsonl"), str(tmp_path))
    assert [(q.id, q.answer, q.explanation, q.context) for q in expected[2:]] == [
        ("q2", 2, "Because 2.", "There is 2."), ("q3", 3, "Because 3.", "There is 3."),
    ]  # fmt: skip
    source = SOURCES[kind](tmp_path)
    assert read_source(source, str(tmp_path)) == expected
    chosen = source.model_copy(update={"where": {"kind": "a"}, "nonempty": ("explanation",)})
    assert [question.id for question in read_source(chosen, str(tmp_path))] == ["q2"]


@pytest.mark.parametrize("kind", ["saved", "files", "tfds"])
def test_a_split_that_is_not_there_is_refused(kind, tmp_path):
    source = SOURCES[kind](tmp_path).model_copy(update={"split": "nowhere"})
    assert f"{source.path}: split nowhere cannot be read" in refusal(read_source, source, str(tmp_path))


def test_a_dataset_that_is_nowhere_is_refused(tmp_path):
    source = QuestionSource(path="tfds:no_such_dataset", split="test")
    assert "tfds:no_such_dataset: split test cannot be read" in refusal(read_source, source, str(tmp_path))


def test_a_missing_column_is_refused_by_row(tmp_path):
    source = parquet_source(tmp_path).model_copy(update={"where": {"colour": "red"}})
    assert "four.parquet: row 1: field 'colour' is missing" in refusal(read_source, source, str(tmp_path))
    source = csv_source(tmp_path).model_copy(update={"fields": Fields(options=("first", "fifth"))})
    assert "four.csv: row 1: field 'fifth' is missing" in refusal(read_source, source, str(tmp_path))


def test_a_csv_row_of_another_width_is_refused(tmp_path):
    (tmp_path / "q.csv").write_text("question,a,b,answer\nWhich?,x,y,A\nWhich, then?,x,y,A\n")
    source = QuestionSource(path="q.csv", fields=Fields(options=("a", "b")))
    assert "q.csv: row 2: has another number of values" in refusal(read_source, source, str(tmp_path))


def test_the_last_of_the_options_columns_may_be_empty(tmp_path):
    (tmp_path / "q.csv").write_text("question,a,b,c,answer\nWhich?,x,y,,B\nWhich then?,x,,z,A\n")
    source = QuestionSource(path="q.csv", fields=Fields(options=("a", "b", "c")))
    [question] = read_source(source.model_copy(update={"where": {"answer": "B"}}), str(tmp_path))
    assert (question.options, question.answer) == (("x", "y"), 1)
    assert "row 2: field 'a, b, c' must be a list of non-empty texts" in refusal(read_source, source, str(tmp_path))


@pytest.mark.parametrize(
    ("fields", "expected"),
    [
        ({"path": "folder"}, "the ending does not tell the format"),
        ({"path": "owner/name", "format": "datasets"}, "the key split goes with"),
        ({"path": "a.jsonl", "split": "test"}, "the key split goes with"),
        ({"path": "a.jsonl", "subset": "x"}, "the key subset goes with"),
        ({"path": "tfds:x"}, "the key split goes with"),
        ({"path": "m", "format": "mmlu_csv", "fields": {"id": "x"}}, "has its own columns"),
    ],
)
def test_keys_that_do_not_go_together_are_refused(fields, expected):
    with pytest.raises(ValidationError, match=expected):
        QuestionSource.model_validate(fields)


# what is joined to questions, and what must not stand in two sets


def test_explanations_come_from_a_file_by_id(tmp_path):
    write(tmp_path, {"id": "g1", "explanation": " So. "}, {"id": "other", "explanation": "x"}, name="why.jsonl")
    source = write(tmp_path, GOOD, row(id="g2", explanation="own")).model_copy(update={"explanations": "why.jsonl"})
    assert [question.explanation for question in read_source(source, str(tmp_path))] == ["So.", "own"]
    write(tmp_path, {"id": "g1", "explanation": "So."}, {"id": "g1", "explanation": "No."}, name="why.jsonl")
    assert "why.jsonl:2: id g1 is explained twice" in refusal(read_source, source, str(tmp_path))
    write(tmp_path, {"id": "g1"}, name="why.jsonl")
    assert "why.jsonl:1: fields 'id' and 'explanation'" in refusal(read_source, source, str(tmp_path))


@pytest.mark.parametrize(
    ("header", "expected"),
    [("domain", ""), ("subject", "high school law"), ("subject_after_space", " high school law")],
)
def test_a_header_is_the_domains_or_the_subjects(tmp_path, header, expected):
    source = write(tmp_path, row(subject="high_school_law")).model_copy(update={"header": header})
    [question] = read_source(source, str(tmp_path))
    assert question.header == expected
    bare = write(tmp_path, without("subject")).model_copy(update={"header": header})
    if header != "domain":
        assert "question questions-1 has no subject" in refusal(
            read_source,
            write(tmp_path, {**without("id"), "subject": ""}).model_copy(update={"header": header}),
            str(tmp_path),
        )
    assert bare.header == header


def test_shared_and_repeated_training_questions_are_dropped_where_asked(tmp_path):
    train = [
        row(id="a", question="Which in train?"), row(id="b", question="WHICH   in train"),
        row(id="c", question="Which in ood?"),
        row(id="d", question="Which in dev?"), row(id="homo-1", question="Another?"), row(id="e", question="Last?"),
    ]  # fmt: skip
    dev = [row(id="dev-1", question="Which in dev?"), row(id="dev-2", question="Which in id?")]
    whole = domain(tmp_path, train=train, dev=dev).model_copy(update={"overlap": "drop"})
    found = read_domain(whole, str(tmp_path))
    assert [question.id for question in found["train"]] == ["a", "b", "homo-1", "e"]  # equal ids are no equal questions
    assert [question.id for question in found["dev"]] == ["dev-1", "dev-2"]  # never dropped
    assert found.overlap == {"train": {"are also in ood": 1, "are also in dev": 1}, "dev": {"are also in id": 1}}
    found = read_domain(whole.model_copy(update={"repeats": "drop"}), str(tmp_path))
    assert [question.id for question in found["train"]] == ["a", "homo-1", "e"]
    assert found.overlap["train"]["stand there before"] == 1
    message = refusal(read_domain, whole.model_copy(update={"overlap": "refuse"}), str(tmp_path))
    assert "domain colours: dev has questions that are also in id (1, e.g. dev-2); remove them, or set" in message
    alone = domain(tmp_path, train=train).model_copy(update={"overlap": "refuse"})
    message = refusal(read_domain, alone, str(tmp_path))
    assert "train has questions that are also in ood (1, e.g. c), and are also in dev (1, e.g. d)" in message


def test_a_pool_of_which_nothing_is_left_is_refused(tmp_path):
    whole = domain(tmp_path, train=[row(id="a", question="Which in homo?")]).model_copy(update={"overlap": "drop"})
    message = refusal(read_domain, whole, str(tmp_path))
    assert "colours: no training question is left; all are also in homo (1, e.g. a)" in message


def test_each_header_needs_its_demonstrations(tmp_path):
    rows = [row(id=f"{n}", question=f"Which {n}?", subject="virology") for n in range(3)]
    whole = domain(tmp_path, ood=rows)
    found = read_domain(whole, str(tmp_path))
    check_demonstrations("colours", found, 1)
    assert "colours: 1 dev questions for probe.shots 2" in refusal(check_demonstrations, "colours", found, 2)
    whole = whole.model_copy(update={"ood": (whole.ood[0].model_copy(update={"header": "subject"}),)})
    found = read_domain(whole, str(tmp_path))
    message = refusal(check_demonstrations, "colours", found, 1)
    assert "0 dev questions with the header 'virology' for probe.shots 1" in message
    check_demonstrations("colours", found, 0)


def test_the_papers_test_sets_have_their_demonstrations(shared_data):
    """MMLU tests on six of its dev questions; all of them are shown all the same."""
    folder = {"format": "mmlu_csv", "header": "subject_after_space"}
    xiezhi = {"path": "xiezhi/source_Engineering.jsonl", "format": "xiezhi"}
    parts = {part: {**xiezhi, "xiezhi": {"domain": "Engineering", "part": part}} for part in ("train", "dev", "test")}
    whole = DomainConfig.model_validate(
        {
            "name": "engineering", "overlap": "drop", "train": [parts["train"]], "homo": [parts["test"]],
            "dev": [parts["dev"], {"path": "mmlu/dev", **folder}],
            "id": [{"path": "mmlu/test", "subjects": "engineering", **folder}],
            "ood": [{"path": "mmlu/test", "subjects": "not engineering", **folder}],
        }
    )  # fmt: skip
    found = read_domain(whole, str(shared_data))
    check_demonstrations("engineering", found, 5)
    assert len(found["dev"]) == 10 + 285
    assert found.overlap["dev"] == {"are also in ood": 5}
    order = [question.id for question in demonstrations([q for q in found["dev"] if not q.header], 10, 42)]
    own = [question.id for question in found["dev"] if not question.header]
    assert [own.index(name) for name in order] == [7, 3, 2, 8, 5, 6, 9, 4, 0, 1]


BROKEN_TYPES = {
    "explanation is a list": (row(explanation=["x"]), "field 'explanation' must be a text, or null"),
    "context is a number": (row(context=3), "field 'context' must be a text, or null"),
    "subject is an object": (row(subject={}), "field 'subject' must be a text, or null"),
    "explanation is not a number": (
        '{"question": "Q?", "options": ["a", "b"], "answer": 0, "explanation": NaN}',
        "a text",
    ),
    "id is a list": (row(id=["x"]), "field 'id' must be a text or a whole number"),
    "id is empty": (row(id=""), "field 'id' must be a text or a whole number"),
    "nested too deep": ("[" * 100_000, "not valid JSON"),
    "a number of too many digits": ('{"answer": ' + "1" * 10_000 + "}", "not valid JSON"),
}


@pytest.mark.parametrize("name", BROKEN_TYPES)
def test_values_of_another_type_are_refused(name, tmp_path):
    broken, expected = BROKEN_TYPES[name]
    assert expected in refusal(read_source, write(tmp_path, GOOD, broken), str(tmp_path))


def test_null_is_absent(tmp_path):
    [question] = read_source(write(tmp_path, row(id=None, subject=None, explanation=None)), str(tmp_path))
    assert (question.id, question.subject, question.explanation) == ("questions-1", "", "")


def test_csv_files_of_other_programs_are_read(tmp_path):
    source = QuestionSource(path="q.csv", fields=Fields(options=("a", "b")), where={"year": 7})
    (tmp_path / "q.csv").write_bytes(
        "\ufeff,question,a,b,answer,year\r\n0,Which?,x,y,A,7\r\n1,And?,x,y,B,8\r\n".encode()
    )
    assert [question.question for question in read_source(source, str(tmp_path))] == ["Which?"]
    (tmp_path / "q.csv").write_text("question,a,a,answer\nWhich?,x,y,A\n")
    assert "q.csv: the header names 'a' twice" in refusal(read_source, source, str(tmp_path))


def test_explanations_that_explain_nothing_are_refused(tmp_path):
    write(tmp_path, {"id": "elsewhere", "explanation": "x"}, name="why.jsonl")
    source = write(tmp_path, GOOD).model_copy(update={"explanations": "why.jsonl"})
    assert "explains none of the questions, whose ids are as 'g1'" in refusal(read_source, source, str(tmp_path))
    write(tmp_path, r'{"id": "g1", "explanation": "\ud83d"}', name="why.jsonl")
    assert "why.jsonl:1: " in refusal(read_source, source, str(tmp_path))


# MMLU's folders, and the study's split of Xiezhi

COUNTS = {  # of MMLU's test questions, as the paper has them
    "medicine": (1640, 12402), "history": (930, 13112), "engineering": (145, 13897), "jurisprudence": (4840, 9202),
}  # fmt: skip


def mmlu_folder(folder, subjects=SUBCATEGORY):
    for number, subject in enumerate(sorted(subjects)):
        rows = [(f"{subject} {count}?", "a", "b", "c", "d", "B") for count in range(1 + number % 3)]
        write_csv(folder, *rows, name=f"{subject}_test.csv")
    return folder


def read_mmlu(folder, which):
    return read_source(QuestionSource(path=folder.name, format="mmlu_csv", subjects=which), str(folder.parent))


@pytest.mark.parametrize("domain", COUNTS)
def test_a_domain_and_the_others_are_all_subjects(tmp_path, domain):
    folder = mmlu_folder(tmp_path)
    inside, outside, whole = (read_mmlu(folder, which) for which in (domain, f"not {domain}", "all"))
    assert not {q.subject for q in inside} & {q.subject for q in outside}
    assert Counter(q.id for q in [*inside, *outside]) == Counter(q.id for q in whole)
    assert len({q.subject for q in whole}) == 57


def test_law_is_a_part_of_jurisprudence(tmp_path):
    folder = mmlu_folder(tmp_path)
    law, more = ({q.subject for q in read_mmlu(folder, which)} for which in ("law", "jurisprudence"))
    assert law == {"international_law", "jurisprudence", "professional_law"}
    assert law < more
    assert len(more) == 15


@pytest.mark.parametrize("domain", COUNTS)
def test_counts_of_mmlu_are_the_papers(shared_data, domain):
    found = tuple(len(read_mmlu(shared_data / "mmlu" / "test", which)) for which in (domain, f"not {domain}"))
    assert found == COUNTS[domain]


def test_a_file_of_no_subject_is_refused(tmp_path):
    mmlu_folder(tmp_path, [*SUBCATEGORY, "astrology"])
    with pytest.raises(UserError, match=r"astrology_test.csv: 'astrology' is no subject of MMLU"):
        read_mmlu(tmp_path, "medicine")


def test_a_folder_of_two_splits_is_refused(tmp_path):
    mmlu_folder(tmp_path)
    write_csv(tmp_path, ("virology?", "a", "b", "c", "d", "B"), name="virology_dev.csv")
    with pytest.raises(UserError, match=r"more than one file of a subject, e.g. virology_dev.csv"):
        read_mmlu(tmp_path, "history")


def test_a_subject_without_a_file_is_refused(tmp_path):
    mmlu_folder(tmp_path, SUBCATEGORY.keys() - {"virology"})
    assert read_mmlu(tmp_path, "history")
    with pytest.raises(UserError, match=r"holds no file of virology \(1 subjects are missing\)"):
        read_mmlu(tmp_path, "medicine")


def xiezhi_source(folder, count, **changes):
    """A raw source of so many usable items, between items of another domain and with other numbers of options."""
    made = []
    for number in range(count):
        item = {"question": f"{number}?", "labels": ["Law", "Engineering"], "answer": "b", "options": "a\nb\nc\nd"}
        made += [{**item, "labels": ["Law"]}, {**item, "options": "a\nb\nc"}, item | changes]
    write(folder, *made, name="raw.jsonl")


def read_xiezhi(folder, part, domain="Engineering", path="raw.jsonl"):
    source = {"path": path, "format": "xiezhi", "xiezhi": {"domain": domain, "part": part}}
    return read_source(QuestionSource.model_validate(source), str(folder))


def test_parts_of_a_xiezhi_source_are_its_usable_items(tmp_path):
    xiezhi_source(tmp_path, 300)
    parts = {part: read_xiezhi(tmp_path, part) for part in ("test", "dev", "train")}
    assert {part: len(questions) for part, questions in parts.items()} == {"test": 250, "dev": 10, "train": 40}
    everything = [question for questions in parts.values() for question in questions]
    assert sorted(int(q.question[:-1]) for q in everything) == list(range(300))
    assert all(q.id == f"xiezhi-engineering-{q.question[:-1]}" and q.answer == 1 for q in everything)


@pytest.mark.parametrize("domain", ["Engineering", "Jurisprudence"])
@pytest.mark.parametrize("part", ["test", "dev"])
def test_the_published_split_of_xiezhi_comes_out(shared_data, domain, part):
    found = read_xiezhi(shared_data / "xiezhi", part, domain, f"source_{domain}.jsonl")
    text = (shared_data / "xiezhi" / domain.lower() / f"{part}.jsonl").read_text(encoding="utf-8")
    published = [json.loads(line) for line in text.splitlines()]
    assert [q.id for q in found] == [f"xiezhi-{domain.lower()}-{row['id']}" for row in published]
    assert [(q.question, list(q.options), q.answer) for q in found] == [
        (row["question"], row["choices"], row["answer"]) for row in published
    ]


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        ({"answer": "e"}, "answer 'e' is not among the options"),
        ({"answer": ["a"]}, "is not among the options"),
        ({"options": ["a", "b"]}, "fields 'options' (a text) and 'labels' (a list)"),
        ({"labels": "Engineering"}, "fields 'options' (a text) and 'labels' (a list)"),
    ],
)
def test_a_broken_xiezhi_source_is_refused(tmp_path, changes, named):
    xiezhi_source(tmp_path, 3, **changes)
    with pytest.raises(UserError, match=r"raw.jsonl:3: .*" + re.escape(named)):
        read_xiezhi(tmp_path, "test")


@pytest.mark.parametrize("given", [{"format": "xiezhi"}, {"xiezhi": {"domain": "History", "part": "dev"}}])
def test_format_and_part_of_xiezhi_go_together(given):
    with pytest.raises(ValueError, match="go together"):
        QuestionSource.model_validate({"path": "raw.jsonl", **given})


def test_subjects_are_chosen_from_mmlu_alone():
    with pytest.raises(ValueError, match="subjects are chosen from a folder of format mmlu_csv"):
        QuestionSource(path="raw.jsonl", subjects="law")
