"""The Python of docs/evaluation.md runs as it stands."""

from __future__ import annotations

import json
import re
from pathlib import Path

PAGE = Path(__file__).resolve().parents[2] / "docs" / "evaluation.md"


def snippets():
    return re.findall(r"^```python\n(.*?)^```", PAGE.read_text(), flags=re.MULTILINE | re.DOTALL)


def write_data(folder):
    """The very rows that the page shows."""
    shown = re.findall(r"my-data/(\S+)\s+(\{.*\})$", PAGE.read_text(), flags=re.MULTILINE)
    assert [name for name, _ in shown] == ["corpus.jsonl", "queries.jsonl"]
    (folder / "qrels").mkdir(parents=True)
    for name, row in shown:
        assert json.loads(row)["_id"]
        (folder / name).write_text(row + "\n")
    (folder / "qrels" / "test.tsv").write_text("query-id\tcorpus-id\tscore\nq1\td1\t1\n")


def test_the_page_s_data_are_evaluated(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    write_data(tmp_path / "my-data")
    exec(compile(snippets()[0], str(PAGE), "exec"), {})
    assert capsys.readouterr().out == "default 1.0 1.0\nBM25 1.0 1.0\n"


def test_mteb_is_called_with_the_engine(tmp_path, monkeypatch):
    import mteb

    from c2v_engine import Causal2Vec

    calls = []
    monkeypatch.setattr(mteb, "get_tasks", lambda tasks: tasks)
    monkeypatch.setattr(mteb, "evaluate", lambda *arguments: calls.append(arguments))
    monkeypatch.chdir(tmp_path)
    Causal2Vec.from_pretrained(device="cpu").save_pretrained("my-model")
    exec(compile(snippets()[1], str(PAGE), "exec"), {})
    [(encoder, tasks)] = calls
    assert encoder.mteb_model_meta.name == "c2v-engine/my-model"
    assert tasks == ["NFCorpus", "STSBenchmark"]
