"""Mining: what a plain full sort finds, columns kept, and nothing written on a mistake."""

import json
import os
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from fake_engine import DIMENSION, FakeEngine, vector
from hypothesis import given, settings
from hypothesis import strategies as st

from c2v_engine.errors import InputError, OutputError
from c2v_engine.jobs import hard_negatives
from c2v_engine.jobs.mine import MineJob, MineOptions
from c2v_engine.jobs.negatives import NegativeRules
from c2v_engine.jobs.readers.columnar import BATCH_ROWS

ALL = NegativeRules(num_negatives=2, range_min=0, range_max=20, relative_margin=None)


class Engine(FakeEngine):
    """The fake engine's vectors, centred: cosines of both signs."""

    def __init__(self, prompts=()):
        super().__init__()
        self.prompts = dict.fromkeys(prompts, "")
        self.asked = []

    def info(self):
        return {**super().info(), "prompts": self.prompts}

    def encode_stream(self, texts, *, prompt_name=None, batch_tokens=None):
        self.asked.append(prompt_name)
        for block in super().encode_stream(texts):
            yield block - np.float32(127.5)


def put(path, rows):
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def rows_of(path):
    if path.suffix == ".parquet":
        return pq.read_table(path).to_pylist()
    return [json.loads(line) for line in path.read_text().splitlines()]


def mine(source, output, rules=ALL, engine=None, **options):
    with MineJob(source, output, options=MineOptions(rules), **options) as job:
        return job.run(engine or Engine())


def unit16(text):
    """As the store keeps a vector: of unit length, in float16."""
    values = vector(text).astype(np.float32) - np.float32(127.5)
    return (values / np.sqrt((values * values).sum())).astype(np.float16).astype(np.float32)


def expected(pairs, rules, corpus=None):
    """(pair, negative) of every pair, by sorting all candidates; a text with its equals is one."""
    candidates = list(dict.fromkeys(corpus or [positive for _, positive in pairs]))
    result = []
    for query, positive in pairs:
        own = {p for q, p in pairs if q == query} | {query}
        ranked = [text for text in candidates if text not in own]
        scores = {text: np.float32(unit16(query) @ unit16(text)) for text in ranked}
        ranked.sort(key=lambda text: -scores[text])
        score = np.float32(unit16(query) @ unit16(positive))
        limit = np.inf if rules.max_score is None else rules.max_score
        if rules.absolute_margin is not None:
            limit = min(limit, score - rules.absolute_margin)
        if rules.relative_margin is not None:
            limit = min(limit, score - abs(score) * rules.relative_margin)
        least = -np.inf if rules.min_score is None else rules.min_score
        window = ranked[rules.range_min : rules.range_max]
        kept = [text for text in window if least <= scores[text] <= limit]
        result += [(query, positive, text) for text in kept[: rules.num_negatives]]
    return result


@settings(max_examples=60, deadline=None)
@given(st.data())
def test_negatives_are_those_of_a_full_sort(tmp_path_factory, data):
    folder = tmp_path_factory.mktemp("mine")
    texts = st.integers(0, 25).map("text {}".format)
    pairs = data.draw(
        st.lists(st.tuples(texts, texts), min_size=data.draw(st.sampled_from([1, 15])), max_size=30)
    )
    corpus = data.draw(st.none() | st.lists(texts, min_size=1, max_size=30))
    low = data.draw(st.integers(0, 4))
    count = data.draw(st.integers(1, 3))
    margin = st.none() | st.sampled_from([0.0, 0.05, 0.5])
    score = st.none() | st.sampled_from([-0.2, 0.3])
    rules = NegativeRules(
        count, low, low + count + data.draw(st.integers(0, 9)), data.draw(score),
        data.draw(st.none() | st.just(-0.4)), data.draw(margin), data.draw(margin),
    )  # fmt: skip
    source = put(folder / "in.jsonl", [{"query": q, "positive": p} for q, p in pairs])
    if corpus is not None:
        (folder / "corpus.txt").write_text("".join(text + "\n" for text in corpus))
    with pytest.MonkeyPatch.context() as patch:
        for name in ("_QUERY_ROWS", "_CANDIDATE_ROWS", "_PAIR_ROWS"):
            patch.setattr(hard_negatives, name, data.draw(st.integers(1, 40), label=name))
        path = None if corpus is None else folder / "corpus.txt"
        if not expected(pairs, rules, corpus):
            with pytest.raises(InputError, match="no negative was found"):
                mine(source, folder / "o.jsonl", rules, corpus=path)
            assert not (folder / "o.jsonl").exists()
            return
        report = mine(source, folder / "o.jsonl", rules, corpus=path, overwrite=True)
    found = [
        (row["query"], row["positive"], row["negative"]) for row in rows_of(folder / "o.jsonl")
    ]
    assert found == expected(pairs, rules, corpus)
    assert report.negatives == len(found)
    assert report.pairs == len(pairs)
    assert report.queries == len({query for query, _ in pairs})
    assert sum(number * pairs for number, pairs in report.by_count.items()) == len(found)
    none = report.by_count.get(0, 0)
    assert report.without_candidates + report.too_near == none


def some_pairs(count):
    return [{"query": f"q{i}", "positive": f"p{i}"} for i in range(count)]


def test_other_columns_of_json_pass_through_as_they_stand(tmp_path):
    source = tmp_path / "in.jsonl"
    lines = [
        '{ "n": 1.50e1, "query": "q\\u00e9", "x": {"a": [1, null]}, "positive": "p0" }\r\n',
        '{"query":"q1","positive":"p \\"1\\"","big":123456789012345678901234567890}\n',
        '{"positive": "ü", "query": "q2"}',
    ]
    source.write_text("".join(lines), newline="")
    rules = NegativeRules(1, 0, 5, relative_margin=None)
    mine(source, tmp_path / "o.jsonl", rules)
    written = (tmp_path / "o.jsonl").read_text().splitlines()
    for line, row in zip(lines, written, strict=True):
        kept, negative = row.split(', "negative": ')
        assert kept == line.strip()[:-1].rstrip()
        assert json.loads(negative[:-1]) in {"p0", 'p "1"', "ü"}
        assert json.loads(row)["negative"] != json.loads(line)["positive"]


def test_other_columns_of_parquet_keep_their_types(tmp_path):
    rows = 3 * BATCH_ROWS + 5
    table = pa.table(
        {
            "number": pa.array(range(rows), pa.int16()),
            "query": pa.array([f"q{i}" for i in range(rows)]).dictionary_encode(),
            "positive": pa.array([f"p{i}" for i in range(rows)], pa.large_string()),
            "tags": pa.array([[str(i)] * (i % 3) for i in range(rows)]),
        }
    )
    pq.write_table(table, tmp_path / "in.parquet")
    report = mine(tmp_path / "in.parquet", tmp_path / "o.parquet")
    mined = pq.read_table(tmp_path / "o.parquet")
    assert report.negatives == mined.num_rows == 2 * rows
    assert mined.schema.names == [*table.schema.names, "negative"]
    assert mined.schema.field("number").type == pa.int16()
    assert mined.schema.field("negative").type == pa.string()
    twice = table.take(np.repeat(np.arange(rows), 2))
    for name in ("number", "tags"):
        assert mined[name].to_pylist() == twice[name].to_pylist()
    jsonl = put(tmp_path / "in.jsonl", table.select(["query", "positive"]).to_pylist())
    mine(jsonl, tmp_path / "o.jsonl")
    assert [row["negative"] for row in rows_of(tmp_path / "o.jsonl")] == mined[
        "negative"
    ].to_pylist()


def test_white_space_does_not_make_a_text_another(tmp_path):
    rows = [
        {"query": "a question", "positive": "an  answer"},
        {"query": "a\nquestion ", "positive": "another answer"},
        {"query": "third", "positive": "an answer"},
        {"query": "fourth", "positive": "A question"},
        {"query": "fifth", "positive": " a question"},
    ]
    report = mine(put(tmp_path / "in.jsonl", rows), tmp_path / "o.jsonl")
    assert (report.queries, report.candidates) == (4, 4)
    found = rows_of(tmp_path / "o.jsonl")
    for row in found:
        if row["query"].split() == ["a", "question"]:
            assert row["negative"] == "A question"
    assert {" ".join(row["negative"].split()) for row in found if row["query"] == "third"} <= {
        "another answer",
        "A question",
        "a question",
    }


def test_random_negatives_depend_on_seed_and_row_alone(tmp_path, monkeypatch):
    source = put(tmp_path / "in.jsonl", some_pairs(40))

    def drawn(seed, block):
        monkeypatch.setattr(hard_negatives, "_PAIR_ROWS", block)
        rules = NegativeRules(3, 5, 30, relative_margin=None, sampling="random", seed=seed)
        mine(source, tmp_path / "o.jsonl", rules, overwrite=True)
        return rows_of(tmp_path / "o.jsonl")

    assert drawn(0, 7) == drawn(0, 4096)
    assert drawn(0, 7) != drawn(1, 7)
    pairs = [(row["query"], row["positive"]) for row in some_pairs(40)]
    window = set(expected(pairs, NegativeRules(25, 5, 30, relative_margin=None)))
    top = set(expected(pairs, NegativeRules(3, 5, 30, relative_margin=None)))
    found = {(row["query"], row["positive"], row["negative"]) for row in drawn(0, 7)}
    assert len(found) == 120
    assert found <= window
    assert found != top


def test_negatives_that_exist_are_refused_or_replaced_once_a_pair(tmp_path):
    rows = [{**row, "negative": f"old {n}"} for row in some_pairs(5) for n in range(3)]
    lines = put(tmp_path / "in.jsonl", [some_pairs(1)[0], *rows])
    columns = put(tmp_path / "only.jsonl", rows)
    pq.write_table(pa.Table.from_pylist(rows), tmp_path / "in.parquet")
    with pytest.raises(
        InputError, match="line 2: has a column 'negative' already; --overwrite-neg"
    ):
        mine(lines, tmp_path / "o.jsonl")
    with pytest.raises(InputError, match="has a column 'negative' already; --overwrite-neg"):
        mine(tmp_path / "in.parquet", tmp_path / "o.parquet")
    assert not list(tmp_path.glob("*o.*l"))
    for source in (columns, tmp_path / "in.parquet"):
        output = source.with_stem("o")
        report = mine(source, output, overwrite_negatives=True)
        found = rows_of(output)
        assert report.pairs == 5
        assert len(found) == 10
        assert {row["negative"] for row in found} <= {f"p{i}" for i in range(5)}


def test_rows_that_lose_old_negatives_keep_their_letters(tmp_path):
    lines = ['{"query": "ü", "positive": "é", "negative": "x"}', '{"query": "q", "positive": "p"}']
    source = tmp_path / "in.jsonl"
    half = '{"query": "h", "positive": "r", "negative": "x", "n": "\\ud800ü"}'  # no valid text
    source.write_text("\n".join([*lines, half]) + "\n")
    mine(source, tmp_path / "o.jsonl", overwrite_negatives=True)
    written = (tmp_path / "o.jsonl").read_text()
    assert '{"query": "ü", "positive": "é", "negative"' in written
    assert r'"n": "\ud800\u00fc"' in written


def test_prompts_are_those_of_queries_and_documents(tmp_path):
    source = put(tmp_path / "in.jsonl", some_pairs(3))
    for prompts, used in [
        ((), [None, None]),
        (("query", "passage", "document"), ["query", "document"]),
        (("passage",), [None, "passage"]),
    ]:
        engine = Engine(prompts)
        mine(source, tmp_path / "o.jsonl", engine=engine, overwrite=True)
        assert engine.asked == used


@pytest.mark.parametrize(
    ("line", "reason"),
    [
        ('{"query": "q"}', "line 3: no column 'positive'"),
        ('{"query": "q", "positive": null}', "line 3: column 'positive' is null"),
        ('{"query": " ", "positive": "p"}', "line 3: column 'query' is empty"),
        ('{"query": "q", "positive": ""}', "line 3: column 'positive' is empty"),
        ('{"query": "q", "positive": "\\ud800"}', "line 3: column 'positive' holds a lone surr"),
        ('{"query": "q", "positive": "p"', "line 3: broken JSON"),
        ('{"query": "refused", "positive": "p"}', "line 3: its embedding is not finite"),
        ('{"query": "q", "positive": "refused"}', "line 3: its embedding is not finite"),
    ],
)
def test_a_bad_line_is_named_and_nothing_is_written(tmp_path, line, reason):
    source = put(tmp_path / "in.jsonl", [some_pairs(1)[0], some_pairs(1)[0]])
    with source.open("a") as file:
        file.write(line + "\n")
    with pytest.raises(InputError, match=reason):
        mine(source, tmp_path / "o.jsonl")
    assert os.listdir(tmp_path) == ["in.jsonl"]


def test_a_bad_row_of_parquet_and_of_the_corpus_is_named(tmp_path):
    table = pa.table({"query": ["a", "b"], "positive": ["p", None]})
    pq.write_table(table, tmp_path / "in.parquet")
    with pytest.raises(InputError, match=r"in\.parquet, row 2: column 'positive' is null"):
        mine(tmp_path / "in.parquet", tmp_path / "o.parquet")
    pq.write_table(table.drop(["positive"]), tmp_path / "in.parquet")
    with pytest.raises(InputError, match="no column 'positive'; the columns are 'query'"):
        mine(tmp_path / "in.parquet", tmp_path / "o.parquet")
    source = put(tmp_path / "in.jsonl", some_pairs(2))
    corpus = tmp_path / "corpus.txt"
    corpus.write_text("fine\nrefused\n")
    with pytest.raises(InputError, match=r"corpus\.txt, line 2: its embedding is not finite"):
        mine(source, tmp_path / "o.jsonl", corpus=corpus)
    corpus.write_text("fine\n \nmore\n")
    with pytest.raises(InputError, match=r"corpus\.txt, line 2: an empty text"):
        mine(source, tmp_path / "o.jsonl", corpus=corpus)
    corpus.write_text("")
    with pytest.raises(InputError, match=r"corpus\.txt: no rows"):
        mine(source, tmp_path / "o.jsonl", corpus=corpus)
    assert not list(tmp_path.glob("*o.*l*"))


def test_files_that_can_not_serve_are_refused(tmp_path):
    source = put(tmp_path / "in.jsonl", some_pairs(2))
    (tmp_path / "empty.jsonl").write_text("")
    (tmp_path / "in.csv").write_text("query,positive\na,b\n")
    (tmp_path / "old.jsonl").write_text("old")
    os.mkfifo(tmp_path / "pipe.jsonl")
    for name, output, error, reason in [
        ("none.jsonl", "o.jsonl", InputError, "no such file"),
        ("pipe.jsonl", "o.jsonl", InputError, "not a regular file"),
        ("in.csv", "o.csv", InputError, r"pairs are read from \.jsonl or \.parquet"),
        ("empty.jsonl", "o.jsonl", InputError, "no rows"),
        ("in.jsonl", "o.parquet", OutputError, r"ends in \.jsonl, as the input does"),
        ("in.jsonl", "in.jsonl", OutputError, "is the input itself"),
        ("in.jsonl", "old.jsonl", OutputError, "exists already"),
    ]:
        with pytest.raises(error, match=reason):
            mine(tmp_path / name, tmp_path / output)
    assert (tmp_path / "old.jsonl").read_text() == "old"
    assert rows_of(source) == some_pairs(2)


def test_an_input_that_changes_meanwhile_is_noticed(tmp_path):
    source = put(tmp_path / "in.jsonl", some_pairs(5))

    class Slow(Engine):
        def encode_stream(self, texts, **options):
            yield from super().encode_stream(texts, **options)
            put(source, some_pairs(4))

    with pytest.raises(InputError, match="has changed while it was read"):
        mine(source, tmp_path / "o.jsonl", engine=Slow())
    assert os.listdir(tmp_path) == ["in.jsonl"]


def test_the_summary_counts_and_averages(tmp_path):
    source = put(tmp_path / "in.jsonl", some_pairs(30))
    rules = NegativeRules(2, 0, 25, relative_margin=None, absolute_margin=0.1)
    report = mine(source, tmp_path / "o.jsonl", rules)
    rows = rows_of(tmp_path / "o.jsonl")
    negatives = [unit16(row["query"]) @ unit16(row["negative"]) for row in rows]
    positives = [unit16(f"q{i}") @ unit16(f"p{i}") for i in range(30)]
    assert report.positive_score == pytest.approx(np.mean(positives), abs=1e-6)
    assert report.negative_score == pytest.approx(np.mean(negatives), abs=1e-6)
    assert (report.candidates, report.model) == (30, "fake")
    assert report.size == (tmp_path / "o.jsonl").stat().st_size


def test_mining_that_finds_nothing_writes_nothing_and_counts_why(tmp_path):
    source = put(tmp_path / "in.jsonl", some_pairs(30))
    for rules, reason in [
        (NegativeRules(1, 29, 40), r"30 have none from rank 29 on \(--range-min\) and 0 none"),
        (NegativeRules(1, 0, 9, absolute_margin=2.0), "0 have none from rank 0 on .* and 30 none"),
    ]:
        with pytest.raises(InputError, match=f"of 30 pairs with 30 candidates, {reason}"):
            mine(source, tmp_path / "o.jsonl", rules)
        assert os.listdir(tmp_path) == ["in.jsonl"]


@pytest.mark.parametrize(
    "wrong",
    [
        {"num_negatives": 0},
        {"range_min": -1},
        {"range_min": 95, "range_max": 99, "num_negatives": 5},
        {"relative_margin": -0.1},
        {"absolute_margin": float("nan")},
        {"sampling": "best"},
        {"seed": -1},
    ],
)
def test_rules_that_can_not_be_are_refused(wrong):
    with pytest.raises(InputError, match=next(iter(wrong))):
        NegativeRules(**wrong)


def test_temporary_files_lie_beside_the_output_and_have_no_names(tmp_path):
    seen = []

    class Looking(Engine):
        def encode_stream(self, texts, **options):
            yield from super().encode_stream(texts, **options)
            seen.extend(os.listdir(tmp_path / "out"))

    (tmp_path / "out").mkdir()
    mine(put(tmp_path / "in.jsonl", some_pairs(5)), tmp_path / "out" / "o.jsonl", engine=Looking())
    assert {Path(name).suffix for name in seen} == {".tmp"}  # the output itself, unfinished
    assert len(set(seen)) == 1
    assert os.listdir(tmp_path / "out") == ["o.jsonl"]


def test_margins_undercut_positives_of_either_sign():
    positives = np.array([0.8, 0.0, -0.4], dtype=np.float32)

    def limits(**rules):
        rules = {"relative_margin": None, **rules}
        return NegativeRules(**rules).limits(positives).tolist()

    assert limits() == [np.inf] * 3
    assert limits(relative_margin=0.25) == pytest.approx([0.6, 0.0, -0.5])
    assert limits(absolute_margin=0.5) == pytest.approx([0.3, -0.5, -0.9])
    assert limits(relative_margin=0.25, max_score=0.1) == pytest.approx([0.1, 0.0, -0.5])


def test_dimension_of_the_fake_engine_leaves_no_ties():
    """What is compared above would otherwise depend on the order of equal scores."""
    texts = [f"text {i}" for i in range(26)]
    assert len({unit16(text).tobytes() for text in texts}) == 26
    assert DIMENSION == 8
