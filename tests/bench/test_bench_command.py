"""``c2v bench`` from its options to its last line."""

import json
import os
import shutil
import signal
import tempfile
import time
from pathlib import Path

import pytest
import torch

from c2v_engine.bench.machine import ceilings
from c2v_engine.bench.models.shapes import MODELS
from c2v_engine.bench.models.written import write_checkpoint
from c2v_engine.cli import main


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    folder = tmp_path_factory.mktemp("models")
    for name, seed in (("one", 0), ("two", 1)):
        write_checkpoint(folder / name, MODELS["tiny-mistral"], "causal2vec", seed=seed)
    return folder


@pytest.fixture(autouse=True)
def quick(monkeypatch, tmp_path):
    """Ceilings of nothing, and a folder of its own."""
    monkeypatch.setitem(ceilings.WORK, "cpu", ceilings.TINY)
    monkeypatch.chdir(tmp_path)


def c2v(*words, code=0):
    with pytest.raises(SystemExit) as caught:
        main(["bench", *map(str, words)])
    assert (caught.value.code or 0) == code, words


SMALL = ("--device", "cpu", "--tokens", 64, "--repetitions", 2)


def test_it_measures_prints_and_ends_with_a_picture(models, capsys, tmp_path):
    c2v(
        "-m",
        models / "one",
        "--workload",
        "32",
        "--workload",
        "queries",
        "--dtype",
        "float32",
        "--provider",
        "padded",
        "--provider",
        "device",
        *SMALL,
        "-o",
        "out",
    )
    printed = capsys.readouterr().out.splitlines()
    assert printed[-1] == "picture  out/peers.png"
    assert "page     out/report.html" in printed
    assert any(line.startswith("  padded float32") and "times as fast" in line for line in printed)
    content = json.loads((tmp_path / "out" / "results.json").read_text())
    found = [(entry["case"], entry["provider"], entry["status"]) for entry in content["results"]]
    assert found == [
        (f"one/{case}/float32", f"{kind} float32", "ok")
        for case in ("32", "queries")
        for kind in ("engine", "padded", "device")
    ]
    assert all(len(entry["seconds"]) == 2 for entry in content["results"])
    assert content["version"]
    assert set(content["ceilings"]["gemm_tflops"]) == {"float32"}
    assert "ceilings_at_end" in content
    assert " ".join(content["arguments"]) == (
        f"--model {models / 'one'} --workload 32 --workload queries --dtype float32"
        " --provider padded --provider device --repetitions 2 --tokens 64 --device cpu"
    )
    assert "c2v bench --model" in (tmp_path / "out" / "report.html").read_text()


def test_the_texts_of_a_file_are_embedded_as_they_are(models, tmp_path):
    (tmp_path / "notes.txt").write_text("first note\nanother\nfirst note\n")
    c2v(
        "-m",
        models / "one",
        "--workload",
        "32",
        "--texts",
        "notes.txt",
        "--dtype",
        "float32",
        "--provider",
        "device",
        *SMALL,
        "-o",
        "out",
    )
    content = json.loads((tmp_path / "out" / "results.json").read_text())
    texts = {entry["case"]: entry["texts"] for entry in content["results"]}
    assert texts["one/notes.txt/float32"] == 2  # equal texts are computed once: one is taken


def test_two_runs_are_compared_and_a_page_is_made_again(models, capsys, tmp_path):
    for name in ("old", "new"):
        c2v(
            "-m",
            models / "one",
            "--workload",
            "32",
            "--dtype",
            "float32",
            "--provider",
            "padded",
            *SMALL,
            "-o",
            name,
        )
    capsys.readouterr()
    c2v("compare", "old", "new/results.json")
    assert "one/32/float32" in capsys.readouterr().out
    c2v("compare", "old", "new", "--json")
    moved = json.loads(capsys.readouterr().out)["moved"]
    assert [each["provider"] for each in moved] == ["engine float32", "padded float32"]
    c2v("report", "old", "-o", "again")
    assert (tmp_path / "again" / "report.html").is_file()
    assert capsys.readouterr().out.splitlines()[-1] == "picture  again/peers.png"


def test_methods_are_measured_at_their_lengths(capsys, tmp_path):
    c2v(
        "methods",
        "--shape",
        "tiny-mistral",
        "--length",
        16,
        "--length",
        32,
        "--tokens",
        64,
        "--repetitions",
        1,
        "--dtype",
        "float32",
        "--device",
        "cpu",
        "-o",
        "out",
    )
    assert capsys.readouterr().out.splitlines()[-1] == "picture  out/methods.png"
    content = json.loads((tmp_path / "out" / "results.json").read_text())
    assert [entry["status"] for entry in content["results"]] == ["ok"] * 14
    rows = {
        (entry["method"], entry["text_tokens"]): entry["decoder_tokens"] / entry["texts"]
        for entry in content["results"]
    }
    # A run of so many tokens may be one token more or less when it is tokenised alone.
    assert rows["last-token", 32] == pytest.approx(33, abs=2)
    assert rows["causal2vec", 32] == rows["last-token", 32] + 1
    assert rows["summary-tokens", 32] == rows["last-token", 32] + 3
    assert rows["echo", 32] == 2 * rows["last-token", 32] - 1
    assert rows["bidirectional-mean", 32] == rows["last-token", 32] - 1
    shared = {
        entry["method"]: entry["computed_tokens"] / entry["texts"]
        for entry in content["results"]
        if entry["text_tokens"] == 16
    }
    assert shared["in-context"] == rows["in-context", 16] > 200
    assert shared["in-context shared"] < 40
    operations = {
        entry["method"]: entry["operations"] / entry["computed_tokens"]
        for entry in content["results"]
        if entry["text_tokens"] == 16
    }
    assert operations["in-context shared"] == pytest.approx(operations["in-context"])


def test_a_wrong_method_is_reported_and_the_command_fails(monkeypatch, capsys):
    from c2v_engine.bench import methods

    judged = methods.judge

    def spoil(entry, vectors, expected, bound):
        judged(entry, vectors.roll(1, 0), expected, bound)

    monkeypatch.setattr(methods, "judge", spoil)
    c2v(
        "methods",
        "--shape",
        "tiny-mistral",
        "--method",
        "echo",
        "--length",
        16,
        "--tokens",
        32,
        "--repetitions",
        1,
        "--dtype",
        "float32",
        "--device",
        "cpu",
        "-o",
        "out",
        code=1,
    )
    assert "echo: wrong: cosines" in capsys.readouterr().out


def test_vectors_that_are_alike_in_16_bits_are_compared_in_32(monkeypatch, capsys):
    from c2v_engine.bench import methods

    # So loose that another text's vector would do: what is wrong has to be seen in float32.
    monkeypatch.setitem(methods.BOUNDS, "bfloat16", methods.BOUNDS["int8"])
    judged = methods.judge

    def spoil(entry, vectors, expected, bound):
        exact = bound is methods.BOUNDS["float32"]
        judged(entry, vectors.roll(1, 0) if exact else vectors, expected, bound)

    monkeypatch.setattr(methods, "judge", spoil)
    words = ["--shape", "tiny-mistral", "--method", "in-context", "--length", 16, "--tokens", 32]
    words += ["--repetitions", 1, "--dtype", "bfloat16", "--device", "cpu", "-o", "out"]
    c2v("methods", *words, code=1)
    assert "wrong: in float32: cosines" in capsys.readouterr().out


def test_models_of_random_weights_are_written_and_go(capsys, tmp_path):
    c2v(
        "--shape",
        "tiny-qwen2",
        "--method",
        "last-token",
        "--method",
        "echo",
        "--workload",
        "32",
        "--dtype",
        "float32",
        "--provider",
        "padded",
        *SMALL,
        "-o",
        "out",
    )
    content = json.loads((tmp_path / "out" / "results.json").read_text())
    assert set(content["models"]) == {"tiny-qwen2 last-token", "tiny-qwen2 echo"}
    assert {entry["status"] for entry in content["results"]} == {"ok"}


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("--workload", "33"), "workload is '33'"),
        (("--dtype", "float8"), "dtype is 'float8'"),
        (("--provider", "nobody"), "provider is 'nobody', expected one of engine, device, padded"),
        (("--method", "echo"), "name a --shape too"),
        (("--shape", "huge"), "shape is 'huge', expected one of mistral-7b"),
        (("--shape", "tiny-qwen2", "--method", "x"), "method is 'x'"),
        (("--texts", "nothing.txt"), "nothing.txt: no such file"),
        (("--url", "tei"), "is not KIND=URL"),
        (("--url", "infinity=http://there"), "--url is of infinity, which is no provider"),
        (("--workload", "file"), "--texts names one"),
        (("--column", "body"), "--column is of the file of --texts"),
        (("--seconds", "inf"), "less than or equal to"),
        (("--device", "cpu", "methods"), "--device stands before 'methods'"),
        (("-o", "out", "report", "nothing"), "--output stands before 'report'"),
        (("--provider", "tei"), "tei is a server: give its address by --url tei=http"),
        (("methods", "--length", "10000"), "length is 10000, expected at most"),
        (("methods", "--dtype", "int8"), "dtype is 'int8', expected one of"),
        (("report", "nothing"), "nothing: no such file"),
        (("compare", "nothing", "nothing"), "nothing: no such file"),
    ],
)
def test_a_mistake_is_one_line_and_nothing_is_measured(words, said, capsys, tmp_path):
    c2v(*words, code=2)
    captured = capsys.readouterr()
    assert said in captured.err
    assert len(captured.err.splitlines()) == 1
    assert not (tmp_path / "c2v-bench").exists()


def test_a_run_without_options_is_of_the_default_model_and_named_for_the_moment(
    monkeypatch, capsys, tmp_path
):
    from c2v_engine.bench import command

    asked = {}

    def run_plan(plan, sources, device, folder, **others):
        asked.update(plan=plan, sources=sources, folder=folder)
        raise KeyboardInterrupt

    monkeypatch.setattr(command, "run_plan", run_plan)
    with pytest.raises((SystemExit, KeyboardInterrupt)):
        main(["bench"])
    assert list(asked["sources"]) == ["c2v-mini"]
    assert asked["plan"].workloads == ("32", "128", "512", "passages", "queries")
    assert {"device", "padded"} <= set(asked["plan"].providers)
    assert asked["folder"].parent.name == "c2v-bench"
    assert torch.get_num_threads() >= 1


def test_a_damaged_model_leaves_the_results_of_a_folder_as_they_are(models, capsys, tmp_path):
    shutil.copytree(models / "one", tmp_path / "broken")
    (tmp_path / "broken" / "decoder" / "tokenizer.json").unlink()
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "results.json").write_text("of an hour")
    c2v("-m", "broken", *SMALL, "-o", "out", code=2)
    captured = capsys.readouterr()
    assert "broken/decoder: its tokenizer" in captured.err
    assert len(captured.err.splitlines()) == 1
    assert not captured.out
    assert (tmp_path / "out" / "results.json").read_text() == "of an hour"


def test_a_file_in_the_place_of_the_folder_is_found_before_models_are_made(monkeypatch, capsys):
    from c2v_engine.bench.models import written

    monkeypatch.setattr(written, "write_checkpoint", lambda *words, **options: 1 / 0)
    Path("out").touch()
    for words in ((), ("methods",)):
        c2v(*words, "--shape", "tiny-qwen2", "-o", "out", code=2)
        assert (
            capsys.readouterr().err == "error: out: is a file, expected a folder for the results\n"
        )


def test_what_is_asked_for_twice_is_measured_once_and_models_keep_their_names(monkeypatch, models):
    from c2v_engine.bench import command

    asked = {}

    def run_plan(plan, sources, device, folder, **others):
        asked.update(plan=plan, sources=list(sources))
        raise KeyboardInterrupt

    monkeypatch.setattr(command, "run_plan", run_plan)
    monkeypatch.chdir(models / "one")
    (models / "tiny-qwen2").symlink_to(models / "two")
    words = ["--shape", "tiny-qwen2", "--workload", "32", "--dtype", "float32"] * 2
    words += ["--provider", "padded"] * 2 + ["-m", ".", "-m", "../tiny-qwen2"]
    with pytest.raises((SystemExit, KeyboardInterrupt)):
        main(["bench", *words])
    plan = asked["plan"]
    assert (plan.workloads, plan.dtypes, plan.providers) == (("32",), ("float32",), ("padded",))
    assert asked["sources"] == ["one", "tiny-qwen2", "tiny-qwen2-2"]


@pytest.mark.parametrize("words", [("methods",), ("--workload", "32", "--dtype", "float32")])
def test_a_kill_leaves_no_model_behind(words, monkeypatch, tmp_path):
    from c2v_engine.bench import command, methods

    def killed(*given, **options):
        assert list((tmp_path / "temporary").iterdir())
        os.kill(os.getpid(), signal.SIGTERM)
        time.sleep(5)

    (tmp_path / "temporary").mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "temporary"))
    for module in (command, methods):
        monkeypatch.setattr(module, "measure_ceilings_by_dtype", killed)
    before = signal.getsignal(signal.SIGTERM)
    # A handler that the test survives where the command has none.
    signal.signal(signal.SIGTERM, lambda number, frame: None)
    try:
        c2v(*words, "--shape", "tiny-mistral", "-o", "out", code=143)
    finally:
        signal.signal(signal.SIGTERM, before)
    left = [path.name for path in (tmp_path / "temporary").iterdir()]
    assert not [name for name in left if not name.startswith("torchinductor")]  # torch's cache
