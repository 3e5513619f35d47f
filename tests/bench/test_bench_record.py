"""The result file, whole at any moment."""

import json
import os

from c2v_engine.bench.record import Record


def test_two_runs_into_one_folder_do_not_take_each_other_s_file_away(monkeypatch, tmp_path):
    path, replace = tmp_path / "results.json", os.replace
    first = Record(path)
    monkeypatch.setattr(os, "getpid", lambda: 1)
    second = Record(path)

    def meanwhile(source, target):
        monkeypatch.setattr(os, "replace", replace)
        second.put("name", "second")
        replace(source, target)

    monkeypatch.setattr(os, "replace", meanwhile)
    first.put("name", "first")
    assert json.loads(path.read_text()) == {"name": "first"}
    assert os.listdir(tmp_path) == ["results.json"]
