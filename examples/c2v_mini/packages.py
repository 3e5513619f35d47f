"""Packages to read: the pinned list, their wheels, and the licences that let us use their text."""

from __future__ import annotations

import email
import hashlib
import re
import subprocess
import sys
import zipfile
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from email.message import Message
from pathlib import Path

from c2v_engine.errors import InputError

GROUPS = ("training", "dev", "held-out")
DOWNLOADS = 8  # at once
_ALLOWED = re.compile(  # SPDX identifiers, classifiers, and what the License field is filled with
    r"mit|mit-0|expat|(the )?mit licen[cs]e( \(mit\))?"
    r"|0bsd|bsd-[23](-clause(-clear)?)?|bsd[ -]style"
    r"|((new|modified|simplified|[23]-clause) )?bsd"
    r"( \(?[23][ -]clause\)?)?( new or revised)?( license)?"
    r"|apache-?2(\.0)?"
    r"|(the )?apache( software)?( license)?,?( version)? ?v?\(?(2(\.0)?)?\)?( license)?"
    r"|psf|psf-2\.0|psfl|python-2\.0|psf license|python software foundation license"
    r"|isc|isc license( \(iscl\))?|unlicense|the unlicense \(unlicense\)|zlib(/libpng( license)?)?"
)
_SKIPPED_FOLDERS = {
    "test", "tests", "_tests", "idle_test", "_vendor", "vendor", "vendored", "_vendored", "vendors",
    "third_party", "thirdparty", "extern", "externals", "external", "_extern", "packages_vendored",
    "site-packages", "lib2to3", "turtledemo", "ensurepip", "node_modules", "migrations",
    "_distutils", "deprecated", "_generated", "generated", "locale", "locales",
}  # fmt: skip


@dataclass(frozen=True)
class Pin:
    """One line of the list: a package at a version, in a group."""

    name: str
    version: str
    group: str


@dataclass(frozen=True)
class Source:
    """A package's readable text: its Python modules, its documents and what they are licensed as.

    Attributes:
        modules: dotted module names and their source, sorted.
        documents: names and text of README and other Markdown or reStructuredText files, sorted.
    """

    pin: Pin
    license: str
    sha256: str
    modules: list[tuple[str, bytes]]
    documents: list[tuple[str, str]]


def read_pins(path: Path) -> list[Pin]:
    """Pins of a list: ``name==version`` lines under ``[group]`` headings.

    Raises:
        InputError: a line is neither, stands before a heading, or names a package twice.
    """
    pins: dict[str, Pin] = {}
    group = ""
    for number, raw in enumerate(path.read_text(encoding="utf-8").splitlines(), 1):
        line = raw.partition("#")[0].strip()
        if not line:
            continue
        if heading := re.fullmatch(r"\[(.+)\]", line):
            group = heading.group(1)
            if group not in GROUPS:
                known = ", ".join(GROUPS)
                raise InputError(f"{path}:{number}: group {group!r} is not one of {known}")
            continue
        pin = re.fullmatch(r"([\w.-]+)==([\w.+!-]+)", line)
        if not pin or not group:
            raise InputError(
                f"{path}:{number}: {line!r} is not a name==version line below a [group] heading"
            )
        name = re.sub(r"[-_.]+", "-", pin.group(1)).lower()
        if name in pins:
            raise InputError(f"{path}:{number}: {name} stands in the list twice")
        pins[name] = Pin(name, pin.group(2), group)
    return sorted(pins.values(), key=lambda pin: pin.name)


def find_wheel(pin: Pin, cache: Path) -> Path | None:
    """The cached wheel of a pin, the first by name, or None."""
    for path in sorted(cache.glob("*.whl")):
        name, version = path.name.split("-")[:2]
        if re.sub(r"[-_.]+", "-", name).lower() == pin.name and version == pin.version:
            return path
    return None


def download(pins: list[Pin], cache: Path) -> dict[str, str]:
    """Fetch missing wheels into ``cache``, a few at once; by name, what pip said of failures."""
    cache.mkdir(parents=True, exist_ok=True)

    def fetch(pin: Pin) -> tuple[str, str]:
        command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps"]
        command += ["--only-binary=:all:", "--dest", str(cache), f"{pin.name}=={pin.version}"]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        lines = done.stderr.strip().splitlines()
        return pin.name, "" if done.returncode == 0 else (lines[-1] if lines else "pip failed")

    missing = [pin for pin in pins if find_wheel(pin, cache) is None]
    with ThreadPoolExecutor(DOWNLOADS) as pool:
        return {name: error for name, error in pool.map(fetch, missing) if error}


def license_of(metadata: Message) -> str:
    """A wheel's licence as its METADATA states it: expression, else classifiers, else the field."""
    if expression := metadata.get("License-Expression"):
        return str(expression)
    classifiers = [str(value) for value in metadata.get_all("Classifier") or []]
    named = [c.split("::")[-1].strip() for c in classifiers if c.startswith("License ::")]
    named = [name for name in named if name != "OSI Approved"]
    if named:
        return " AND ".join(sorted(named))
    lines = str(metadata.get("License") or "").strip().splitlines()
    return lines[0].strip() if lines else "none stated"


def is_allowed(license: str) -> bool:
    """Whether a licence is permissive: every part of it, or one part if all are alternatives."""
    alternatives = " OR " in license and " AND " not in license
    parts = re.split(r" AND | OR ", license)
    if len(parts) > 1:
        parts = [part.strip("() ") for part in parts]
    known = [bool(_ALLOWED.fullmatch(part.lower())) for part in parts]
    return any(known) if alternatives else all(known)


def _is_skipped(parts: list[str]) -> bool:
    return (
        bool(_SKIPPED_FOLDERS & set(parts[:-1]))
        or parts[-1].startswith(("test_", "conftest.", "setup."))
        or parts[-1].endswith(("_pb2.py", "_pb2_grpc.py", "_test.py"))
    )


def _module_name(path: str) -> str:
    parts = re.sub(r"\.pyi?$", "", path).split("/")
    if ".data" in parts[0]:  # NAME.data/purelib/...
        parts = parts[2:]
    return ".".join(parts).removesuffix(".__init__")


def read_wheel(pin: Pin, path: Path) -> Source:
    """A wheel's modules and documents, straight from the zip.

    Raises:
        InputError: the file is no wheel, or its licence is not on the allow-list.
    """
    try:
        with zipfile.ZipFile(path) as archive:
            names = sorted(archive.namelist())
            inner = [n for n in names if re.fullmatch(r"[^/]+\.dist-info/METADATA", n)]
            metadata = email.message_from_bytes(archive.read(inner[0]))
            license = license_of(metadata)
            if not is_allowed(license):
                raise InputError(f"{pin.name}: licence {license!r} is not on the allow-list")
            readme = str(metadata.get_payload() or metadata.get("Description") or "")
            markup = "rst" if "rst" in str(metadata.get("Description-Content-Type")) else "md"
            if "Description-Content-Type" not in metadata:
                markup = "rst"
            modules, documents = [], [(f"README.{markup}", readme)]
            for name in names:
                parts = name.split("/")
                if _is_skipped(parts):
                    continue
                if name.endswith((".py", ".pyi")):
                    modules.append((_module_name(name), archive.read(name)))
                elif name.endswith((".md", ".rst")) and ".dist-info" not in parts[0]:
                    documents.append((name, archive.read(name).decode("utf-8", "replace")))
    except (zipfile.BadZipFile, IndexError) as error:
        raise InputError(f"{path}: not a wheel ({error})") from error
    digest = hashlib.sha256(path.read_bytes()).hexdigest()
    return Source(pin, license, digest, modules, documents)


def read_standard_library(root: Path, version: str) -> Source:
    """The standard library under ``root`` as a source; nothing is imported."""
    modules = []
    for path in _python_files(root):
        modules.append((_module_name(path.relative_to(root).as_posix()), path.read_bytes()))
    return Source(Pin("python", version, "training"), "PSF-2.0", "", modules, [])


def _python_files(root: Path) -> Iterator[Path]:
    for path in sorted(root.rglob("*.py")):
        parts = list(path.relative_to(root).parts)
        if not _is_skipped(parts) and not parts[0].startswith(("config-", "idlelib")):
            yield path
