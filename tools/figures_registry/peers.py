"""The peers on the same model, and the methods on the same decoder, as ``c2v bench`` measured them.

For README.md and docs/benchmarks.md.
"""

from __future__ import annotations

import statistics

from figures_registry.formats import markdown_table, rounded
from figures_registry.registry import figure, table
from figures_registry.results import Content, commit, read, setting

PEERS, METHODS = "peers-cpu/results.json", "methods-cpu/results.json"
RIVALS = ("sentence-transformers", "padded", "llama.cpp")
RIVAL_NAMES = ("sentence-transformers", "transformers, padded", "llama.cpp")
LLAMA_CPP_DTYPES = {"int8": "q8_0"}
DEAREST, PLAINEST, OURS = "in-context", "last-token", "causal2vec"


def ok(content: Content, case: str, provider: str) -> Content | None:
    """An entry that was timed, or None."""
    for entry in content["results"]:
        if (entry["case"], entry["provider"], entry["status"]) == (case, provider, "ok"):
            return dict(entry)
    return None


def ceiling(content: Content, dtype: str) -> float:
    """Of the matrix product in a dtype, the better of before and after."""
    parts = (content[key] for key in ("ceilings", "ceilings_at_end") if key in content)
    return max(float(part["gemm_tflops"][dtype]) for part in parts)


def against(ours: Content, theirs: Content | None) -> str:
    """How many times as long theirs takes, with the range of the repetitions."""
    if theirs is None:
        return ""
    found = [slow / fast for fast, slow in zip(ours["seconds"], theirs["seconds"], strict=False)]
    return f"{statistics.median(found):.2f} ({min(found):.2f} to {max(found):.2f})"


def peer_rows(content: Content) -> list[tuple[str, ...]]:
    """A row for each model, workload and dtype."""
    rows = []
    for entry in content["results"]:
        kind, _, dtype = entry["provider"].partition(" ")
        if kind != "engine" or entry["status"] != "ok":
            continue
        of_gemm = (
            ""
            if dtype not in content["dtypes"]
            else (f"{entry['tflops'] / ceiling(content, dtype):.0%}")
        )
        rivals = [ok(content, entry["case"], f"{name} {dtype_of(name, dtype)}") for name in RIVALS]
        model, workload, _ = entry["case"].split("/")
        rows.append(
            (
                model,
                workload,
                dtype,
                rounded(entry["tokens_per_s"]),
                of_gemm,
                *(against(entry, rival) for rival in rivals),
            )
        )
    return rows


def dtype_of(rival: str, dtype: str) -> str:
    """In which dtype a rival is of the same class of precision."""
    return LLAMA_CPP_DTYPES.get(dtype, dtype) if rival == "llama.cpp" else dtype


def case_dtype(dtype: str) -> str:
    """The dtype whose cases a provider takes part in."""
    return dtype if dtype in read(PEERS)["dtypes"] else str(read(PEERS)["dtypes"][0])


@table
def peers_cpu() -> str:
    """Every model, workload and dtype: the engine, and how many times as fast as each peer."""
    head = ("model", "texts", "dtype", "tokens/s", "of GEMM")
    rivals = (f"times {name}" for name in RIVAL_NAMES)
    return markdown_table((*head, *rivals), peer_rows(read(PEERS)))


@table
def peers_cpu_passages() -> str:
    """The same of texts of log-normal length, for README."""
    head = ("model", "dtype", "tokens/s", "of GEMM")
    rows = [(row[0], *row[2:]) for row in peer_rows(read(PEERS)) if row[1] == "passages"]
    return markdown_table((*head, *(f"times {name}" for name in RIVAL_NAMES)), rows)


@figure
def peers_setting() -> str:
    """Machine, releases and commit of the peers' run."""
    content = read(PEERS)
    return f"{setting(content)}, commit {commit(content)}"


@figure
def times_peer(model: str, workload: str, dtype: str, rival: str, digits: str = "1") -> str:
    """How many times as fast as a peer the engine is: the median of the repetitions' ratios."""
    content = read(PEERS)
    case = f"{model}/{workload}/{case_dtype(dtype)}"
    ours = ok(content, case, f"engine {dtype}")
    theirs = ok(content, case, f"{rival} {dtype_of(rival, dtype)}")
    if ours is None or theirs is None:
        raise LookupError(f"{PEERS} has not timed engine and {rival} in {dtype} at {case}")
    found = [slow / fast for fast, slow in zip(ours["seconds"], theirs["seconds"], strict=False)]
    return f"{statistics.median(found):.{digits}f}"


@figure
def peer_of_gemm(model: str, workload: str, dtype: str, provider: str = "engine") -> str:
    """A provider's useful operations as a fraction of the matrix product's, in its dtype."""
    content = read(PEERS)
    entry = ok(content, f"{model}/{workload}/{case_dtype(dtype)}", f"{provider} {dtype}")
    if entry is None:
        raise LookupError(f"{PEERS} has not timed {provider} {dtype} at {model}/{workload}")
    return f"{entry['tflops'] / ceiling(content, dtype):.0%}"


def method_entries(shape: str) -> dict[tuple[str, int], Content]:
    """Entries by method and length."""
    return {
        (entry["method"], entry["text_tokens"]): entry
        for entry in read(METHODS)["results"]
        if entry["model"] == shape and entry["status"] == "ok"
    }


def rows_per_text(entry: Content) -> float:
    """Rows of the decoder that are computed for a text; not those of a prompt that all share."""
    key = "computed_tokens" if "computed_tokens" in entry else "decoder_tokens"
    return float(entry[key]) / float(entry["texts"])


def ms_per_text(entry: Content) -> float:
    """Milliseconds, the median."""
    return 1e3 * float(entry["median_s"]) / float(entry["texts"])


def methods_table(shape: str) -> str:
    """Rows and milliseconds of a text for each method and length, each with what it is of ours."""
    entries = method_entries(shape)
    lengths = sorted({length for _, length in entries})
    methods = list(dict.fromkeys(method for method, _ in entries))
    rows = []
    for method in methods:
        cells = []
        for length in lengths:
            entry = entries[method, length]
            cells.append(f"{rows_per_text(entry):.0f} / {rounded(ms_per_text(entry))}")
        rows.append((method, *cells))
    return markdown_table(("method", *(f"{length} tokens" for length in lengths)), rows)


def relative_table(shape: str) -> str:
    """Time of a text over that of the dearest and over that of the plainest method."""
    entries = method_entries(shape)
    lengths = sorted({length for _, length in entries})
    methods = list(dict.fromkeys(method for method, _ in entries))
    rows = []
    for method in methods:
        cells = []
        for length in lengths:
            spent = ms_per_text(entries[method, length])
            dearest = max(ms_per_text(entries[other, length]) for other in methods)
            plainest = ms_per_text(entries[PLAINEST, length])
            cells.append(f"{spent / dearest:.0%} / {spent / plainest:.2f}")
        rows.append((method, *cells))
    return markdown_table(("method", *(f"{length} tokens" for length in lengths)), rows)


@table
def methods_cpu() -> str:
    """Rows and time of every method, decoder of 130 M."""
    return methods_table("llama-130m")


@table
def methods_cpu_relative() -> str:
    """Time relative to the dearest and to the plainest method."""
    return relative_table("llama-130m")


@figure
def methods_setting() -> str:
    """Machine, releases and commit of the methods' run."""
    content = read(METHODS)
    return f"{setting(content)}, commit {commit(content)}"


@figure
def method_saves(shape: str, length: str, what: str = "time", than: str = DEAREST) -> str:
    """How much less a text costs by Causal2Vec than by another method, in ``time`` or ``rows``."""
    entries = method_entries(shape)
    cost = {"time": ms_per_text, "rows": rows_per_text}[what]
    ours, theirs = (cost(entries[name, int(length)]) for name in (OURS, than))
    return f"{1 - ours / theirs:.0%}"


@figure
def method_times(shape: str, length: str, method: str, than: str = PLAINEST) -> str:
    """Time of a text by one method over that by another."""
    entries = method_entries(shape)
    ours, theirs = (ms_per_text(entries[name, int(length)]) for name in (method, than))
    return f"{ours / theirs:.2f}"
