"""Whole runs on tiny models: what moves, what is written, and what the engine makes of it."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from shutil import copytree, ignore_patterns, rmtree

import numpy as np
import pytest
import torch
from checkpoints import Recipe
from safetensors.torch import load_file, save_file
from training_pairs import pairs, write_jsonl, write_run

from c2v_engine import Causal2Vec
from c2v_engine.errors import CheckpointError, ConfigError, InputError, OutputError
from c2v_engine.jobs.corpus.folder.locking import locked
from c2v_engine.reference import Causal2VecReference
from c2v_engine.training.config import TrainConfig
from c2v_engine.training.metrics import read_metrics
from c2v_engine.training.record import last_checkpoint
from c2v_engine.training.run import train

TEXTS = ["", "how to open file 3", "Open the file numbered 3 and return it."]


def run(folder, model, resume=False, **options):
    path = write_run(folder, model, **options)
    return train(TrainConfig.load(path), resume=resume, quiet=True)


def losses(folder):
    lines = read_metrics(folder / "run" / "metrics.jsonl")
    return {line["step"]: line["loss"] for line in lines if "loss" in line}


def weights(model, part):
    name = "projector.safetensors" if part == "projector" else f"{part}/model.safetensors"
    return load_file(model / name)


def same(first, second):
    """Whether weights are equal, but for BERT's pooler, which Causal2Vec does not read."""
    first, second = (
        {name: value for name, value in state.items() if "pooler" not in name}
        for state in (first, second)
    )
    assert set(first) == set(second)
    return all(torch.equal(value, second[name]) for name, value in first.items())


def test_lora_lowers_the_loss_and_loads_merged_with_the_same_answers(tmp_path, checkpoint):
    report = run(
        tmp_path, checkpoint(), steps=30, learning_rate=5e-3, lora={"r": 4, "dropout": 0.0}
    )
    curve = losses(tmp_path)
    assert report.steps == 30
    assert np.mean([curve[step] for step in range(26, 31)]) < 0.8 * curve[1]
    adapter = json.loads((report.model / "adapter" / "adapter_config.json").read_text())
    assert adapter["r"] == 4
    assert same(weights(report.model, "decoder"), weights(checkpoint(), "decoder"))
    assert not same(weights(report.model, "encoder"), weights(checkpoint(), "encoder"))
    assert not same(weights(report.model, "projector"), weights(checkpoint(), "projector"))
    expected = Causal2VecReference.from_pretrained(report.model).encode(TEXTS).numpy()
    engine = Causal2Vec.from_pretrained(report.model, device="cpu", dtype="float32")
    np.testing.assert_allclose(engine.encode(TEXTS), expected, rtol=0, atol=1e-5)
    start = Causal2VecReference.from_pretrained(checkpoint()).encode(TEXTS).numpy()
    assert np.abs(expected - start).max() > 1e-2


def test_the_checkpoint_is_the_model_that_was_trained(tmp_path, checkpoint, monkeypatch):
    """Not what was loaded, and not a step earlier: the trained modules answer the same."""
    from c2v_engine.training import saving

    trained = []
    original = saving.save_checkpoint

    def save(reference, *arguments):
        trained.append(reference.eval().encode(TEXTS).numpy())
        original(reference, *arguments)

    monkeypatch.setattr(saving, "save_checkpoint", save)
    report = run(tmp_path, checkpoint(), steps=3, learning_rate=1e-2)
    engine = Causal2Vec.from_pretrained(report.model, device="cpu", dtype="float32")
    np.testing.assert_allclose(engine.encode(TEXTS), trained[-1], rtol=0, atol=1e-5)


@pytest.mark.parametrize(
    ("options", "moved"),
    [
        ({"decoder": "full"}, {"encoder", "projector", "decoder"}),
        ({"decoder": "full", "encoder": False, "projector": False}, {"decoder"}),
        ({"decoder": "frozen", "encoder": False}, {"projector"}),
        ({"decoder": "frozen", "gradient_checkpointing": True}, {"encoder", "projector"}),
    ],
)
def test_only_what_is_asked_for_moves(tmp_path, checkpoint, options, moved):
    report = run(tmp_path, checkpoint(), steps=2, learning_rate=1e-2, **options)
    parts = ("encoder", "projector", "decoder")
    changed = {p for p in parts if not same(weights(report.model, p), weights(checkpoint(), p))}
    assert changed == moved
    assert not (report.model / "adapter").exists()


def test_bfloat16_checkpointing_caching_and_negatives_train_together(tmp_path, checkpoint):
    write_jsonl(tmp_path / "pairs.jsonl", pairs(24, negatives=True))
    write_jsonl(tmp_path / "more.jsonl", pairs(16))
    report = run(
        tmp_path,
        checkpoint(),
        dtype="bfloat16",
        save_dtype="bfloat16",
        gradient_checkpointing=True,
        mini_batch_size=4,
        data=[{"path": "pairs.jsonl", "query_prompt": "name:query"}, {"path": "more.jsonl"}],
        mixing="round_robin",
        directions=["query_to_doc", "doc_to_query"],
        learning_rates={"encoder": 1e-5},
    )
    assert all(np.isfinite(value) for value in losses(tmp_path).values())
    assert weights(report.model, "encoder")["embeddings.word_embeddings.weight"].dtype == (
        torch.bfloat16
    )
    config = json.loads((report.model / "encoder" / "config.json").read_text())
    assert config["dtype"] == "bfloat16"


def test_it_finds_its_device_by_itself(tmp_path, checkpoint):
    report = run(tmp_path, checkpoint(), steps=1, device="auto", dtype="bfloat16")
    assert np.isfinite(report.loss)


def test_an_adapter_is_trained_further(tmp_path, checkpoint):
    first = run(tmp_path, checkpoint(), steps=2, lora={"r": 4, "alpha": 8})
    again = tmp_path / "again"
    again.mkdir()
    second = run(again, first.model, steps=2, learning_rate=1e-2, lora={"r": 4, "alpha": 8})
    names = [
        model / "adapter" / "adapter_model.safetensors" for model in (first.model, second.model)
    ]
    assert not same(*map(load_file, names))
    third = tmp_path / "third"
    third.mkdir()
    with pytest.raises(ConfigError, match="adapter, which is trained further, has 4 and 8"):
        run(third, first.model, lora={"r": 8})
    with pytest.raises(ConfigError, match="has a LoRA adapter"):
        run(third, first.model, decoder="full")


def test_a_frozen_decoder_keeps_its_adapter(tmp_path, checkpoint):
    recipe = Recipe(adapter="lora")
    report = run(tmp_path, checkpoint(recipe), steps=1, decoder="frozen", learning_rate=1e-9)
    engine = Causal2Vec.from_pretrained(report.model, device="cpu", dtype="float32")
    expected = Causal2VecReference.from_pretrained(checkpoint(recipe)).encode(TEXTS).numpy()
    np.testing.assert_allclose(engine.encode(TEXTS), expected, rtol=0, atol=1e-5)


def test_a_projector_that_is_not_trained_is_copied_to_the_bit(tmp_path, checkpoint):
    report = run(tmp_path, checkpoint(), steps=1, projector=False, save_dtype="bfloat16")
    assert same(weights(report.model, "projector"), weights(checkpoint(), "projector"))


def test_validation_is_measured_written_and_plotted(tmp_path, checkpoint):
    write_jsonl(tmp_path / "held.jsonl", pairs(12))
    report = run(tmp_path, checkpoint(), validation={"path": "held.jsonl"}, validation_steps=2)
    assert set(report.metrics) == {"ndcg@10", "recall@10", "mrr@10"}
    lines = read_metrics(tmp_path / "run" / "metrics.jsonl")
    assert [line["step"] for line in lines if "eval_ndcg@10" in line] == [2, 4]
    picture = (tmp_path / "run" / "metrics.png").read_bytes()
    assert picture.startswith(b"\x89PNG")
    assert len(picture) > 10_000


def test_a_killed_run_resumes_to_the_same_losses(tmp_path, checkpoint):
    folders = [tmp_path / name for name in ("whole", "killed")]
    options = {"steps": 8, "save_steps": 2, "learning_rate": 1e-2}
    for folder in folders:
        folder.mkdir()
    run(folders[0], checkpoint(), **options)
    path = write_run(folders[1], checkpoint(), **options)
    process = subprocess.Popen(
        [sys.executable, "-m", "c2v_engine", "train", str(path), "--quiet"],
        env=os.environ | {"OMP_NUM_THREADS": "1"},
    )
    state = folders[1] / "run" / "checkpoint-4" / "trainer_state.json"
    deadline = time.monotonic() + 120
    while not state.is_file() and process.poll() is None and time.monotonic() < deadline:
        time.sleep(0.01)
    process.send_signal(signal.SIGKILL)
    assert process.wait() == -signal.SIGKILL, "it ended before it was killed"
    # A kill while a checkpoint is written leaves one without its last file.
    (folders[1] / "run" / "checkpoint-999").mkdir()
    train(TrainConfig.load(path), resume=True, quiet=True)
    whole, resumed = map(losses, folders)
    assert list(resumed) == list(whole) == list(range(1, 9))
    # The same arithmetic in the same order; a process may sum in another.
    np.testing.assert_allclose(list(resumed.values()), list(whole.values()), rtol=1e-4)


def test_resuming_is_refused_where_nothing_or_another_run_stands(tmp_path, checkpoint):
    with pytest.raises(OutputError, match="holds no run to resume"):
        run(tmp_path, checkpoint(), resume=True)
    run(tmp_path, checkpoint(), steps=1, save_steps=1)
    with pytest.raises(OutputError, match="is not empty"):
        run(tmp_path, checkpoint(), steps=1)
    with pytest.raises(ConfigError, match=r"learning_rate is 0\.5, but the run to resume has"):
        run(tmp_path, checkpoint(), resume=True, steps=1, save_steps=1, learning_rate=0.5)


def test_resuming_a_run_without_checkpoint_is_refused(tmp_path, checkpoint):
    run(tmp_path, checkpoint(), steps=1)
    with pytest.raises(OutputError, match="no whole checkpoint to resume"):
        run(tmp_path, checkpoint(), resume=True, steps=1)


def test_a_run_killed_after_its_last_step_is_finished_without_another(tmp_path, checkpoint):
    options = {"steps": 4, "save_steps": 4, "scheduler": "constant", "learning_rate": 1e-2}
    report = run(tmp_path, checkpoint(), **options)
    expected = weights(report.model, "encoder")
    rmtree(report.model)
    again = run(tmp_path, checkpoint(), resume=True, **options)
    assert again.steps == 4
    assert same(weights(again.model, "encoder"), expected)


@pytest.mark.parametrize("name", ["optimizer.pt", "scheduler.pt", "trained.safetensors"])
def test_a_checkpoint_that_lost_a_file_is_not_resumed(tmp_path, checkpoint, name):
    options = {"steps": 4, "save_steps": 2}
    run(tmp_path, checkpoint(), **options)
    (tmp_path / "run" / "checkpoint-4" / name).unlink()
    assert last_checkpoint(tmp_path / "run").name == "checkpoint-2"


def test_a_folder_in_which_a_run_writes_is_refused(tmp_path, checkpoint):
    with (
        locked(tmp_path / "run", "run"),
        pytest.raises(OutputError, match="another run is writing"),
    ):
        run(tmp_path, checkpoint(), steps=1)


def test_the_model_can_be_read_by_others(tmp_path, checkpoint):
    model = run(tmp_path, checkpoint(), steps=1).model
    config = (model / "config.json").stat().st_mode
    assert {path.stat().st_mode for path in model.rglob("*.safetensors")} == {config}


def test_a_run_resumes_from_another_folder(tmp_path, checkpoint, monkeypatch):
    run(tmp_path, checkpoint(), steps=2, save_steps=1)
    monkeypatch.chdir(tmp_path.parent)
    path = Path(tmp_path.name) / "run.yaml"
    assert train(TrainConfig.load(path), resume=True, quiet=True).steps == 2


def test_a_quiet_run_says_nothing(tmp_path, checkpoint, capfd):
    run(tmp_path, checkpoint(), steps=2)
    assert capfd.readouterr().out == ""


def test_two_processes_train_one_model(tmp_path, checkpoint):
    path = write_run(tmp_path, checkpoint(), steps=3)
    command = ["torch.distributed.run", "--standalone", "--nproc_per_node", "2", "-m"]
    result = subprocess.run(
        [sys.executable, "-m", *command, "c2v_engine", "train", str(path), "--quiet"],
        env=os.environ | {"OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
    )
    assert result.returncode == 0, result.stderr[-2000:]
    assert json.loads((tmp_path / "run" / "run.json").read_text())["processes"] == 2
    assert list(losses(tmp_path)) == [1, 2, 3]
    model = Causal2Vec.from_pretrained(tmp_path / "run" / "model", device="cpu")
    assert np.isfinite(model.encode(TEXTS)).all()


def test_resuming_on_other_rows_is_refused(tmp_path, checkpoint):
    run(tmp_path, checkpoint(), steps=1, save_steps=1)
    write_jsonl(tmp_path / "pairs.jsonl", pairs(31))
    with pytest.raises(ConfigError, match="rows of the data are not those"):
        run(tmp_path, checkpoint(), resume=True, steps=1, save_steps=1)


def test_a_run_that_failed_on_its_data_can_be_started_again(tmp_path, checkpoint):
    write_jsonl(tmp_path / "pairs.jsonl", pairs(1))
    with pytest.raises(InputError, match="holds one row"):
        run(tmp_path, checkpoint(), steps=1)
    write_jsonl(tmp_path / "pairs.jsonl", pairs(4))
    assert run(tmp_path, checkpoint(), steps=1).pairs == 4


def test_bad_rows_stop_a_run_before_the_model_is_opened(tmp_path, checkpoint):
    model = tmp_path / "model"
    copytree(checkpoint(), model, ignore=ignore_patterns("*.safetensors"))
    write_jsonl(tmp_path / "pairs.jsonl", [*pairs(3), {"query": "", "positive": "x"}])
    with pytest.raises(InputError, match="line 4: column 'query' is empty"):
        run(tmp_path, model)


def test_a_loss_that_is_not_finite_stops_the_run(tmp_path, checkpoint):
    with pytest.raises(InputError, match=r"step \d+: the loss is (nan|inf)"):
        run(tmp_path, checkpoint(), steps=20, decoder="full", learning_rate=1e30)


def test_a_text_that_makes_the_loss_nan_is_named(tmp_path, checkpoint):
    model = tmp_path / "model"
    copytree(checkpoint(), model)
    tokenize = Causal2VecReference.from_pretrained(model).decoder_tokenizer
    others = [text for row in pairs(6) for text in row.values()] + ["a is needed", "Ask for it."]
    token = max(set(tokenize(" password").input_ids).difference(*tokenize(others).input_ids))
    state = load_file(model / "decoder" / "model.safetensors")
    state["embed_tokens.weight"][token] = float("nan")
    save_file(state, model / "decoder" / "model.safetensors", metadata={"format": "pt"})
    write_jsonl(
        tmp_path / "pairs.jsonl",
        [*pairs(6), {"query": "a password is needed", "positive": "Ask for it."}],
    )
    with pytest.raises(InputError, match=r"data set 'pairs', column 'query', the text '.*password"):
        run(tmp_path, model)


def test_an_unknown_prompt_name_is_refused(tmp_path, checkpoint):
    with pytest.raises(ConfigError, match="names no prompt of the model; it has query, document"):
        run(tmp_path, checkpoint(), data=[{"path": "pairs.jsonl", "query_prompt": "name:q"}])


def test_what_does_not_fit_the_model_is_found_before_training(tmp_path, checkpoint):
    for options, words in (
        ({"learning_rates": {"encodr": 1e-5}}, "'encodr' matches no parameter that is trained"),
        ({"max_length": 1000}, "max_length is 1000, but the model reads 48"),
        ({"data": [{"path": "pairs.jsonl", "query_prompt": "long " * 60}]}, "data set 'pairs'"),
        ({"attention": "foo"}, "can not be opened with these values"),
        ({"scheduler": "wavy"}, "scheduler is 'wavy'"),
        ({"lora": {"target_modules": ["no_proj"]}}, "no_proj"),
    ):
        rmtree(tmp_path / "run", ignore_errors=True)
        with pytest.raises((ConfigError, CheckpointError), match=words):
            run(tmp_path, checkpoint(), **options)


def test_parts_that_a_model_lacks_are_no_mistake(tmp_path, checkpoint):
    recipe = Recipe(template=("{prompt}{text}", "<eos>"), pooling=("<eos>",), encoder=None)
    report = run(tmp_path, checkpoint(recipe), steps=1, decoder="full")
    assert Causal2Vec.from_pretrained(report.model, device="cpu").dimension > 0
