"""Choosing attention backends by measurements; every measurement in here is made up."""

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from c2v_engine.model.attention import measured, select
from c2v_engine.model.attention.base import AttentionMask
from c2v_engine.model.attention.measured import (
    TABLE,
    Gpu,
    Heads,
    MeasuredAttention,
    Measurement,
    measured_attention,
    measurements_for,
    read_table,
)
from c2v_engine.model.attention.sdpa import SdpaAttention
from c2v_engine.model.attention.select import BACKENDS, select_attention
from c2v_engine.model.packed_batch import PackedSequences

TOOL = Path(__file__).resolve().parents[2] / "tools" / "attention_table.py"
GPU = Gpu("Imaginary GPU", "9.0")
HEADS = Heads(torch.bfloat16, 128, 4)


class Quick(SdpaAttention):
    """A backend of another name that runs here."""

    name = "quick"


class Slow(SdpaAttention):
    """Another."""

    name = "slow"


KINDS = {kind.name: kind for kind in (Quick, Slow, SdpaAttention)}


def usable(name):
    return KINDS[name]() if name in KINDS else None


def measurement(up_to, *backends, **change):
    given = {
        "gpu": GPU.name,
        "capability": GPU.capability,
        "dtype": "bfloat16",
        "head_dim": 128,
        "group": 4,
        "mask": "causal",
        "mean_length_up_to": up_to,
        "backends": backends,
        "result": "imaginary.json",
        "commit": "0000000",
    }
    return Measurement(**{**given, **change})


def sequences(lengths):
    lengths = np.array(lengths, dtype=np.int64)
    ends = torch.tensor([0, *lengths]).cumsum(0).int()
    positions = torch.cat([torch.arange(n, dtype=torch.int32) for n in lengths])
    return PackedSequences(positions, positions, ends, lengths)


def follow(table, gpu=GPU, heads=HEADS):
    return measured_attention(table, gpu, heads, usable, SdpaAttention())


@pytest.mark.parametrize(
    ("lengths", "name"),
    [([1], "quick"), ([40, 88], "quick"), ([64, 65], "slow"), ([200], "slow"), ([201], "sdpa")],
)
def test_a_batch_goes_to_the_backend_that_was_fastest_at_its_mean_length(lengths, name):
    backend = follow([measurement(200, "slow", "quick"), measurement(64, "quick", "slow")])
    assert isinstance(backend, MeasuredAttention)
    assert backend.backend_for(sequences(lengths), AttentionMask(True)).name == name


def test_it_attends_and_chooses_rows_as_the_chosen_backend_does():
    backend = follow([measurement(64, "quick")])
    batch, mask = sequences([5, 9]), AttentionMask(True, 4)
    generator = torch.Generator().manual_seed(0)
    qkv = [torch.randn(14, heads, 16, generator=generator) for heads in (8, 2, 2)]
    sdpa = SdpaAttention()
    actual = backend.attend(*qkv, backend.plan(batch, mask), 0.25)
    assert torch.equal(actual, sdpa.attend(*qkv, sdpa.plan(batch, mask), 0.25))
    rows = torch.tensor([4, 13], dtype=torch.int32)
    plan = backend.plan_rows(batch, rows, mask)
    chosen = backend.attend_rows(qkv[0][rows.long()], *qkv[1:], plan, 0.25)
    torch.testing.assert_close(chosen, actual[rows.long()], rtol=1e-5, atol=1e-5)


def test_the_masks_are_measured_apart():
    backend = follow([measurement(64, "quick"), measurement(64, "slow", mask="bidirectional")])
    batch = sequences([9])
    assert backend.backend_for(batch, AttentionMask(True)).name == "quick"
    assert backend.backend_for(batch, AttentionMask(False)).name == "slow"
    only_causal = follow([measurement(64, "quick")])
    assert only_causal.backend_for(batch, AttentionMask(False)).name == "sdpa"


@pytest.mark.parametrize(
    "other",
    [
        {"head_dim": 64},
        {"group": 1},
        {"dtype": "float16"},
        {"capability": "8.0", "gpu": "Another GPU"},
    ],
)
def test_what_was_not_measured_is_left_to_the_built_in_kernel(other):
    assert type(follow([measurement(64, "quick", **other)])) is SdpaAttention


def test_a_backend_that_can_not_serve_leaves_its_place_to_the_next():
    table = [measurement(64, "not installed", "slow", "quick"), measurement(90, "not installed")]
    backend = follow(table)
    assert backend.backend_for(sequences([9]), AttentionMask(True)).name == "slow"
    assert backend.backend_for(sequences([80]), AttentionMask(True)).name == "sdpa"


def test_no_choice_takes_the_graphs_from_small_batches():
    class Graphed(SdpaAttention):
        name = "graphed"
        capturable = True

    class Other(Graphed):
        name = "other"

    kinds = {**KINDS, "graphed": Graphed, "other": Other}
    table = [measurement(64, "quick", "other"), measurement(90, "quick")]
    backend = measured_attention(table, GPU, HEADS, lambda name: kinds[name](), Graphed())
    assert backend.capturable
    assert backend.backend_for(sequences([9]), AttentionMask(True)).name == "other"
    assert backend.backend_for(sequences([80]), AttentionMask(True)).name == "graphed"


def test_a_table_that_says_the_built_in_kernel_needs_no_backend_of_its_own():
    assert (
        type(follow([measurement(64, "sdpa"), measurement(90, "sdpa", "quick")])) is SdpaAttention
    )


def test_the_same_gpu_goes_before_another_of_its_capability():
    other = measurement(64, "slow", gpu="Another GPU")
    mine = measurement(64, "quick")
    for table in ([other, mine], [mine, other]):
        assert measurements_for(table, GPU, HEADS, AttentionMask(True)) == [mine]
    # One GPU's measurements are not mixed with those of another.
    third = measurement(90, "slow", gpu="A third GPU")
    unknown = Gpu("A fourth GPU", "9.0")
    assert measurements_for([other, third], unknown, HEADS, AttentionMask(True)) == [other]


def test_auto_on_cuda_follows_the_table_and_needs_a_model_for_it(monkeypatch, tmp_path):
    monkeypatch.setattr(select, "BACKENDS", {"sdpa": SdpaAttention, "quick": Quick})
    monkeypatch.setattr(Gpu, "of", lambda device: GPU)
    monkeypatch.setattr(select, "read_table", lambda: (measurement(64, "quick"),))
    cuda = torch.device("cuda")
    chosen = select_attention("auto", cuda, torch.bfloat16, 128, 4)
    assert chosen.backend_for(sequences([9]), AttentionMask(True)).name == "quick"
    assert type(select_attention("auto", cuda, torch.bfloat16, 128)) is SdpaAttention
    assert type(select_attention("auto", cuda, torch.bfloat16, 128, 1)) is SdpaAttention
    assert type(select_attention("auto", torch.device("cpu"), torch.bfloat16, 128, 4)) is (
        SdpaAttention
    )


def test_without_a_measurement_auto_takes_what_torch_has_built_in(monkeypatch):
    monkeypatch.setattr(Gpu, "of", lambda device: GPU)
    monkeypatch.setattr(select, "read_table", tuple)
    kinds = {name: kind for name, kind in BACKENDS.items() if name != "packed_cpu"}
    for kind in kinds.values():
        monkeypatch.setattr(kind, "why_not", classmethod(lambda cls, *arguments: None))
    monkeypatch.setattr(BACKENDS["packed_cpu"], "why_not", classmethod(lambda *a: "needs a CPU"))
    chosen = select_attention("auto", torch.device("cuda"), torch.bfloat16, 128, 4)
    assert chosen.name == "torch_varlen"


def test_the_table_of_the_package_names_backends_results_and_commits():
    root = Path(__file__).resolve().parents[2]
    for entry in read_table():
        assert set(entry.backends) <= set(BACKENDS)
        assert (root / entry.result).is_file()
        assert len(entry.commit) >= 7


# --- the tool that makes the table ----------------------------------------------------------------


def entry(backend, length, *ms, **change):
    given = {
        "op": "attention",
        "backend": backend,
        "head_dim": 128,
        "heads": 32,
        "kv_heads": 8,
        "mask": "causal",
        "length": length,
        "dtype": "bfloat16",
        "status": "ok",
        "ms": list(ms),
    }
    return {**given, **change}


RESULT = {
    "gpu": GPU.name,
    "compute_capability": [9, 0],
    "commit": "0123456789abcdef",
    "dirty": False,
    "results": [
        entry("torch_varlen", 16, 3.0, 3.0, 3.0),
        entry("packed_triton", 16, 1.0, 9.0, 1.1),
        entry("sdpa", 16, 2.0, 2.0, 2.0),
        entry("torch_varlen", 64, 1.0),
        entry("packed_triton", 64, 2.0),
        {**entry("flash_attn_3", 64), "status": "unusable", "ms": []},
        {"op": "add_rms_norm", "provider": "ours", "ms": [1.0]},
        entry("packed_triton", 16, 1.0, heads=12, kv_heads=12, mask="bidirectional"),
    ],
}


def run_tool(result, table):
    command = [sys.executable, str(TOOL), str(result), "--table", str(table)]
    return subprocess.run(command, capture_output=True, text=True, check=False)


def write(path, content):
    path.write_text(json.dumps(content), encoding="utf-8")
    return path


def test_the_tool_ranks_backends_by_their_median_at_each_length(tmp_path):
    table = tmp_path / "table.json"
    done = run_tool(write(tmp_path / "imaginary.json", RESULT), table)
    assert done.returncode == 0, done.stderr
    common = {"result": "imaginary.json", "commit": "0123456789abcdef"}
    assert read_table(table) == (
        measurement(16, "packed_triton", group=1, mask="bidirectional", **common),
        measurement(40, "packed_triton", "sdpa", "torch_varlen", **common),
        measurement(64, "torch_varlen", "packed_triton", **common),
    )
    assert "up to 40: packed_triton, sdpa, torch_varlen" in done.stdout


def test_the_tool_replaces_what_was_measured_again_and_keeps_the_rest(tmp_path):
    table = tmp_path / "table.json"
    old = [
        measurement(500, "slow"),
        measurement(500, "slow", head_dim=64),
        measurement(500, "slow", gpu="Another GPU"),
    ]
    write(table, {"entries": [vars(e) for e in old]})
    assert run_tool(write(tmp_path / "imaginary.json", RESULT), table).returncode == 0
    found = read_table(table)
    assert old[0] not in found
    assert old[1] in found
    assert old[2] in found
    assert len(found) == 5


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"gpu": None}, "was not measured on a GPU"),
        ({"dirty": True}, "measured from files that are no commit's"),
        ({"commit": "unknown"}, "measured from files that are no commit's"),
    ],
)
def test_the_tool_refuses_what_nobody_could_measure_again(tmp_path, change, message):
    table = tmp_path / "table.json"
    done = run_tool(write(tmp_path / "imaginary.json", {**RESULT, **change}), table)
    assert done.returncode == 1
    assert message in done.stderr
    assert not table.exists()


def test_the_tool_takes_an_unchanged_copy_of_a_commit(tmp_path):
    root = TOOL.parents[1]
    stored = sorted(root.glob("benchmarks/results/*-f38528f/attention.json"))
    known = ["git", "-C", str(root), "cat-file", "-e", "f38528f"]
    if not stored or subprocess.run(known, check=False, capture_output=True).returncode:
        pytest.skip("the history of the repository is not here")
    assert json.loads(stored[0].read_text())["dirty"]
    done = run_tool(stored[0], tmp_path / "table.json")
    assert done.returncode == 0, done.stderr


def test_the_table_stands_beside_the_code_that_reads_it():
    assert Path(measured.__file__).parent == TABLE.parent
    assert TABLE.is_file()
