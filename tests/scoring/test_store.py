"""Parts on disk: read back as they were, and anything else than a whole part of this very run counts as not there."""

import dataclasses
import shutil

import numpy as np
import pytest
from etils import epath
from hypothesis import given
from hypothesis import strategies as st

from jaxift.errors import UserError
from jaxift.parallel import meeting
from jaxift.scoring.requests import TokenRequest
from jaxift.scoring.store import Answers, ScoreStore, differences, digest_tokens

FACTS = {"model": "abc", "--dtype": "float32", "--max-positions": None}


def answers(count=5, seed=0):
    rng = np.random.default_rng(seed)
    lengths = rng.integers(1, 4, count).astype(np.int32)
    return Answers(
        options=rng.permutation(100)[:count].astype(np.int64),
        num_tokens=lengths,
        token_logprobs=-rng.exponential(size=lengths.sum()).astype(np.float32),
        is_greedy=rng.random(count) < 0.5,
    )


def assert_same(found, expected):
    for field in dataclasses.fields(Answers):
        one, other = getattr(found, field.name), getattr(expected, field.name)
        np.testing.assert_array_equal(one, other)
        assert one.dtype == other.dtype


@pytest.fixture
def store(tmp_path):
    return ScoreStore(epath.Path(tmp_path / "parts"), FACTS)


@pytest.mark.parametrize("count", [0, 1, 5, 40])
def test_a_part_is_read_as_it_was_written(store, count):
    assert not store.finished(3).any()
    store.write(1, answers(count))
    np.testing.assert_array_equal(store.finished(3), [False, True, False])
    assert_same(store.read(1), answers(count))
    store.remove()
    assert not store.folder.exists()


def test_the_same_answers_are_the_same_bytes(store):
    written = []
    for _ in range(2):
        store.write(0, answers())
        written.append((store.folder / "part-00000.p0.parquet").read_bytes())
        assert [path.name for path in store.folder.iterdir()] == ["part-00000.p0.parquet"]
    assert written[0] == written[1]


def test_a_part_cut_short_is_not_there(store):
    store.write(0, answers())
    path = store.folder / "part-00000.p0.parquet"
    whole = path.read_bytes()
    for length in range(len(whole)):
        path.write_bytes(whole[:length])
        assert not store.finished(1).any()
    with pytest.raises(UserError, match=r"part-00000.p0.parquet: is gone or was damaged"):
        store.read(0)
    store.write(0, answers())
    assert store.finished(1).all()


def test_no_flipped_byte_changes_what_is_read(store):
    store.write(0, answers())
    path = store.folder / "part-00000.p0.parquet"
    whole, found = path.read_bytes(), []
    for place in range(len(whole)):
        path.write_bytes(whole[:place] + bytes([whole[place] ^ 0xFF]) + whole[place + 1 :])
        found.append(bool(store.finished(1)[0]))
        if found[-1]:  # a byte that means nothing, such as one of the writer's name
            assert_same(store.read(0), answers())
    assert found.count(False) > len(whole) / 2


def test_a_part_that_was_being_written_is_not_there(store, monkeypatch):
    def killed(*arguments):
        raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr(type(store.folder), "replace", killed)
        with pytest.raises(KeyboardInterrupt):
            store.write(0, answers())
    assert len(list(store.folder.iterdir())) == 1
    assert not store.finished(1).any()


def test_parts_of_another_run_place_or_process_are_not_there(store):
    two = dataclasses.replace(store, processes=2)
    store.write(0, answers())
    first = store.folder / "part-00000.p0.parquet"
    for other in (
        dataclasses.replace(store, facts={**FACTS, "--dtype": "bfloat16"}),
        dataclasses.replace(store, facts={**FACTS, "more": 1}),
        dataclasses.replace(store, facts={name: FACTS[name] for name in ("model", "--dtype")}),
        two,
        dataclasses.replace(two, process=1),
        dataclasses.replace(store, afresh=True).for_plan("another"),
    ):
        assert not other.finished(1).any()
    shutil.copy(first, store.folder / "part-00001.p0.parquet")
    np.testing.assert_array_equal(store.finished(2), [True, False])
    two.write(0, answers())
    shutil.copy(first, store.folder / "part-00000.p1.parquet")
    assert not dataclasses.replace(two, process=1).finished(1).any()


def test_what_processes_wrote_is_read_together(store, monkeypatch):
    monkeypatch.setattr(meeting, "SEEN_TIMEOUT", 0.1)
    processes = [dataclasses.replace(store, process=index, processes=2) for index in range(2)]
    processes[0].write(0, answers(3, seed=1))
    np.testing.assert_array_equal([each.finished(1)[0] for each in processes], [True, False])
    with pytest.raises(UserError, match=r"p1\.parquet: is gone"):
        processes[0].read(0)
    processes[1].write(0, answers(4, seed=2))
    parts = answers(3, seed=1), answers(4, seed=2)
    for each in processes:
        for field in dataclasses.fields(Answers):
            expected = np.concatenate([getattr(part, field.name) for part in parts])
            np.testing.assert_array_equal(getattr(each.read(0), field.name), expected)


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        ({"facts": {**FACTS, "model": "xyz"}}, "another model;"),
        ({"facts": {**FACTS, "model": "xyz", "--dtype": "bfloat16"}}, "another model, --dtype;"),
        ({"processes": 2}, "another number of processes;"),
    ],
)
def test_parts_of_another_run_are_not_thrown_away_unasked(store, changes, named):
    store.check()
    store.write(0, answers())
    store.check()
    other = dataclasses.replace(store, **changes)
    with pytest.raises(UserError, match=named):
        other.check()
    dataclasses.replace(other, afresh=True).check()


def test_a_plan_has_its_own_parts(store):
    store.for_plan("one").write(0, answers())
    assert store.for_plan("one").finished(1).all()
    store.check()  # of the same run, however it is cut
    with pytest.raises(UserError, match="another plan"):
        store.for_plan("other")
    (store.folder / "part-00000.p0.parquet").write_bytes(b"nothing that could be lost")
    assert not store.for_plan("other").finished(1).any()


def test_a_part_that_cannot_be_written_is_told_in_a_line(store):
    store.folder.parent.mkdir(exist_ok=True)
    store.folder.write_text("in the way")
    with pytest.raises(UserError, match="cannot be written"):
        store.write(0, answers())


def test_differences_are_named():
    assert differences({"a": 1, "b": 2, "old": 3}, {"a": 1, "b": 3, "c": None, "d": 4}) == ["b", "d"]


texts = st.lists(st.integers(0, 3), max_size=3).map(tuple)
requests = st.lists(st.tuples(texts, st.lists(texts, min_size=1, max_size=3).map(tuple)), max_size=3)


@given(requests, requests)
def test_token_hashes_are_equal_where_the_requests_are(one, other):
    # built here: checking their types draws random numbers, which hypothesis forbids where it draws its own
    hashes = [digest_tokens([TokenRequest(*texts) for texts in each]) for each in (one, other)]
    assert (hashes[0] == hashes[1]) == (one == other)


def test_token_hashes_see_where_texts_end():
    different = [
        [TokenRequest((1, 2), ((3,),))],
        [TokenRequest((1,), ((2, 3),))],
        [TokenRequest((1,), ((2,), (3,)))],
        [TokenRequest((1, 2, 3), ((),))],
        [TokenRequest((1,), ((2,),)), TokenRequest((3,), ((),))],
    ]
    assert len({digest_tokens(each) for each in different}) == len(different)
