"""A Ray Serve deployment: ``c2v serve``'s routes that embed, and a handle for other deployments.

``serve.run(app("my-model", num_gpus=1))`` is the short way; ``build`` is for a config file or
``serve run c2v_engine.integrations.ray_serve:build model=my-model``.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import fields
from pathlib import Path
from typing import TYPE_CHECKING, Any

from c2v_engine.errors import InputError, MissingPackageError, TextError
from c2v_engine.integrations.ray import limit_threads
from c2v_engine.opener import EngineSpec
from c2v_engine.serving.contract import EmbedOptions
from c2v_engine.serving.http.options import HttpOptions
from c2v_engine.serving.service import EmbeddingService, ServiceOptions

try:
    from ray import serve
except ImportError as error:
    raise MissingPackageError("ray[serve]", "ray") from error
try:
    from c2v_engine.serving.http.app import create_app
except ImportError as error:
    raise MissingPackageError(error.name or "fastapi", "serve") from error

if TYPE_CHECKING:
    import numpy as np
    from ray.serve import Application, Deployment

    from c2v_engine.kernels.dual_token_pool import Precision

# Batches are made of requests that are there together; Ray's own default is 5.
_ONGOING_REQUESTS = 1024
# Options that are text, or several, whatever else the text may look like.
_LISTS = ("model_names", "api_keys", "cors_origins")
_TEXTS = ("model", "device", "dtype", "attention", *_LISTS)
_OPTIONS = (
    {one.name for one in fields(EngineSpec)},
    {one.name for one in fields(ServiceOptions)},
    {one.name for one in fields(HttpOptions)},
)


class Replica:
    """One model on one device, which answers HTTP requests and the handle alike.

    Args:
        engine: what to open.
        service: how requests are taken.
        http: options of ``HttpOptions``; the model goes by its own name where none is given.

    Attributes:
        http: the app that answers.

    Raises:
        C2VError: an option or a model that can not be.
    """

    def __init__(
        self, engine: EngineSpec, service: ServiceOptions, http: Mapping[str, Any]
    ) -> None:
        limit_threads(engine.threads)
        self._service = EmbeddingService(engine.open(), service)
        names = (Path(self._service.name).name,)
        self.http = create_app(self._service, HttpOptions(**{"model_names": names, **http}))
        self._service.warm_up()

    async def embed(
        self,
        texts: Sequence[str],
        *,
        prompt_name: str | None = None,
        normalize: bool | None = None,
        truncate_dim: int | None = None,
        precision: Precision = "float32",
        truncate: bool | None = None,
    ) -> np.ndarray:
        """Embed texts: what ``handle.embed.remote(texts)`` calls.

        Args:
            texts: of one request.
            prompt_name: one of the checkpoint's prompts; None for its default one.
            normalize: None for the checkpoint's setting.
            truncate_dim: as in ``Causal2Vec.encode``.
            precision: of the embeddings; all but bfloat16.
            truncate: whether texts that are too long are shortened, else they are refused; None
                for the deployment's setting.

        Returns:
            ``[texts, columns]``.

        Raises:
            C2VError: as ``EmbeddingService.embed``.
        """
        if isinstance(texts, str):
            raise InputError("texts is one string, expected a sequence of strings")
        for row, text in enumerate(texts):
            if not isinstance(text, str):
                raise TextError(row, f"is {type(text).__name__}, expected text (str)")
        options = EmbedOptions(prompt_name, normalize, truncate_dim, precision, truncate)
        return (await self._service.embed(texts, options)).embeddings

    async def check_health(self) -> None:
        """What Ray asks now and then: a text is embedded. It replaces a replica that can not.

        Raises:
            UnavailableError: the model does not embed.
        """
        await self._service.probe()

    def __del__(self) -> None:
        service = getattr(self, "_service", None)  # there is none where the model was refused
        if service is not None:
            service.close()


class _ReplicaApp:
    """The app of the replica that this process is: an app itself can not be sent there."""

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        if scope["type"] != "lifespan":
            await serve.get_replica_context().servable_object.http(scope, receive, send)
            return
        for phase in ("startup", "shutdown"):
            await receive()
            await send({"type": f"lifespan.{phase}.complete"})


def deployment(
    model: str | os.PathLike[str] | None = None,
    *,
    num_replicas: int | str | None = None,
    num_gpus: float = 0,
    num_cpus: float = 1,
    max_ongoing_requests: int = _ONGOING_REQUESTS,
    ray_actor_options: Mapping[str, Any] | None = None,
    deployment_options: Mapping[str, Any] | None = None,
    **options: Any,
) -> tuple[Deployment, tuple[Any, ...]]:
    """The deployment and what it is bound to: ``app`` joins them.

    Args:
        model: a checkpoint's folder, which every machine must see, or a Hub name; None for the
            small model that ships with the package.
        num_replicas: how many; ``auto`` for as many as there is work for.
        num_gpus: of each replica; 0 for the CPU. A part of 1 puts several on a GPU.
        num_cpus: of each replica, which computes and tokenises with as many threads.
        max_ongoing_requests: that a replica is sent at a time. They are what it makes batches of.
        ray_actor_options: more of each replica, as ``resources`` or ``runtime_env``.
        deployment_options: more of ``serve.deployment``, as ``name`` or ``autoscaling_config``.
        options: of ``EngineSpec`` (``dtype``, ``attention`` ...), ``ServiceOptions``
            (``batch_tokens``, ``timeout`` ...) and ``HttpOptions`` (``model_names``, ``api_keys``
            ...), by their names.

    Raises:
        InputError: options that can not be.
    """
    engine, service, http = _sorted_options(
        {**options, "model": None if model is None else os.fspath(model)}
    )
    made = serve.deployment(
        serve.ingress(_ReplicaApp())(Replica),
        **{
            "name": "c2v",
            "max_ongoing_requests": max_ongoing_requests,
            **({} if num_replicas is None else {"num_replicas": num_replicas}),
            **(deployment_options or {}),
            "ray_actor_options": {
                "num_gpus": num_gpus,
                "num_cpus": num_cpus,
                **(ray_actor_options or {}),
            },
        },
    )
    return made, (engine, service, http)


def app(model: str | os.PathLike[str] | None = None, **options: Any) -> Application:
    """An application for ``serve.run``; takes what ``deployment`` takes.

    Raises:
        InputError: options that can not be.
    """
    made, arguments = deployment(model, **options)
    return made.bind(*arguments)


def build(args: dict[str, Any]) -> Application:
    """An application for ``serve run`` and config files, whose ``args`` these are.

    Args:
        args: of ``app``. Text that is a JSON value is taken for it, as ``num_replicas=2`` or
            ``api_keys=["one", "two"]``, but a number is text where text is expected.

    Raises:
        InputError: options that can not be.
    """
    return app(**{name: _value(name, given) for name, given in args.items()})


def _value(name: str, given: Any) -> Any:
    if not isinstance(given, str) or (name in _TEXTS and not given.startswith("[")):
        return given
    try:
        return json.loads(given)
    except ValueError:
        return given


def _sorted_options(
    options: dict[str, Any],
) -> tuple[EngineSpec, ServiceOptions, dict[str, Any]]:
    """Options by whose they are, checked where they are given and not first in a replica."""
    for name in options:
        if not any(name in known for known in _OPTIONS):
            listed = ", ".join(sorted(set().union(*_OPTIONS)))
            raise InputError(f"there is no option {name!r}, only {listed}")
    engine, service, http = (
        {name: given for name, given in options.items() if name in known} for known in _OPTIONS
    )
    for name in _LISTS:
        if name in http:
            http[name] = _texts(name, http[name])
    HttpOptions(**{"model_names": ("model",), **http})
    return EngineSpec(**engine), ServiceOptions(**service), http


def _texts(name: str, given: Any) -> tuple[str, ...]:
    """One text or several; of one alone no letter may pass for an API key."""
    several = (given,) if isinstance(given, str) else given
    if not isinstance(several, (list, tuple)) or not all(isinstance(one, str) for one in several):
        raise InputError(f"{name} is {type(given).__name__}, expected text, or a list of texts")
    return tuple(several)
