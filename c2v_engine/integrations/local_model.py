"""What the adapters that embed in this process share: a model by its name, opened once."""

from __future__ import annotations

import inspect
import os
from pathlib import Path
from threading import Lock
from typing import TYPE_CHECKING, Any, Literal
from weakref import WeakValueDictionary

from c2v_engine.errors import InputError

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from c2v_engine import Causal2Vec

Side = Literal["query", "document"]

# Taken from ``encode`` by the adapters themselves.
_NOT_OPTIONS = ("self", "texts", "convert_to", "show_progress_bar")
_open: WeakValueDictionary[str, Causal2Vec] = WeakValueDictionary()
_opening = Lock()


class LocalModel:
    """Embeds lists of texts by an engine that is opened when it is first needed.

    It pickles as what it was opened with, and opens again where it is unpickled.

    Args:
        model: a checkpoint's folder or Hub name; None for the small model that ships with the
            package.
        model_kwargs: options of ``Causal2Vec.from_pretrained``.
        device: one of them, where it is an argument of its own.
        engine: used in place of ``model``; such a model is not copied deeply, nor pickled.

    Raises:
        InputError: an unknown option, one given twice, or an engine besides a model or options.
    """

    def __init__(
        self,
        model: str | os.PathLike[str] | None,
        model_kwargs: Mapping[str, Any],
        device: str | None = None,
        engine: Causal2Vec | None = None,
    ) -> None:
        from c2v_engine import Causal2Vec

        _check_names("from_pretrained", model_kwargs, Causal2Vec.from_pretrained, "path_or_repo")
        check_given_once({"device": device}, "model_kwargs", model_kwargs)
        options = dict(model_kwargs) if device is None else {**model_kwargs, "device": device}
        if engine is not None and not hasattr(engine, "encode_document"):
            raise InputError(f"engine is {engine!r}, expected a Causal2Vec")
        if engine is not None and (model is not None or options):
            given = ", ".join([*([] if model is None else ["a model"]), *options])
            raise InputError(f"{given} is given besides an engine, which is open already")
        self._model = None if model is None else os.fspath(model)
        self._options = options
        self._is_given = engine is not None
        self._engine = engine

    @property
    def engine(self) -> Causal2Vec:
        """The engine, opened by now.

        Raises:
            C2VError: it can not be.
        """
        if self._engine is None:
            self._engine = open_engine(self._model, self._options)
        return self._engine

    def embed(
        self, side: Side, texts: Sequence[str], show_progress_bar: bool | None, **options: Any
    ) -> list[list[float]]:
        """Embed texts, all in one call of the engine, which packs them by their tokens.

        Args:
            side: ``query`` for ``encode_query``, ``document`` for ``encode_document``.
            texts: any number of them.
            show_progress_bar: as in ``encode``.
            options: likewise.

        Returns:
            A list for each text.

        Raises:
            TextError: a text that can not be embedded, named by its row.
            InputError: options that can not be.
        """
        if isinstance(texts, str):
            raise InputError("texts is one string, expected a list of strings")
        engine = self.engine
        encode = engine.encode_query if side == "query" else engine.encode_document
        embeddings = encode(texts, show_progress_bar=show_progress_bar, **options)
        rows: list[list[float]] = embeddings.tolist()
        return rows

    def check_pickling(self) -> None:
        """Refuse to let an engine travel that was given.

        Raises:
            InputError: it was.
        """
        if self._is_given:
            raise InputError(
                f"the model {self.engine.name!r} was given as an open engine, which can not be "
                "copied or pickled: give its name and options in place of it"
            )

    def __getstate__(self) -> dict[str, Any]:
        self.check_pickling()
        return {**self.__dict__, "_engine": None}


def open_engine(model: str | None, options: Mapping[str, Any]) -> Causal2Vec:
    """Open an engine, or find the one that is in use with the same model and options.

    Args:
        model: as for ``Causal2Vec.from_pretrained``.
        options: likewise.

    Raises:
        C2VError: it can not be opened.
    """
    from c2v_engine import Causal2Vec

    key = repr((_identity(model), sorted(options.items())))
    with _opening:
        engine = _open.get(key)
        if engine is None:
            engine = Causal2Vec.from_pretrained(model, **options)
            _open[key] = engine
        return engine


def say_engine(engine: Causal2Vec | None) -> str | None:
    """An open engine by what it computes, for fields that are stored; it opens no other one."""
    if engine is None:
        return None
    info = engine.info()
    return f"{info['model']}, {info['fingerprint']}, {info['dtype']}"


def check_encode_options(given: Mapping[str, Any]) -> None:
    """Refuse what ``encode`` has no option for.

    Raises:
        InputError: naming those that there are.
    """
    from c2v_engine import Causal2Vec

    _check_names("encode", given, Causal2Vec.encode, *_NOT_OPTIONS)


def check_given_once(given: Mapping[str, Any], name: str, more: Mapping[str, Any]) -> None:
    """Refuse an option that is an argument of its own and is in a dict of options as well.

    Args:
        given: the arguments; those that are None are not given.
        name: of the dict.
        more: the dict.

    Raises:
        InputError: naming it.
    """
    for option, value in given.items():
        if value is not None and option in more:
            raise InputError(f"{option} is given, and in {name} too, expected once")


def _check_names(what: str, given: Mapping[str, Any], function: Any, *without: str) -> None:
    known = [name for name in inspect.signature(function).parameters if name not in without]
    for name in given:
        if name not in known:
            raise InputError(f"{what} has no option {name!r}, only {', '.join(known)}")


def _identity(model: str | None) -> object:
    """What changes when another checkpoint stands in a folder."""
    if model is None or not Path(model).is_dir():
        return model
    folder = Path(model).resolve()
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    states = [(path, path.stat()) for path in files]
    return str(folder), [(str(path), state.st_mtime_ns, state.st_size) for path, state in states]
