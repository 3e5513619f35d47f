"""Rankings by model and BM25, their figures, and the report."""

from __future__ import annotations

import json
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from retrieval_data import WordCounts, random_data, write_beir

from c2v_engine.errors import InputError, MissingPackageError, TextError
from c2v_engine.evaluation import dense
from c2v_engine.evaluation.beir import read_beir
from c2v_engine.evaluation.bm25 import rank_by_bm25
from c2v_engine.evaluation.dense import rank_by_model
from c2v_engine.evaluation.metrics import measure
from c2v_engine.evaluation.rankings import check_run_ids, cut_ranking, write_run
from c2v_engine.evaluation.retrieval import EvaluationOptions, evaluate_retrieval

# The same float64 sums in another order.
ROUNDING = 1e-9


@pytest.fixture(scope="module")
def data():
    return random_data()


@pytest.fixture(scope="module")
def ranking(data):
    return rank_by_model(WordCounts(), data, 100)


def every_cosine(data):
    """{query: [(passage, score)]}, all passages, the best first, ties by id."""
    model = WordCounts()
    queries = model.encode_query(list(data.queries.values()))
    passages = model.encode_document(list(data.corpus.values()))
    queries /= np.linalg.norm(queries, axis=1, keepdims=True)
    passages /= np.linalg.norm(passages, axis=1, keepdims=True)
    scores = queries @ passages.T
    return {
        query: sorted(zip(data.corpus, row, strict=True), key=lambda hit: (-hit[1], hit[0]))
        for query, row in zip(data.queries, scores.tolist(), strict=True)
    }


def test_a_model_s_ranking_is_by_cosine(data, ranking):
    for query, expected in every_cosine(data).items():
        found = [score for _, score in ranking[query]]
        # float32 sums of a few terms
        np.testing.assert_allclose(found, [s for _, s in expected[:100]], rtol=0, atol=1e-6)


def test_figures_are_those_of_trec_eval(data, ranking):
    pytrec_eval = pytest.importorskip("pytrec_eval")
    judged = {query: dict.fromkeys(ids, 1) for query, ids in data.relevant.items()}
    measures = {"ndcg_cut.10", "recall.10,100", "recip_rank_cut.10", "recip_rank"}
    # trec_eval breaks ties by id the other way round, so ranks are given as scores.
    run = {q: {d: -float(rank) for rank, (d, _) in enumerate(h)} for q, h in ranking.items()}
    found = pytrec_eval.RelevanceEvaluator(judged, measures - {"recip_rank_cut.10"}).evaluate(run)

    def mean(name):
        return np.mean([values[name] for values in found.values()])

    scores = measure(data, ranking)
    reciprocal = [v["recip_rank"] * (v["recip_rank"] >= 0.1) for v in found.values()]
    assert scores.queries == len(data.queries)
    assert scores.ndcg_at_10 == pytest.approx(mean("ndcg_cut_10"), abs=ROUNDING)
    assert scores.recall_at_10 == pytest.approx(mean("recall_10"), abs=ROUNDING)
    assert scores.recall_at_100 == pytest.approx(mean("recall_100"), abs=ROUNDING)
    assert scores.mrr_at_10 == pytest.approx(np.mean(reciprocal), abs=ROUNDING)
    assert 0 < scores.ndcg_at_10 < 1
    assert 0 < scores.recall_at_10 < scores.recall_at_100 < 1


def test_one_ranking_gives_one_set_of_figures_whoever_made_it(data, monkeypatch):
    """What BM25 is measured by is what the evaluator computes for a model itself."""
    seen = {}
    original = dense._ranking_evaluator

    def spying(data, depth):
        evaluator = original(data, depth)
        compute = evaluator.compute_metrics
        evaluator.compute_metrics = lambda hits: seen.setdefault("metrics", compute(hits))
        return evaluator

    monkeypatch.setattr(dense, "_ranking_evaluator", spying)
    scores = measure(data, rank_by_model(WordCounts(), data, 100))
    own = seen["metrics"]
    assert scores.ndcg_at_10 == own["ndcg@k"][10]
    assert scores.recall_at_10 == own["recall@k"][10]
    assert scores.recall_at_100 == own["recall@k"][100]
    assert scores.mrr_at_10 == own["mrr@k"][10]


@pytest.mark.parametrize("limit", [("MAX_CHUNK_PASSAGES", 7), ("MAX_CHUNK_SCORES", 40 * 11)])
def test_chunks_do_not_change_the_ranking(data, ranking, monkeypatch, limit):
    monkeypatch.setattr(dense, *limit)
    model = WordCounts()
    found = rank_by_model(model, data, 100)
    sizes = [size for kind, size in model.calls if kind == "document"]
    assert max(sizes) == limit[1] // (1 if "PASSAGES" in limit[0] else 40)
    assert sum(sizes) == len(data.corpus)
    everything = every_cosine(data)
    for query, hits in found.items():
        scores = [score for _, score in hits]
        # Products of other shapes round otherwise, and may so change places of equal scores.
        np.testing.assert_allclose(scores, [s for _, s in ranking[query]], rtol=0, atol=1e-6)
        expected = dict(everything[query])
        assert dict(hits) == pytest.approx({d: expected[d] for d, _ in hits}, abs=1e-6)


def test_a_prompt_reaches_its_own_side(data):
    other = {"prompt_name": "other"}
    plain, queries, documents = (
        rank_by_model(WordCounts(), data, 100, *options) for options in ((), (other,), ({}, other))
    )
    assert plain != queries
    assert plain != documents
    assert queries != documents


def test_a_text_that_can_not_be_embedded_is_named_by_its_id(data, monkeypatch):
    monkeypatch.setattr(dense, "MAX_CHUNK_PASSAGES", 100)

    class Refusing(WordCounts):
        def encode_document(self, texts, **options):
            if data.corpus["d150"] in texts:
                raise TextError(texts.index(data.corpus["d150"]), "its embedding is not finite")
            return super().encode_document(texts, **options)

    with pytest.raises(InputError, match=r"^passage 'd150': its embedding is not finite$"):
        rank_by_model(Refusing(), data, 100)


def test_bm25_ranks_by_lucene_s_formula(data):
    found = rank_by_bm25(data, len(data.corpus))
    texts = {key: text.split() for key, text in data.corpus.items()}
    mean_length = np.mean([len(words) for words in texts.values()])
    for query in list(data.queries)[:5]:
        expected = {}
        for key, words in texts.items():
            score = 0.0
            for word in data.queries[query].split():
                holding = sum(word in other for other in texts.values())
                idf = np.log(1 + (len(texts) - holding + 0.5) / (holding + 0.5))
                count = words.count(word)
                weight = count + 1.5 * (1 - 0.75 + 0.75 * len(words) / mean_length)
                score += idf * count / weight
            if score:
                expected[key] = score
        assert dict(found[query]) == pytest.approx(expected, rel=1e-5)  # float32 sums
        scores = [score for _, score in found[query]]
        assert scores == sorted(scores, reverse=True)


@pytest.mark.parametrize(
    ("queries", "corpus", "expected"),
    [
        (["the", "sort"], ["sort it", "", "the other"], [[], ["0"]]),
        (["unknown words", "x"], ["sort it", "the other"], [[], []]),
        (["sort"], ["the of and", "a"], [[]]),
    ],
)
def test_bm25_gives_no_passage_to_a_query_without_a_known_word(data, queries, corpus, expected):
    small = replace(
        data,
        queries={str(i): text for i, text in enumerate(queries)},
        corpus={str(i): text for i, text in enumerate(corpus)},
    )
    assert [[key for key, _ in hits] for hits in rank_by_bm25(small, 100).values()] == expected


def test_bm25_orders_equal_scores_by_id_where_it_cuts_too(data):
    ids = [f"d{i:03}" for i in np.random.default_rng(0).permutation(300)]
    corpus = {key: "sort list" if key < "d150" else "sort it now" for key in ids}
    queries = {"q": "sort", "none": "unknown"}
    found = rank_by_bm25(replace(data, queries=queries, corpus=corpus), 100)
    assert [key for key, _ in found["q"]] == [f"d{i:03}" for i in range(150)][:100]
    found = rank_by_bm25(replace(data, queries=queries, corpus=corpus), 200)
    assert [key for key, _ in found["q"]] == [f"d{i:03}" for i in range(200)]
    assert found["none"] == []


def test_the_report_has_both_systems_and_every_kind(data):
    report = evaluate_retrieval(WordCounts(), data)
    assert [system.name for system in report.systems] == ["WordCounts", "BM25"]
    assert report.relevant == sum(map(len, data.relevant.values()))
    for system in report.systems:
        assert list(system.kinds) == ["a", "b", "c"]
        for name in ("ndcg@10", "recall@10", "recall@100", "mrr@10"):
            parts = [(s.queries, s.as_dict()[name]) for s in system.kinds.values()]
            mean = sum(n * value for n, value in parts) / sum(n for n, _ in parts)
            assert system.scores.as_dict()[name] == pytest.approx(mean, abs=ROUNDING)
    written = json.loads(json.dumps(report.as_dict()))
    assert written["systems"][1]["setting"]["method"] == "lucene"
    assert written["systems"][0]["kinds"]["a"]["queries"] == 14
    assert "ranking" not in written["systems"][0]


def test_without_bm25_there_is_the_model_alone(data):
    report = evaluate_retrieval(WordCounts(), data, EvaluationOptions(bm25=False))
    assert [system.name for system in report.systems] == ["WordCounts"]


def test_a_deeper_ranking_has_the_same_figures(data):
    deep = evaluate_retrieval(WordCounts(), data, EvaluationOptions(top_k=250, bm25=False))
    assert all(len(hits) == 250 for hits in deep.model.ranking.values())
    assert deep.model.scores == evaluate_retrieval(WordCounts(), data).model.scores
    with pytest.raises(InputError, match="top_k is 99, expected at least 100"):
        EvaluationOptions(top_k=99)


def test_a_query_s_own_passage_is_taken_out_when_asked(tmp_path):
    corpus = [{"_id": str(i), "text": f"sort the list item{i}"} for i in range(150)]
    queries = [{"_id": "7", "text": "sort the list item7"}]
    data = read_beir(write_beir(tmp_path, corpus, queries, [("7", "8", 1)]))
    with_it = evaluate_retrieval(WordCounts(), data)
    without = evaluate_retrieval(WordCounts(), data, EvaluationOptions(ignore_identical_ids=True))
    for before, after in zip(with_it.systems, without.systems, strict=True):
        assert "7" in dict(before.ranking["7"][:5])
        assert len(before.ranking["7"]) == len(after.ranking["7"]) == 100
        assert "7" not in dict(after.ranking["7"])


def test_a_ranking_is_cut_after_own_ids_are_out():
    ranking = {"a": [("a", 2.0), ("b", 1.0), ("c", 0.5)]}
    assert cut_ranking(ranking, 2, ignore_identical_ids=True) == {"a": [("b", 1.0), ("c", 0.5)]}
    assert cut_ranking(ranking, 2, ignore_identical_ids=False) == {"a": [("a", 2.0), ("b", 1.0)]}


def test_a_run_is_written_in_trec_s_columns(tmp_path):
    with (tmp_path / "run").open("wb") as file:
        write_run({"q1": [("d2", 0.75), ("d1", 0.5)]}, file, tag="my model")
    assert (tmp_path / "run").read_text() == "q1 Q0 d2 1 0.75 my_model\nq1 Q0 d1 2 0.5 my_model\n"


def test_a_run_can_not_hold_ids_with_spaces():
    check_run_ids(Path("x.run"), ["d1", "ü"])
    with pytest.raises(InputError, match=r"x\.run: .* can not hold the id 'd 2': it has spaces"):
        check_run_ids(Path("x.run"), ["d1", "d 2"])


@pytest.mark.parametrize(
    ("module", "package"),
    [("bm25s", "bm25s"), ("sentence_transformers", "sentence-transformers")],
)
def test_a_missing_package_is_named_with_its_extra(data, monkeypatch, module, package):
    for name in [name for name in sys.modules if name.split(".")[0] == module]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, module, None)
    message = rf"{package} is not installed: pip install 'c2v-engine\[eval\]'"
    with pytest.raises(MissingPackageError, match=message):
        evaluate_retrieval(WordCounts(), data)


def test_the_engine_is_evaluated_by_its_own_prompts(tmp_path):
    from c2v_engine import Causal2Vec

    data = read_beir(write_beir(tmp_path))
    engine = Causal2Vec.from_pretrained(device="cpu", dtype="float32")
    report = evaluate_retrieval(engine, data)
    similarity = engine.similarity(
        engine.encode_query(list(data.queries.values())),
        engine.encode_document(list(data.corpus.values())),
    )
    for row, query in zip(similarity.tolist(), data.queries, strict=True):
        expected = dict(zip(data.corpus, row, strict=True))
        # Other batches, and with them another order of float32 sums.
        assert dict(report.model.ranking[query]) == pytest.approx(expected, abs=1e-5)
    assert report.model.setting["model"]["fingerprint"] == engine.info()["fingerprint"]
    truncated = evaluate_retrieval(engine, data, EvaluationOptions(truncate_dim=32))
    assert truncated.model.ranking != report.model.ranking
    with pytest.raises(InputError, match="prompt_name is 'no such'"):
        evaluate_retrieval(engine, data, EvaluationOptions(document_prompt_name="no such"))


def test_a_sentence_transformer_is_evaluated_too(data):
    from sentence_transformers import SentenceTransformer
    from sentence_transformers.util import cos_sim
    from tokenizers import Tokenizer, models, pre_tokenizers

    try:
        from sentence_transformers.sentence_transformer.modules import StaticEmbedding
    except ImportError:
        from sentence_transformers.models import StaticEmbedding

    words = {f"w{i}": i for i in range(60)} | {"?": 60}
    tokenizer = Tokenizer(models.WordLevel(words, unk_token="?"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    weights = np.random.default_rng(0).normal(size=(61, 16)).astype(np.float32)
    model = SentenceTransformer(
        modules=[StaticEmbedding(tokenizer, embedding_weights=weights)], device="cpu"
    )
    report = evaluate_retrieval(model, data)
    query, text = next(iter(data.queries.items()))
    expected = cos_sim(model.encode(text), model.encode(list(data.corpus.values())))[0]
    best = float(expected.max())
    assert report.model.ranking[query][0][1] == pytest.approx(best, abs=1e-6)  # float32 sums
    assert report.model.name == "SentenceTransformer"
