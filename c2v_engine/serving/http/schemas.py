"""What the routes take and give, as pydantic checks it and the OpenAPI document tells it."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field

from c2v_engine.serving.contract import EmbedOptions


def _whole(number: Any) -> Any:
    """``8.0`` is an integer to JSON Schema."""
    return int(number) if isinstance(number, float) and number.is_integer() else number


# The first text that is none ends the check: a list of a million numbers makes one complaint.
Texts = Annotated[list[str], Field(min_length=1, fail_fast=True)]
Whole = Annotated[int, BeforeValidator(_whole)]


class _Taken(BaseModel):
    """A body of a request: nothing is converted, nothing unknown is passed over."""

    model_config = ConfigDict(strict=True, extra="forbid", frozen=True)


class _EmbedRequest(_Taken):
    """How the texts of a request are embedded: what both APIs are asked, each by its own name."""

    dimensions: Whole | None = Field(None, description="To keep; all by default.")
    prompt_name: str | None = Field(None, description="One of the model's prompts.")
    normalize: bool | None = Field(None, description="By default as the model does.")
    truncate: bool | None = Field(
        None, description="Whether longer texts than the model reads are shortened or refused."
    )

    def options(self, prompt_name: str | None) -> EmbedOptions:
        """What the service is asked for, with a prompt that may have come otherwise."""
        return EmbedOptions(
            prompt_name=prompt_name,
            normalize=self.normalize,
            truncate_dim=self.dimensions,
            truncate=self.truncate,
        )


class OpenAIEmbeddingsRequest(_EmbedRequest):
    """Texts to embed."""

    input: str | Texts = Field(description="One text, or a list of them.")
    model: str = Field(description="A served model's name; `NAME:PROMPT` chooses a prompt.")
    encoding_format: Literal["float", "base64"] | None = Field(
        None, description="Of each embedding: numbers, or little-endian float32 in base64."
    )
    user: str | None = Field(None, description="Who asks; not used.")


class TeiEmbedRequest(_EmbedRequest):
    """Texts to embed."""

    inputs: str | Texts = Field(description="One text, or a list of them.")
    truncation_direction: Literal["Right", "right", "Left", "left"] | None = Field(
        None, description="Texts are shortened at their end."
    )
    encoding_format: Literal["float"] | None = Field(None, description="Numbers, always.")


class TeiTokenizeRequest(_Taken):
    """Texts to tokenise."""

    inputs: str | Texts = Field(description="One text, or a list of them.")
    add_special_tokens: bool = Field(True, description="Whether the template's own are listed.")
    prompt_name: str | None = Field(None, description="One of the model's prompts.")


class OpenAIEmbedding(BaseModel):
    """One embedding."""

    object: Literal["embedding"]
    index: int
    embedding: list[float] | str


class OpenAIUsage(BaseModel):
    """Rows of the decoder, prompt and special tokens included."""

    prompt_tokens: int
    total_tokens: int


class OpenAIEmbeddings(BaseModel):
    """Embeddings in the order of the texts."""

    object: Literal["list"]
    data: list[OpenAIEmbedding]
    model: str
    usage: OpenAIUsage


class OpenAIModel(BaseModel):
    """A name by which the model is served."""

    id: str
    object: Literal["model"]
    created: int
    owned_by: str


class OpenAIModels(BaseModel):
    """All of them."""

    object: Literal["list"]
    data: list[OpenAIModel]


class OpenAIProblem(BaseModel):
    """What went wrong."""

    message: str
    type: str
    param: str | None
    code: str


class OpenAIError(BaseModel):
    """An answer that is not 200."""

    error: OpenAIProblem


class TeiError(BaseModel):
    """An answer that is not 200."""

    error: str
    error_type: Literal["Unhealthy", "Backend", "Overloaded", "Validation", "Tokenizer"]


class TeiToken(BaseModel):
    """A token of the decoder's sequence."""

    id: int
    text: str
    special: bool
    start: int | None
    stop: int | None


class TeiInfo(BaseModel):
    """The model and the bounds of requests; ours follow text-embeddings-inference's."""

    model_id: str
    model_sha: str | None
    model_dtype: str
    served_model_name: str
    model_type: dict[str, Any]
    max_concurrent_requests: int | None
    max_input_length: int
    max_batch_tokens: int
    max_batch_requests: int | None
    max_client_batch_size: int
    auto_truncate: bool
    tokenization_workers: int | None
    version: str
    sha: str | None
    docker_label: str | None
    dimension: int
    segments: int
    normalize: bool
    prompts: dict[str, str]
    fingerprint: str | None
    precisions: list[str]
    max_body_bytes: int
    max_characters: int


class Health(BaseModel):
    """The service can embed."""

    state: Literal["warming", "ready", "draining"]
