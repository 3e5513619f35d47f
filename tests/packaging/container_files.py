"""Reads a Dockerfile and a .dockerignore as Docker does, as far as ours go."""

from __future__ import annotations

import json
import re
import shlex
from dataclasses import dataclass, field
from pathlib import PurePosixPath


@dataclass
class Stage:
    """What a FROM begins.

    Attributes:
        base: the image or stage it stands on, its arguments put in.
        instructions: (name, rest of the line) in order, FROM left out.
    """

    base: str
    instructions: list[tuple[str, str]] = field(default_factory=list)

    def all(self, name):
        return [rest for one, rest in self.instructions if one == name]

    def last(self, name):
        return self.all(name)[-1]

    def list(self, name):
        """The last instruction of the name, of those that are written as JSON."""
        return json.loads(self.last(name))

    def copies(self):
        """(stage it comes from or None, sources, target) of each COPY."""
        for rest in self.all("COPY"):
            words = shlex.split(rest)
            options = [word for word in words if word.startswith("--")]
            assert all(option.startswith("--from=") for option in options), rest
            *sources, target = words[len(options) :]
            yield (options[0].removeprefix("--from=") if options else None), sources, target


def read_dockerfile(text):
    """(the ARGs before the first FROM, the stages by name)."""
    lines = [line for line in text.splitlines() if not line.lstrip().startswith("#")]
    arguments, stages, stage = {}, {}, None
    for line in re.sub(r"\\\n", " ", "\n".join(lines)).splitlines():
        if not line.strip():
            continue
        name, rest = line.split(maxsplit=1)
        if name == "FROM":
            base, _, called = rest.partition(" AS ")
            stage = stages[called] = Stage(re.sub(r"\$\{(\w+)\}", lambda m: arguments[m[1]], base))
        elif stage is None:
            assert name == "ARG", line
            key, _, value = rest.partition("=")
            arguments[key] = value
        else:
            stage.instructions.append((name, rest))
    return arguments, stages


def is_ignored(path, dockerignore):
    """Whether the path stays out of the build; the last pattern that fits decides."""
    path = PurePosixPath(path)
    names = [path.as_posix(), *(parent.as_posix() for parent in path.parents)]
    ignored = False
    for line in dockerignore.splitlines():
        pattern = line.strip()
        if pattern and not pattern.startswith("#"):
            expression = _expression(pattern.removeprefix("!"))
            if any(re.fullmatch(expression, name) for name in names):
                ignored = not pattern.startswith("!")
    return ignored


def _expression(pattern):
    parts = re.split(r"(\*\*/|\*\*|\*|\?)", pattern.strip("/"))
    known = {"**/": "(?:.*/)?", "**": ".*", "*": "[^/]*", "?": "[^/]"}
    return "".join(known.get(part, re.escape(part)) for part in parts)
