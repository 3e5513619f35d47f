"""Pictures and the page of a result."""

import copy
import errno
import re
import shutil
import sys
from pathlib import Path

import pytest
from made_results import content, entry, method
from matplotlib.colors import to_rgba
from matplotlib.figure import Figure
from PIL import Image

from c2v_engine.bench.report.page import NO_PICTURES, write_report
from c2v_engine.bench.report.plots import (
    PICTURES,
    draw_methods,
    draw_peers,
    draw_roofline,
    draw_stages,
    draw_throughput,
    picture_source,
    results_digest,
)
from c2v_engine.bench.report.read import Results
from c2v_engine.bench.report.style import COLOURS, looks

CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "google-chrome"))), None)
STAGES = {
    "texts": 10,
    "decoder_tokens": 1280,
    "wall_s": 2.0,
    "device_s": None,
    "stages": [
        {"name": "decoder.down", "count": 1, "host_s": 1.5, "device_s": None, "operations": 1e11},
        {"name": "tokenise", "count": 1, "host_s": 0.5, "device_s": None, "operations": None},
    ],
}
MODELS = {"m": {"parameters": {"decoder": 1000, "encoder": 0}, "weight_bytes": 2e9}}


def bench(**fields):
    at = {"case": "m/128/bfloat16"}
    more = {"case": "m/passages/bfloat16"}
    return Results(
        content(
            entry(**at, stages=copy.deepcopy(STAGES)),
            entry("padded bfloat16", (6.0, 4.0, 8.0), cosine_min=0.9999, **at),
            entry(**more),
            entry("llama.cpp bfloat16", (4.0, 3.0, 8.0), **more),
            {**at, "model": "m", "provider": "<b>vllm", "status": "unusable", "reason": "a < b"},
            models=MODELS,
            **fields,
        )
    )


def methods():
    found = [
        method(name, length, rows * length, rows * length / 10)
        for length in (16, 64)
        for name, rows in (("causal2vec", 1), ("last-token", 1), ("echo", 2))
    ]
    return Results(content(*found, kind="methods"))


def labels(figure):
    """All words of a figure."""
    words = [text.get_text() for text in figure.texts]
    for axes in figure.axes:
        words += [axes.get_title(), axes.get_xlabel(), axes.get_ylabel()]
        words += [text.get_text() for text in axes.texts]
        words += [tick.get_text() for tick in (*axes.get_xticklabels(), *axes.get_yticklabels())]
        legend = axes.get_legend()
        words += [] if legend is None else [text.get_text() for text in legend.get_texts()]
    return words


def test_the_stages_are_bars_in_milliseconds():
    figure = draw_stages(bench())
    (axes,) = figure.axes
    assert [bar.get_width() for bar in axes.patches] == [500.0, 1500.0]
    assert "decoder.down" in labels(figure)


def test_stages_that_are_no_bars_are_left_out_and_counted():
    results = bench()
    stages = results.timed[0]["stages"]["stages"]
    stages.append({**stages[0], "name": "pool", "host_s": 1e-4})
    figure = draw_stages(results)
    assert "pool" not in labels(figure)
    assert any("stages under 0.1% left out: 1" in word for word in labels(figure))


def test_waiting_for_a_device_is_no_stage():
    results = bench()
    profile = results.timed[0]["stages"]
    profile["device_s"] = 2.0
    for stage, device in zip(profile["stages"], (1.9, 0.0), strict=True):
        stage["device_s"] = device
    profile["stages"].append({**profile["stages"][1], "name": "(no stage)", "host_s": 1.8})
    figure = draw_stages(results)
    (axes,) = figure.axes
    assert [bar.get_width() for bar in axes.patches] == [0.0, 1900.0, 500.0, 1500.0]
    assert {"device", "host", "tokenise"} <= set(labels(figure))
    assert "(no stage)" not in labels(figure)


def test_the_roofline_of_a_gpu_is_in_tflops_without_exponents():
    results = bench(ceilings={"copy_gb_per_s": 2000.0, "gemm_tflops": 800.0, "dtype": "bfloat16"})
    figure = draw_roofline(results)
    figure.draw_without_rendering()
    assert figure.axes[0].get_ylabel() == "useful TFLOP/s"
    assert max(figure.axes[0].lines[0].get_ydata()) == 800.0
    assert not any("e+" in word for word in labels(figure))


def test_a_provider_looks_the_same_in_every_picture_and_no_two_alike():
    kinds = ["padded", "engine", *(f"peer{number}" for number in range(12))]
    entries = [entry(f"{kind} bfloat16", case="m/128/bfloat16") for kind in kinds]
    other = entry("llama.cpp q8_0", case="m/128/bfloat16")
    late = entry("peer3 bfloat16", case="n/128/bfloat16", model="n")
    results = Results(content(*entries, other, late, models=MODELS))
    found = looks(results)
    assert found["engine"] == (COLOURS[0], "o")
    assert len(set(found.values())) == len(kinds) + 1
    alone = draw_throughput(results).axes[1].lines[0]
    assert (alone.get_color(), alone.get_marker()) == found["peer3"]
    (peers,) = draw_peers(results).axes
    assert peers.patches[0].get_facecolor() == to_rgba(found["padded"].colour)


def test_the_roofline_has_every_provider_under_the_ceiling():
    figure = draw_roofline(bench())
    (axes,) = figure.axes
    roof = axes.lines[0].get_ydata()
    assert max(roof) == 1000.0  # GFLOP/s, the better of the two
    points = [point for dots in axes.collections for point in dots.get_offsets()]
    # 1e12 operations of a call that reads 2e9 bytes.
    assert [(float(x), float(y)) for x, y in points] == [
        (500.0, 500.0),
        (500.0, 500.0),
        (500.0, pytest.approx(1000 / 6)),
        (500.0, 250.0),
    ]
    assert {"engine bfloat16", "padded bfloat16", "llama.cpp bfloat16"} <= set(labels(figure))


def test_the_roofline_names_variants_and_says_why_a_point_is_above_it():
    at = {"case": "m/18/prompt 32", "prompt_tokens": 32}
    ours = entry(seconds=(0.5,), **at)
    plain = entry("engine bfloat16 unshared", (2.0,), **at)
    figure = draw_roofline(Results(content(ours, plain, models=MODELS)))
    (axes,) = figure.axes
    assert {"engine bfloat16", "engine bfloat16 unshared"} <= set(labels(figure))
    colours = {tuple(dots.get_edgecolor()[0]) for dots in axes.collections}
    assert len(colours) == 2
    assert [text.xy for text in axes.texts] == [(500.0, 2000.0)]
    assert "a shared prompt" in axes.texts[0].get_text()


def test_throughput_is_joined_by_lines_only_over_lengths():
    figure = draw_throughput(bench())
    (axes,) = figure.axes
    assert axes.get_title() == "m, bfloat16"
    ours, joined, *_ = axes.lines
    assert list(ours.get_ydata()) == [640.0, 640.0]
    assert list(joined.get_ydata()) == [640.0]
    assert {"128", "passages"} <= set(labels(figure))


def test_peers_are_bars_of_how_many_times_as_fast_the_engine_is():
    figure = draw_peers(bench())
    (axes,) = figure.axes
    assert [bar.get_width() for bar in axes.patches] == [3.0, 2.0]
    assert any("3.0  padded" in word for word in labels(figure))
    assert any("2.0  llama.cpp" in word for word in labels(figure))


def test_methods_are_lines_of_rows_and_of_time():
    figure = draw_methods(methods())
    rows, time = figure.axes
    assert [list(line.get_ydata()) for line in rows.lines] == [[16, 64], [16, 64], [32, 128]]
    assert list(time.lines[2].get_ydata()) == pytest.approx([3.2, 12.8])
    assert {"causal2vec", "last-token", "echo"} <= set(labels(figure))


def test_every_picture_says_where_it_was_measured_and_what_it_was_made_of(tmp_path):
    results = bench()
    page, *pictures = write_report(results, tmp_path)
    assert page.name == "report.html"
    assert [path.stem for path in pictures] == ["stages", "roofline", "throughput", "peers"]
    for path in pictures:
        assert picture_source(path) == results_digest(results.content)
        with Image.open(path) as picture:
            assert min(picture.size) > 300
            assert len(set(picture.convert("L").tobytes())) > 20
    for draw in PICTURES.values():
        figure = draw(results)
        if figure is not None:
            assert any("Some CPU" in word for word in labels(figure))
    changed = bench()
    changed.content["results"][0]["texts"] = 11
    assert results_digest(changed.content) != results_digest(results.content)


def test_a_file_of_methods_ends_with_their_picture(tmp_path):
    assert [path.name for path in write_report(methods(), tmp_path)] == [
        "report.html",
        "methods.png",
    ]


def test_nothing_that_was_timed_makes_a_page_without_pictures(tmp_path):
    failed = {
        "case": "m/128",
        "model": "m",
        "provider": "engine",
        "status": "failed",
        "reason": "w",
    }
    (page,) = write_report(Results(content(failed)), tmp_path)
    assert "failed: w" in page.read_text()


def test_the_page_needs_nothing_else_and_escapes_what_it_shows(tmp_path):
    page, *_ = write_report(bench(cut={"after_s": 1.0, "not_measured": ["m/512"]}), tmp_path)
    text = page.read_text(encoding="utf-8")
    assert not re.findall(r"""(?:src|href)=["'](?!data:)""", text)
    assert "http" not in re.sub(r"data:image/png;base64,[^\"]*", "", text)
    assert "<b>vllm" not in text
    assert "a &lt; b" in text
    assert "There was no time for: m/512" in text
    assert text.count("data:image/png;base64,") == 4
    assert "<td>2.00 (2.00 to 3.00)</td>" in text


def test_the_page_has_peers_stages_and_how_to_repeat_it(tmp_path):
    arguments = ["--model", "my model", "--dtype", "bfloat16"]
    page, *_ = write_report(bench(arguments=arguments, dirty=True), tmp_path)
    text = page.read_text(encoding="utf-8")
    assert "c2v bench --model &#x27;my model&#x27; --dtype bfloat16" in text
    assert "abcdef0 and changes to it" in text
    assert "<td>padded</td><td>3.00 (2.00 to 4.00)</td><td></td>" in text
    assert "<td>llama.cpp</td><td></td><td>2.00 (2.00 to 3.00)</td>" in text
    assert "Where the time goes: m/128/bfloat16, engine bfloat16" in text
    assert re.search(r"decoder.down +1 +1500.00 +75.0%", text)


def test_the_page_of_methods_says_what_its_words_mean(tmp_path):
    page, *_ = write_report(methods(), tmp_path)
    text = page.read_text(encoding="utf-8")
    assert "<td>echo</td><td>32.0</td><td>32.0</td><td>dearest</td><td>2.00 x</td>" in text
    assert "the plainest is last-token" in text


def test_without_matplotlib_the_page_says_how_to_get_pictures(tmp_path, monkeypatch):
    for name in [name for name in sys.modules if name.startswith("matplotlib")]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    (page,) = write_report(bench(), tmp_path)
    assert NO_PICTURES.replace("'", "&#x27;") in page.read_text()


@pytest.mark.skipif(CHROMIUM is None, reason="no Chromium is installed")
@pytest.mark.parametrize(("width", "scheme"), [(390, "dark"), (1280, "light")])
def test_the_page_fits_a_phone_and_a_desk(width, scheme, tmp_path):
    sync_api = pytest.importorskip("playwright.sync_api")
    page, *_ = write_report(bench(), tmp_path)
    with sync_api.sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        view = browser.new_page(viewport={"width": width, "height": 900})
        said = []
        view.emulate_media(color_scheme=scheme)
        view.on("console", lambda message: said.append(message.text))
        view.goto(page.as_uri())
        assert view.evaluate("document.documentElement.scrollWidth") <= width
        assert view.locator("img").count() == 4
        shown = view.evaluate("[...document.images].every(each => each.naturalWidth > 300)")
        cut = view.evaluate(
            "[...document.querySelectorAll('main > .scroll')]"
            ".filter(each => each.scrollWidth > each.clientWidth).length"
        )
        drawn = view.evaluate("Math.min(...[...document.images].map(each => each.width))")
        browser.close()
    assert shown
    assert cut == 0 or width == 390, "a table does not fit a desk"
    assert drawn > 600, "letters in a picture can not be read on a phone"
    assert said == []


def test_names_with_dollar_signs_are_no_formulas(tmp_path):
    at = {"case": r"a$\frac{$/128/bfloat16", "model": r"a$\frac{$"}
    found = Results(content(entry(**at), entry("padded bfloat16", (6.0, 4.0, 8.0), **at)))
    names = [path.name for path in write_report(found, tmp_path)]
    assert names == ["report.html", "throughput.png", "peers.png"]


def test_no_picture_of_former_results_stays(tmp_path):
    write_report(bench(), tmp_path)
    assert (tmp_path / "peers.png").is_file()
    paths = write_report(Results(content(entry())), tmp_path)
    assert sorted(tmp_path.iterdir()) == sorted(paths)
    assert not (tmp_path / "peers.png").exists()


@pytest.mark.parametrize("broken", ["peers.png", "report.html"])
def test_a_full_disk_is_told_with_the_file_and_leaves_no_part_of_it(broken, monkeypatch, tmp_path):
    def full(path):
        path.write_bytes(b"some")
        raise OSError(errno.ENOSPC, "No space left on device")

    for owner, name in ((Figure, "savefig"), (Path, "write_text")):
        former = getattr(owner, name)

        def write(*words, former=former, **options):
            path = next(word for word in words if isinstance(word, Path))
            return full(path) if path.name == broken else former(*words, **options)

        monkeypatch.setattr(owner, name, write)
    with pytest.raises(OSError, match="No space") as caught:
        write_report(bench(), tmp_path)
    assert caught.value.filename == str(tmp_path / broken)
    assert not (tmp_path / broken).exists()
