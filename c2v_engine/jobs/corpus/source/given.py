"""The files that a command names, against those of the job in the output folder."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

from c2v_engine.errors import InputError
from c2v_engine.jobs.corpus.folder.layout import is_own
from c2v_engine.jobs.corpus.source.finding import is_url
from c2v_engine.jobs.corpus.source.inputs import InputFile


def check_given(files: Sequence[InputFile], given: Sequence[str], folder: Path) -> None:
    """See that a job is given the files that it began with, in the same order.

    Args:
        files: of the job.
        given: names of files.
        folder: the job's, for messages.

    Raises:
        InputError: one is missing, is one too many, goes by another name, or stands elsewhere.
    """
    known = [file.name for file in files]
    places = {os.path.realpath(name): name for name in given if not is_url(name)}
    for name in sorted(set(known).difference(given)):
        other = None if is_url(name) else places.get(os.path.realpath(name))
        if other is not None:
            raise InputError(
                f"{other}: the job in {folder} began with this file as {name}: name it so again"
            )
        raise InputError(
            f"{name}: the job in {folder} has this file, and it was not given (the same command, "
            "run in the same folder, goes on)"
        )
    added = set(given).difference(known)
    if added:
        raise InputError(
            f"{min(added)}: is not among the {len(known)} files of the job in {folder}: "
            "take another folder for it, or --overwrite to begin anew"
        )
    if list(given) != known:
        raise InputError(f"the files come in another order than in the job in {folder}")


def check_apart(names: Sequence[str], folder: Path) -> None:
    """See that to begin anew in a folder removes no input.

    Args:
        names: of the input's files.
        folder: for the output.

    Raises:
        InputError: one of them is a file of the job that the folder holds.
    """
    own = os.path.realpath(folder)
    for name in names:
        place, last = os.path.split(os.path.realpath(name))
        if not is_url(name) and place == own and is_own(last):
            raise InputError(
                f"{name}: is a file of the job in {folder}, which --overwrite removes: take "
                "another folder for the output"
            )
