"""Takes a page's fenced blocks apart, runs them, and compares their output with the page."""

from __future__ import annotations

import contextlib
import io
import os
import re
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

ANY = "…"  # stands for whatever else is printed in that line


@dataclass(frozen=True)
class Block:
    """A fenced block.

    Attributes:
        line: of the page, where its text begins.
        language: that it names; empty for none.
        text: within.
        shown: the block without a language that follows with nothing between but blank lines; None.
    """

    line: int
    language: str
    text: str
    shown: str | None


def read_blocks(page):
    """Its fenced blocks in order, but for those that are shown as another's output."""
    found = re.finditer(r"^```(\w*)\n(.*?)^```\n", page, flags=re.MULTILINE | re.DOTALL)
    raw = [(match.start(), match.end(), match[1], match[2]) for match in found]
    blocks = []
    for (start, end, language, text), after in zip(raw, [*raw[1:], None], strict=True):
        follows = after is not None and not page[end : after[0]].strip() and not after[2]
        if language:
            line = page[:start].count("\n") + 2
            blocks.append(Block(line, language, text, after[3] if follows else None))
    return blocks


def commands_in(text, program):
    """The command lines of a shell block that begin with the program, settings before it left out.

    Lines that go on after a backslash are joined; comments and a final ``&`` are left out.
    """
    joined = re.sub(r"\s*\\\n\s*", " ", text)
    lines = (re.sub(r"(^|\s)#.*", "", line).rstrip(" &") for line in joined.splitlines())
    bare = (re.sub(r"^(?:[A-Z_]+=\S+ )+", "", line) for line in lines)
    return [line for line in bare if line.startswith(f"{program} ") or line == program]


def run_python(source, name, names=None):
    """Runs it; gives what it printed."""
    printed = io.StringIO()
    with contextlib.redirect_stdout(printed):
        exec(compile(source, name, "exec"), {"__name__": "__main__"} if names is None else names)
    return printed.getvalue()


def run_shell(source, folder):
    """Runs it in bash and in the folder; gives (exit code, standard output, standard error).

    curl is quiet, fails where the status says so, and ends an answer's line; c2v and python are
    those of this environment.
    """
    (folder / ".curlrc").write_text(
        'silent\nshow-error\nfail-with-body\nmax-time = 60\nwrite-out = "\\n"\n'
    )
    path = os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]])
    result = subprocess.run(
        ["bash", "-c", source],
        cwd=folder, capture_output=True, text=True, timeout=120,
        env={**os.environ, "CURL_HOME": str(folder), "PATH": path},
    )  # fmt: skip
    return result.returncode, result.stdout, result.stderr


def is_as_shown(printed, shown):
    """Whether it is line by line what the page shows, but for empty lines.

    A … stands for anything in its line.
    """
    lines = [".*".join(map(re.escape, line.split(ANY))) for line in shown.splitlines()]
    given = [line for line in printed.splitlines() if line]
    return re.fullmatch("\n".join(filter(None, lines)), "\n".join(given)) is not None
