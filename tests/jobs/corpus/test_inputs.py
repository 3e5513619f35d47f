"""Files are found in an order that does not change, and known again."""

from __future__ import annotations

import os

import fsspec
import pytest

from c2v_engine.errors import InputError
from c2v_engine.jobs.corpus.source import inputs
from c2v_engine.jobs.corpus.source.finding import find_names, format_of
from c2v_engine.jobs.corpus.source.inputs import check_unchanged, find_inputs


@pytest.fixture
def memory():
    system = fsspec.filesystem("memory")
    system.store.clear()
    system.pseudo_dirs.clear()
    yield system
    system.store.clear()


def refusal(*sources):
    with pytest.raises(InputError) as caught:
        find_inputs([str(source) for source in sources])
    message = str(caught.value)
    assert "\n" not in message
    return message


def touch(folder, *names):
    for name in names:
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("x\n")


def names(folder, *sources):
    return [os.path.relpath(name, folder) for name in find_names([str(s) for s in sources])]


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("a.txt", ("txt", None)),
        ("A.JSONL.GZ", ("jsonl", "gzip")),
        ("x.y.csv.bz2", ("csv", "bz2")),
        ("d/e.feather", ("arrow", None)),
        ("e.ipc.lz4", ("arrow", "lz4")),
        ("s3://bucket/e.parquet.zst", ("parquet", "zstd")),
        ("zip://in/a.csv::https://x.org/all.zip", ("csv", None)),
        ("simplecache::s3://bucket/a.jsonl", ("jsonl", None)),
        ("https://x.org/a.txt?download=1.zip", ("txt", None)),
    ],
)
def test_a_name_says_format_and_compression(name, expected):
    assert format_of(name) == expected


@pytest.mark.parametrize("name", ["a", "a.gz", "a.json", ".txt", "a.txt.zip", "txt"])
def test_unknown_extensions_are_refused_with_the_known_ones(name):
    with pytest.raises(InputError, match=r"no known extension; known are \.txt, .*\.lz4"):
        format_of(name)


def test_folders_are_taken_whole_and_in_order(tmp_path):
    touch(tmp_path, "b.txt", "a/z.jsonl", "a/a.csv.gz", "a.txt", "c/.hidden/x.txt", "_SUCCESS.txt")
    touch(tmp_path, "a/_temporary/x.txt", "notes.md", ".x.txt", "c/deep/er/y.parquet")
    found = ["a.txt", "a/a.csv.gz", "a/z.jsonl", "b.txt", "c/deep/er/y.parquet"]
    assert names(tmp_path, tmp_path) == found


def test_links_to_folders_are_followed_once(tmp_path):
    touch(tmp_path, "in/a.txt", "elsewhere/b.txt")
    (tmp_path / "in/link").symlink_to(tmp_path / "elsewhere")
    (tmp_path / "in/loop").symlink_to(tmp_path / "in")
    assert names(tmp_path, tmp_path / "in") == ["in/a.txt", "in/link/b.txt"]


def test_sources_keep_their_order_and_globs_are_sorted(tmp_path):
    touch(tmp_path, "3.txt", "1.txt", "2.txt", "sub/4.txt", "sub/x.md")
    found = names(tmp_path, tmp_path / "sub", tmp_path / "[12].txt", tmp_path / "3.txt")
    assert found == ["sub/4.txt", "1.txt", "2.txt", "3.txt"]
    assert names(tmp_path, tmp_path / "**/*.txt") == ["1.txt", "2.txt", "3.txt", "sub/4.txt"]
    assert names(tmp_path, tmp_path / "s*") == ["sub/4.txt"]
    touch(tmp_path, "_a.txt", "_b/c.txt")
    assert names(tmp_path, tmp_path / "*") == ["1.txt", "2.txt", "3.txt", "sub/4.txt"]
    assert names(tmp_path, tmp_path / "_*") == ["_a.txt", "_b/c.txt"]
    assert names(tmp_path, tmp_path / "_b/*") == ["_b/c.txt"]
    below = ["1.txt", "2.txt", "3.txt", "sub/4.txt"]
    assert names(tmp_path, tmp_path / "**/*.txt") == below
    assert names(tmp_path, tmp_path / "**/_*") == ["_a.txt", "_b/c.txt"]


def test_what_the_job_writes_below_its_input_is_no_input(tmp_path):
    touch(tmp_path, "a.parquet", "out/part-000000.parquet", "outer/b.parquet")
    for source in (tmp_path, tmp_path / "**/*.parquet"):
        found = find_names([str(source)], tmp_path / "out")
        assert found == [str(tmp_path / "a.parquet"), str(tmp_path / "outer/b.parquet")]


def test_names_with_glob_characters_are_files_where_they_exist(tmp_path):
    touch(tmp_path, "a[1].txt", "a1.txt")
    assert names(tmp_path, tmp_path / "a[1].txt") == ["a[1].txt"]


def test_a_file_meant_twice_is_refused(tmp_path):
    touch(tmp_path, "a.txt", "b.txt")
    (tmp_path / "c.txt").symlink_to("a.txt")
    assert refusal(tmp_path, tmp_path / "b.txt") == f"{tmp_path}/c.txt: is given twice"
    (tmp_path / "c.txt").unlink()
    assert refusal(tmp_path, f"file://{tmp_path}/b.txt").endswith("b.txt: is given twice")


def test_what_is_not_there_is_refused(tmp_path):
    touch(tmp_path, "docs/readme.md")
    os.mkfifo(tmp_path / "pipe.txt")
    assert refusal(tmp_path / "no.txt") == f"{tmp_path}/no.txt: no such file"
    assert "matches no file of a known format" in refusal(tmp_path / "*.csv")
    assert "holds no file of a known format" in refusal(tmp_path / "docs")
    assert "is not a regular file" in refusal(tmp_path / "pipe.txt")
    assert refusal() == "no input was given"


@pytest.mark.skipif(os.getuid() == 0, reason="root may read everything")
def test_a_folder_that_can_not_be_listed_is_not_passed_over(tmp_path):
    touch(tmp_path, "a.txt", "closed/b.txt")
    (tmp_path / "closed").chmod(0)
    assert "closed: can not be listed" in refusal(tmp_path)


def test_urls_are_listed_and_read_like_paths(memory):
    for name in ("/c/b.txt", "/c/a/x.jsonl.gz", "/c/_tmp/y.txt", "/c/.z.txt", "/c/no.md", "/d.txt"):
        memory.pipe(name, b"bytes of " + name.encode())
    assert find_names(["memory://c"]) == ["memory:///c/a/x.jsonl.gz", "memory:///c/b.txt"]
    assert find_names(["memory://c/*.txt"]) == ["memory:///c/b.txt"]
    assert find_names(["memory://c/*"]) == ["memory:///c/a/x.jsonl.gz", "memory:///c/b.txt"]
    assert find_names(["memory://c/**/*.txt"]) == ["memory:///c/b.txt"]
    file = find_inputs(["memory://d.txt"])[0]
    assert (file.name, file.size) == ("memory://d.txt", 15)
    with file.open() as opened:
        assert opened.read() == b"bytes of /d.txt"
    assert refusal("memory://nothing.txt") == "memory://nothing.txt: no such file"
    assert "matches no file of a known format" in refusal("memory://c/*.csv")
    assert "is given twice" in refusal("memory://d.txt", "memory:///d.txt")


@pytest.mark.parametrize("url", ["nosuch://bucket/a.txt", "zip://a.txt::memory://no.zip"])
def test_urls_that_can_not_be_opened_give_one_line(memory, url):
    assert refusal(url).startswith(f"{url}: ")


def test_a_missing_protocol_package_is_named():
    fsspec.register_implementation(
        "blob", "no_such_module_at_all.FS", clobber=True, errtxt="Install blobfs to access blobs"
    )
    assert refusal("blob://b/a.txt") == "blob://b/a.txt: Install blobfs to access blobs"


def change(path, data):
    """Change a file so that its time changes too, however coarse the clock is."""
    before = path.stat().st_mtime_ns
    path.write_bytes(data)
    os.utime(path, ns=(before + 10**9, before + 10**9))


def test_a_file_is_known_again_by_its_bytes(tmp_path):
    path = tmp_path / "a.txt"
    data = bytearray(os.urandom(300_000))
    path.write_bytes(data)
    files = find_inputs([str(path)])
    check_unchanged(files)
    change(path, data)
    check_unchanged(files)  # only the time differs
    for place in (0, 150_000, 299_999):
        other = data.copy()
        other[place] ^= 1
        change(path, other)
        with pytest.raises(InputError, match="its bytes are not those that the job began with"):
            check_unchanged(files)
    change(path, data + b"!")
    with pytest.raises(InputError, match="has 300,001 bytes, and had 300,000"):
        check_unchanged(files)
    path.unlink()
    with pytest.raises(InputError, match=r"a\.txt: no such file \(the job began with it\)"):
        check_unchanged(files)


def test_a_file_that_was_not_touched_is_not_read(tmp_path, monkeypatch):
    touch(tmp_path, "a.txt")
    files = find_inputs([str(tmp_path / "a.txt")])
    monkeypatch.setattr(inputs, "_digest", lambda *_: pytest.fail("it was read"))
    check_unchanged(files)


def test_large_files_are_sampled_from_first_to_last_byte(tmp_path):
    path = tmp_path / "a.txt"
    with path.open("wb") as file:
        file.truncate(100_000_000)
    files = find_inputs([str(path)])
    for place in (0, 99_999_999):
        with path.open("r+b") as file:
            file.seek(place)
            file.write(b"x")
        with pytest.raises(InputError, match="its bytes are not"):
            check_unchanged(files)
        with path.open("r+b") as file:
            file.seek(place)
            file.write(b"\0")


def test_a_changed_url_is_noticed(memory):
    memory.pipe("/a.txt", b"one\n")
    files = find_inputs(["memory://a.txt"])
    check_unchanged(files)
    memory.pipe("/a.txt", b"two\n")
    with pytest.raises(InputError, match="its bytes are not"):
        check_unchanged(files)
    memory.rm("/a.txt")
    with pytest.raises(InputError, match="no such file"):
        check_unchanged(files)
