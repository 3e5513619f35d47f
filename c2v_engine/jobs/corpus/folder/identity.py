"""Whose a folder is: ``job.json`` says what decides its numbers, and a job must agree to go on."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from c2v_engine.errors import ConfigError, OutputError
from c2v_engine.jobs.corpus.folder.layout import (
    JOB_NAME,
    LOCK_NAME,
    MANIFEST_NAME,
    is_own,
    shard_number,
)
from c2v_engine.jobs.output import replace_file, sync_folder, write_failure

FORMAT_VERSION = 1


def prepare_folder(folder: Path) -> bool:
    """See that a folder can hold a job, before anything is loaded; it is made where it is missing.

    Returns:
        Whether a job has begun in it.

    Raises:
        OutputError: it is a file, holds something else, or can not be written to.
    """
    if folder.exists() and not folder.is_dir():
        raise OutputError(f"{folder}: is a file, expected a folder or nothing")
    try:
        folder.mkdir(parents=True, exist_ok=True)
        names = sorted(os.listdir(folder))
        # A folder that was opened for writing can still be on a disk that is not.
        with tempfile.TemporaryFile(dir=folder):
            pass
    except OSError as error:
        raise write_failure(str(folder), error) from error
    if JOB_NAME in names:
        return True
    foreign = [name for name in names if not is_own(name) or shard_number(name) is not None]
    if foreign:
        more = f" and {len(foreign) - 1} more" if len(foreign) > 1 else ""
        raise OutputError(
            f"{folder}: is not empty and holds no job ({foreign[0]}{more}): choose another folder"
        )
    return False


def has_begun(folder: Path) -> bool:
    """Whether a folder holds a job that has done something: a unit is recorded, or a shard there.

    One that has not, such as one that a wrong prompt ended at once, has nothing to be gone on with.
    """
    names = set(os.listdir(folder))
    if JOB_NAME not in names:
        return False
    recorded = MANIFEST_NAME in names and (folder / MANIFEST_NAME).stat().st_size > 0
    return recorded or any(shard_number(name) is not None for name in names)


def claim(
    folder: Path, job: dict[str, Any], versions: dict[str, Any], may_change: Sequence[str] = ()
) -> bool:
    """Begin a job in a folder, or see that the one in it is the same; under the folder's lock.

    A job that stops at bad rows may go on as one that skips them: what it has finished holds none,
    and would be the same. ``job.json`` says so from then on.

    Args:
        folder: as ``prepare_folder`` accepts it.
        job: what decides the output, as JSON has it: compared.
        versions: of what made it: kept for people.
        may_change: values that may be others than before; ``job.json`` has these from then on.

    Returns:
        Whether the job had begun before.

    Raises:
        ConfigError: the folder's job is another; the message names every value that differs.
        OutputError: ``job.json`` is damaged, or the folder can not be written to.
    """
    job = json.loads(json.dumps(job))
    if (folder / JOB_NAME).exists():
        found = read_job(folder)
        adapted = {**found, **{name: job[name] for name in may_change}}
        if (found.get("on_error"), job.get("on_error")) == ("fail", "skip"):
            adapted["on_error"] = "skip"
        _compare(folder, job, adapted)
        if adapted != found:
            values = json.loads((folder / JOB_NAME).read_bytes())
            _write(folder, job, values.get("versions", versions))
        return True
    _write(folder, job, versions)
    return False


def _write(folder: Path, job: dict[str, Any], versions: dict[str, Any]) -> None:
    values = {
        "format_version": FORMAT_VERSION,
        "job": job,
        "digest": job_digest(job),
        "versions": versions,
    }
    text = json.dumps(values, indent=2, ensure_ascii=False, sort_keys=False) + "\n"
    replace_file(folder / JOB_NAME, [text.encode("utf-8", "surrogatepass")])


def read_job(folder: Path) -> dict[str, Any]:
    """Read what decides the output of a folder's job.

    Raises:
        OutputError: there is no job, or ``job.json`` is not what was written.
    """
    path = folder / JOB_NAME
    try:
        values = json.loads(path.read_bytes())
    except FileNotFoundError:
        raise OutputError(f"{folder}: holds no job ({JOB_NAME} is missing)") from None
    except OSError as error:
        raise OutputError(f"{path}: can not be read: {error.strerror}") from error
    except ValueError as error:
        raise OutputError(f"{path}: is damaged, not valid JSON: {error}: {_WAY}") from None
    if not isinstance(values, dict) or not isinstance(values.get("job"), dict):
        raise OutputError(f"{path}: is damaged, expected an object with a job: {_WAY}")
    if values.get("format_version") != FORMAT_VERSION:
        raise OutputError(
            f"{path}: is of format version {values.get('format_version')!r}, this release reads "
            f"{FORMAT_VERSION}"
        )
    job: dict[str, Any] = values["job"]
    if values.get("digest") != job_digest(job):
        raise OutputError(f"{path}: was changed since the job wrote it: {_WAY}")
    return job


def begin_anew(folder: Path) -> None:
    """Remove a job from its folder, and nothing else; under the folder's lock.

    The manifest goes first and ``job.json`` last: a job that is stopped in the middle of this is
    one that has done nothing yet.

    Raises:
        OutputError: the system refuses.
    """
    try:
        names = [name for name in os.listdir(folder) if is_own(name) and name != LOCK_NAME]
        first = [MANIFEST_NAME] if MANIFEST_NAME in names else []
        last = [JOB_NAME] if JOB_NAME in names else []
        for name in first:
            os.unlink(folder / name)
        sync_folder(folder)
        for name in (*(n for n in names if n not in (*first, *last)), *last):
            with contextlib.suppress(FileNotFoundError):
                os.unlink(folder / name)
    except OSError as error:
        raise write_failure(str(folder), error) from error
    sync_folder(folder)


_WAY = "restore it, or begin anew with --overwrite"


def job_digest(job: dict[str, Any]) -> str:
    """A digest of what decides the output."""
    text = json.dumps(job, sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(text.encode("ascii")).hexdigest()


def _compare(folder: Path, job: dict[str, Any], found: dict[str, Any]) -> None:
    missing = object()
    same_rest = all(job.get(key) == found.get(key) for key in {*job, *found} - {"input", "rows"})
    if same_rest and job.get("input") != found.get("input"):
        raise ConfigError(
            f"{folder}: the input is not the one that the job began with: put it back, choose "
            "another folder, or --overwrite to begin anew"
        )
    differing = [
        f"{key} is {_shown(job[key]) if key in job else 'not given'}, the job there has "
        f"{_shown(found[key]) if key in found else 'none'}"
        for key in (*job, *(key for key in found if key not in job))
        if job.get(key, missing) != found.get(key, missing)
    ]
    if differing:
        raise ConfigError(
            f"{folder}: {'; '.join(differing)}: choose another folder, or --overwrite to begin anew"
        )


def _shown(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 200 else f"{text[:200]}..."
