"""The model that made an index, by a name under which it is found again."""

from __future__ import annotations

import os
from typing import Any

from c2v_engine.errors import InputError

# The name that the engine gives the model in the package.
PACKAGED = "default"


def stored_name(about: dict[str, Any]) -> str | None:
    """The name of a model to keep in a file.

    Args:
        about: as ``Causal2Vec.info`` gives it.

    Returns:
        The absolute path of a local folder, else the name as it was given; None for the model that
        comes with the package, whose place is another on every machine.
    """
    name, folder = str(about["model"]), about.get("directory")
    if os.path.isdir(name) and (folder is None or os.path.samefile(name, folder)):
        return os.path.abspath(name)
    return None if name == PACKAGED else name


def check_maker(path: str | os.PathLike[str], made: dict[str, Any], asked: dict[str, Any]) -> None:
    """Check that questions are embedded by the model that made an index.

    Args:
        path: the index, for messages.
        made: what it says of its model; one that says nothing is taken as it is.
        asked: what ``Causal2Vec.info`` says of the questions' model: ``model``, ``directory`` and
            ``fingerprint``.

    Raises:
        InputError: another model made it.
    """
    of_index, of_question = made.get("fingerprint"), asked.get("fingerprint")
    if None in (of_index, of_question) or of_index == of_question:
        return
    maker, other = made.get("model"), stored_name(asked)
    was_made = f"{path}: was made by {_words(maker)} (fingerprint {of_index})"
    if maker == other:
        release = " with this release" if maker is None else ""
        raise InputError(
            f"{was_made}, which is another now ({of_question}): embed again{release}, or pass "
            "--force"
        )
    way = "leave --model out" if maker is None else f"give --model {maker}"
    raise InputError(
        f"{was_made}, the questions would be embedded by {_words(other)} ({of_question}): {way}, "
        "or pass --force"
    )


def _words(name: str | None) -> str:
    return "the default model" if name is None else f"the model {name!r}"
