"""Mistakes that would otherwise pass in silence: nothing is ignored, nothing is half-written."""

import multiprocessing
import pickle
import shutil

import numpy as np
import pytest
from checkpoints import Recipe
from damage import assert_refused, copy, edit_json, open_engine

from c2v_engine import Causal2Vec
from c2v_engine.errors import BackendError, CheckpointError, ConfigError, TextError

ECHO = Recipe(encoder=None, template=("{text}", "{text}", "<eos>"), pooling=(1,))


def test_saving_after_the_source_is_gone_is_an_error_and_leaves_nothing(checkpoint, tmp_path):
    engine = open_engine(copy(checkpoint(Recipe()), tmp_path / "source"))
    shutil.rmtree(tmp_path / "source")
    with pytest.raises(CheckpointError, match="holds no weights to copy"):
        engine.save_pretrained(tmp_path / "saved")
    assert not (tmp_path / "saved").exists()


def test_a_failed_create_leaves_an_empty_folder_empty(checkpoint, tmp_path, monkeypatch):
    def full(*_args, **_kwargs):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("c2v_engine.model.assemble.save_file", full)
    (tmp_path / "new").mkdir()
    source = checkpoint(Recipe())
    with pytest.raises(CheckpointError, match="No space left on device"):
        Causal2Vec.create(tmp_path / "new", source / "decoder", source / "encoder")
    assert list((tmp_path / "new").iterdir()) == []


def test_a_prompt_that_nothing_reads_is_warned_of(engine, recwarn):
    model = engine(ECHO)
    plain = model.encode(["text"], prompt="")
    assert not recwarn
    with pytest.warns(UserWarning, match="it changes nothing"):
        assert np.array_equal(model.encode(["text"], prompt="query: "), plain)
    with pytest.warns(UserWarning, match="it changes nothing"):
        model.encode_query(["text"])


@pytest.mark.parametrize("pooling", ["cls", "mean"])
def test_a_text_without_any_encoder_token_is_named(checkpoint, tmp_path, pooling):
    place = copy(checkpoint(Recipe(encoder_pooling=pooling)), tmp_path / "model")
    edit_json(place / "encoder" / "tokenizer.json", post_processor=None)
    with pytest.raises(TextError, match="text 1: it gives the encoder no token at all"):
        open_engine(place).encode(["fine", "", "fine"])


def test_a_stream_gives_the_good_texts_before_a_bad_one(engine):
    texts = [*(f"text {number % 5}" for number in range(8192)), None]
    stream = engine(ECHO).encode_stream(texts)
    assert len(next(stream)) == 8192
    with pytest.raises(TextError, match="text 8192: is NoneType"):
        next(stream)


def test_progress_is_reported_batch_by_batch(engine, monkeypatch):
    steps = []
    monkeypatch.setattr(
        "c2v_engine.runtime.progress.ProgressReporter.advance", lambda self, n: steps.append(n)
    )
    texts = [f"text number {number}" for number in range(40)]
    engine(ECHO).encode(texts, batch_tokens=50, show_progress_bar=False)
    assert sum(steps) == 40
    assert len(steps) > 4


def test_a_max_length_without_room_for_text_is_refused_at_load(checkpoint, tmp_path):
    place = copy(checkpoint(Recipe()), tmp_path / "model")
    edit_json(place / "config.json", max_length=2)
    assert_refused(lambda: open_engine(place), "max_length is 2", error=ConfigError)


def test_a_default_prompt_name_that_is_no_name_is_refused(checkpoint, tmp_path):
    place = copy(checkpoint(Recipe()), tmp_path / "model")
    edit_json(place / "config.json", default_prompt_name=[])
    assert_refused(lambda: open_engine(place), "default_prompt_name is []", error=ConfigError)


def test_numpy_integers_are_numbers(engine):
    model = engine(ECHO)
    expected = model.encode(["text"], truncate_dim=8)
    found = model.encode(["text"], truncate_dim=np.int64(8), batch_tokens=np.int32(64))
    np.testing.assert_allclose(found, expected, rtol=0, atol=1e-6)


def test_errors_that_name_a_text_survive_pickling():
    error = pickle.loads(pickle.dumps(TextError(3, "is bad")))
    assert (error.row, error.reason, str(error)) == (3, "is bad", "text 3: is bad")
    assert hash(error) is not None


def test_an_adapter_that_changes_the_base_weights_is_refused(checkpoint, tmp_path):
    place = copy(checkpoint(Recipe(adapter="lora")), tmp_path / "model")
    edit_json(place / "adapter" / "adapter_config.json", init_lora_weights="pissa")
    assert_refused(lambda: open_engine(place), "init_lora_weights 'pissa'", error=CheckpointError)


def test_a_forked_copy_says_so_instead_of_hanging(engine):
    model = engine(ECHO)
    context = multiprocessing.get_context("fork")
    receive, send = context.Pipe(duplex=False)

    def encode():
        try:
            model.encode(["text"])
            send.send("embedded")
        except BackendError as error:
            send.send(str(error))

    child = context.Process(target=encode)
    child.start()
    try:
        assert receive.poll(60)
        assert "load it in each process" in receive.recv()
    finally:
        child.kill()
        child.join()


def test_a_seed_that_is_no_seed_is_refused(checkpoint, tmp_path):
    source = checkpoint(Recipe())
    with pytest.raises(ConfigError, match="seed is 99999999999999999999999"):
        Causal2Vec.create(
            tmp_path / "new", source / "decoder", source / "encoder", seed=99999999999999999999999
        )
