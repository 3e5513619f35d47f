"""What an operator sets of the HTTP side."""

from __future__ import annotations

from dataclasses import dataclass

from c2v_engine.errors import InputError


@dataclass(frozen=True)
class HttpOptions:
    """How requests are taken.

    Attributes:
        model_names: by which clients may ask for the model; the first is the one it is known by.
        api_keys: any of which opens the guarded routes; none leaves them open.
        cors_origins: whose pages may ask from a browser; ``*`` for any, none for no page but ours.
        max_body_bytes: of a request's body.
        max_texts: of a request.
        max_characters: of a text. Of a long text only the beginning is tokenised, but where that is
            a single word the tokenizer takes it whole, at microseconds a character.
        body_seconds: in which a request's body has to arrive.

    Raises:
        InputError: a value that can not be.
    """

    model_names: tuple[str, ...]
    api_keys: tuple[str, ...] = ()
    cors_origins: tuple[str, ...] = ()
    max_body_bytes: int = 16 * 2**20
    max_texts: int = 2048
    max_characters: int = 200_000
    body_seconds: float = 60.0

    def __post_init__(self) -> None:
        for name in ("model_names", "api_keys", "cors_origins"):
            if isinstance(getattr(self, name), str):
                raise InputError(f"{name} is one string, expected a sequence of them")
        if not self.model_names or not all(self.model_names):
            raise InputError(f"model_names is {self.model_names!r}, expected at least one name")
        if not all(self.api_keys):
            raise InputError("an API key is empty, expected text")
        for name in ("max_body_bytes", "max_texts", "max_characters", "body_seconds"):
            if getattr(self, name) <= 0:
                raise InputError(f"{name} is {getattr(self, name)}, expected more than 0")
