"""Marks in Markdown, and what stands between them.

Within a line, a name and its arguments (see ``registry``):

    it does <!--f texts_per_s h100 mistral-7b/128-->333<!--/f--> texts/s

On lines of their own, around a block that is made whole:

    <!-- figures: costs -->

    | ... |

    <!-- /figures -->

Comments do not show in rendered Markdown. A line that begins with one is taken for HTML as it is,
so a figure never stands first in its line; that is refused. Fenced code holds no marks; a block
may hold fenced code.
"""

from __future__ import annotations

import re
from typing import NamedTuple

from figures_registry.registry import FigureError, make_figure, make_table

FENCE = re.compile(
    r"^(?P<fence_indent> *)(?P<fence>`{3,}).*?^(?P=fence_indent)(?P=fence)`*[ ]*$\n?", re.M | re.S
)
INLINE = re.compile(r"<!--f (?P<call>.*?)-->(?P<text>.*?)<!--/f-->", re.S)
BLOCK = re.compile(
    r"^(?P<indent> *)<!-- figures: (?P<name>\S+) -->\n(?P<text>.*?)^ *<!-- /figures -->$",
    re.M | re.S,
)
PIECES = re.compile(f"{BLOCK.pattern}|{FENCE.pattern}", re.M | re.S)
LINE_BEGINS = re.compile(r"[\s>*+-]*(\d+[.)]\s+)?")
LEFT_OVER = re.compile(r"<!--/?f\b|<!-- /?figures\b")


class Change(NamedTuple):
    """A mark whose text is not what its function makes.

    Attributes:
        line: of the page, from 1.
        mark: what it says.
        old: what stands there.
        new: what belongs there.
    """

    line: int
    mark: str
    old: str
    new: str

    def lines(self, page: str) -> list[str]:
        """As in a diff, the lines that differ alone.

        Args:
            page: its name.
        """
        old, new = self.old.splitlines(), self.new.splitlines()
        gone = [f"- {line}" for line in old if line not in new]
        come = [f"+ {line}" for line in new if line not in old]
        return [f"{page}:{self.line}: {self.mark}", *gone, *come]


def updated(page: str) -> tuple[str, list[Change]]:
    """The page with every mark filled in, and what that changed.

    Args:
        page: its text.

    Raises:
        FigureError: a mark is unknown, open, at a line's beginning, or without a result.
    """
    changes: list[Change] = []

    def fill(match: re.Match[str], mark: str, new: str) -> str:
        """The match with another text, which is recorded."""
        start, end = (place - match.start() for place in match.span("text"))
        line = page.count("\n", 0, page.find(match[0])) + 1
        changes.append(Change(line, mark, match["text"].strip("\n"), new.strip("\n")))
        return match[0][:start] + new + match[0][end:]

    def inline(match: re.Match[str]) -> str:
        call = match["call"]
        if LINE_BEGINS.fullmatch(match.string[: match.start()].rpartition("\n")[2]):
            raise FigureError(f"{call!r} stands first in its line; Markdown takes it for HTML")
        new = make_figure(call)
        # However its line is broken.
        same = match["text"].split() == new.split()
        return match[0] if same else fill(match, call, new)

    def block(match: re.Match[str]) -> str:
        lines = make_table(match["name"]).splitlines()
        new = "\n".join(["", *(f"{match['indent']}{line}".rstrip() for line in lines), "", ""])
        return match[0] if match["text"] == new else fill(match, match["name"], new)

    def prose(text: str) -> str:
        left = LEFT_OVER.search(INLINE.sub("", text))
        if left:
            raise FigureError(f"{left[0]!r} opens or closes nothing")
        return INLINE.sub(inline, text)

    new, end = "", 0
    for piece in PIECES.finditer(page):
        made = piece[0] if piece["name"] is None else block(piece)
        new += prose(page[end : piece.start()]) + made
        end = piece.end()
    return new + prose(page[end:]), changes


def hidden(page: str) -> str:
    """The page with fenced code and what marks hold replaced by as many NUL characters.

    Lines stay where they are. Fences that name no language show output, and stay.

    Args:
        page: its text.
    """

    def hide(match: re.Match[str]) -> str:
        return re.sub(r"[^\n]", "\0", match[0])

    def hide_piece(match: re.Match[str]) -> str:
        shows_output = match[0].split("\n", 1)[0].strip() == match["fence"]
        return match[0] if shows_output else hide(match)

    return INLINE.sub(hide, PIECES.sub(hide_piece, page))
