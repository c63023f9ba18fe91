"""Question files: what is read, and what is refused in one line that names file and row."""

import csv
import json
from collections import Counter

import pytest

from jaxift.config import DomainConfig, Fields, QuestionSource
from jaxift.data.sources import read_domain, read_source, read_sources
from jaxift.errors import UserError

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


def test_missing_file_is_refused(tmp_path):
    message = refusal(read_source, QuestionSource(path="nothing.jsonl"), str(tmp_path))
    assert f"{tmp_path / 'nothing.jsonl'}: no such question file" in message


def test_folder_in_place_of_a_file_is_refused(tmp_path):
    (tmp_path / "folder").mkdir()
    assert "no such question file" in refusal(read_source, QuestionSource(path="folder"), str(tmp_path))


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
    rows = [row(id="fresh", question="Fresh?"), row(id="train-1", question="Which one?")]
    message = refusal(read_domain, domain(tmp_path, **{split: rows}), str(tmp_path))
    assert f"domain colours: {split} shares 1 questions with train, e.g. train-1" in message


@pytest.mark.parametrize(("first", "second"), [("train", "homo"), ("train", "ood"), ("dev", "train"), ("dev", "id")])
def test_the_same_question_under_another_id_is_still_the_same(first, second, tmp_path):
    rows = [row(id="disguised", question=f"Which in {first}?", options=GOOD["options"][::-1])]
    message = refusal(read_domain, domain(tmp_path, **{second: rows}), str(tmp_path))
    assert f"{second} shares 1 questions with {first}, e.g. disguised" in message


def test_domain_may_have_no_demonstrations(tmp_path):
    assert [len(split) for split in read_domain(domain(tmp_path, dev=[""]), str(tmp_path)).values()] == [0, 1, 1, 1, 1]


@pytest.mark.parametrize("answer", [1, "green", "B"])
def test_answer_is_an_index_a_text_or_a_letter(answer, tmp_path):
    [question] = read_source(write(tmp_path, row(answer=answer)), str(tmp_path))
    assert (question.id, question.answer, question.subject) == ("g1", 1, "colour")


def test_an_answer_that_means_two_options_is_refused(tmp_path):
    message = refusal(read_source, write(tmp_path, row(options=["B", "C", "A"], answer="A")), str(tmp_path))
    assert "answer 'A' is a letter and also another option's text; give its index" in message
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
