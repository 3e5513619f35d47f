"""The plain reference: stock transformers modules, padded batches, nothing clever.

What a checkpoint computes is written here once, as simply as possible. Tests compare the engine
with it, training starts from it (``forward`` is differentiable) and benchmarks race against it.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch
from safetensors import SafetensorError
from torch import Tensor, nn

from c2v_engine.errors import CheckpointError, InputError, TextError
from c2v_engine.model.config import Causal2VecConfig, ProjectorActivation
from c2v_engine.model.template import BOS, CONTEXT, EOS, SUMMARY, TextFormat, parse_format

Features = dict[str, Tensor]

PADDING = -1
ACTIVATIONS: dict[ProjectorActivation, nn.Module] = {
    "gelu": nn.GELU(),
    "gelu_tanh": nn.GELU(approximate="tanh"),
    "relu": nn.ReLU(),
    "silu": nn.SiLU(),
    "tanh": nn.Tanh(),
    "identity": nn.Identity(),
}


class Token(NamedTuple):
    """One row of a decoder sequence: its id, template entry, and the text's copy it belongs to."""

    id: int
    entry: int
    occurrence: tuple[int, int] | None


class Causal2VecReference(nn.Module):
    """A Causal2Vec checkpoint as stock modules.

    Attributes:
        config: the checkpoint's config.
        encoder: stock transformers encoder, or None.
        projector: the two linear layers, or None.
        decoder: stock transformers decoder without LM head, its adapter merged.
        summary: input rows of the summary tokens ``[k, d]``, or None.
    """

    def __init__(
        self,
        config: Causal2VecConfig,
        decoder: Any,
        decoder_tokenizer: Any,
        encoder: Any = None,
        encoder_tokenizer: Any = None,
        projector: nn.Module | None = None,
        summary: Tensor | None = None,
    ) -> None:
        super().__init__()
        self.config = config
        self.template = config.parsed_template
        self.encoder: Any = encoder
        self.projector: Any = projector
        self.decoder: Any = decoder
        self.summary = None if summary is None else nn.Parameter(summary)
        self.encoder_tokenizer, self.decoder_tokenizer = encoder_tokenizer, decoder_tokenizer

    @classmethod
    def from_pretrained(
        cls,
        path: str | Path,
        dtype: torch.dtype = torch.float32,
        device: str = "cpu",
        *,
        decoder_dtype: torch.dtype | None = None,
        attn_implementation: str | None = None,
        merge_adapter: bool = True,
    ) -> Causal2VecReference:
        """Load a checkpoint directory.

        Args:
            path: the directory.
            dtype: of the weights.
            device: where they are.
            decoder_dtype: of the decoder's, where it is another.
            attn_implementation: transformers' attention; None for its default.
            merge_adapter: merge the decoder's adapter; else it stays a trainable ``PeftModel``.

        Raises:
            ConfigError: ``config.json`` is not valid.
            CheckpointError: projector or adapter do not fit, or peft is needed and missing.
        """
        from transformers import AutoModel

        path = Path(path)
        config = Causal2VecConfig.load(path)
        options = (
            {} if attn_implementation is None else {"attn_implementation": attn_implementation}
        )
        decoder = _load_decoder(path, config, decoder_dtype or dtype, merge_adapter, options)
        parts: dict[str, Any] = {}
        if config.encoder is not None:
            encoder_path = path / config.encoder.path
            parts["encoder"] = AutoModel.from_pretrained(encoder_path, dtype=dtype, **options)
            parts["encoder_tokenizer"] = _load_tokenizer(encoder_path)
            sizes = parts["encoder"].config.hidden_size, decoder.config.hidden_size
            parts["projector"] = _load_projector(path, config, *sizes).to(dtype)
        if config.summary_tokens:
            parts["summary"] = _load_summary(path, config, decoder.config.hidden_size).to(dtype)
        tokenizer = _load_tokenizer(path / config.decoder.path)
        return cls(config, decoder, tokenizer, **parts).to(device).eval()

    @property
    def dimension(self) -> int:
        """Width of one embedding."""
        return int(self.decoder.config.hidden_size) * self.config.segments

    @property
    def device(self) -> torch.device:
        """Where the decoder's weights are."""
        device: torch.device = next(self.decoder.parameters()).device
        return device

    def tokenize(
        self, texts: Sequence[str], prompt: str = "", rows: Sequence[int] | None = None
    ) -> Features:
        """Make one padded batch.

        Args:
            texts: the batch's texts.
            prompt: the prompt of all of them.
            rows: the numbers that errors give the texts, by default 0, 1, ...

        Returns:
            ``input_ids`` ``[batch, length]`` and ``entries`` of the same shape, the template entry
            that each row belongs to (-1: padding). With a contextual token also
            ``encoder_input_ids`` and ``encoder_attention_mask`` ``[windows, encoder length]``,
            ``encoder_token_type_ids`` where the encoder has them, and ``window_texts``
            ``[windows]``, the text each window belongs to.

        Raises:
            TextError: an item is not a string, or the prompt alone fills ``max_length``.
        """
        rows = range(len(texts)) if rows is None else rows
        for row, text in zip(rows, texts, strict=True):
            if not isinstance(text, str):
                raise TextError(row, f"expected a string, got {type(text).__name__}")
        features = self._tokenize_decoder(texts, prompt, rows)
        if self.encoder is not None:
            features.update(self._tokenize_encoder(texts, prompt))
        return features

    def _tokenize_decoder(self, texts: Sequence[str], prompt: str, rows: Sequence[int]) -> Features:
        sequences: list[list[Token]] = [[] for _ in texts]
        for index, entry in enumerate(self.template.entries):
            if entry.format is not None:
                columns = self._tokenize_entry(index, entry.format, texts, prompt)
            else:
                given = entry.kind in (CONTEXT, SUMMARY)
                token_id = 0 if given else self._special_id(entry.kind)
                columns = [[Token(token_id, index, None)] * entry.rows] * len(texts)
            for sequence, tokens in zip(sequences, columns, strict=True):
                sequence.extend(tokens)
        for row, sequence in zip(rows, sequences, strict=True):
            sequence[:] = shorten(sequence, self.config.max_length, row)
        return {
            "input_ids": _pad([[token.id for token in sequence] for sequence in sequences], 0),
            "entries": _pad([[token.entry for token in seq] for seq in sequences], PADDING),
        }

    def _tokenize_entry(
        self, index: int, text_format: TextFormat, texts: Sequence[str], prompt: str
    ) -> list[list[Token]]:
        rendered = [text_format.render(prompt, text) for text in texts]
        encoded = self.decoder_tokenizer(
            [characters for characters, _ in rendered],
            add_special_tokens=False,
            return_offsets_mapping=True,
            verbose=False,
        )
        columns = zip(encoded["input_ids"], encoded["offset_mapping"], rendered, strict=True)
        return [
            [
                Token(token_id, index, _occurrence(index, offset, spans))
                for token_id, offset in zip(ids, offsets, strict=True)
            ]
            for ids, offsets, (_, spans) in columns
        ]

    def _tokenize_encoder(self, texts: Sequence[str], prompt: str) -> Features:
        config = self.config.encoder
        assert config is not None
        windows = config.overflow == "windows"
        text_format = parse_format(config.text, "encoder.text")
        encoded = self.encoder_tokenizer(
            [text_format.render(prompt, text)[0] for text in texts],
            truncation=True,
            max_length=config.max_length,
            return_overflowing_tokens=windows,
            verbose=False,
        )
        ids = encoded["input_ids"]
        features = {
            "encoder_input_ids": _pad(ids, self.encoder_tokenizer.pad_token_id or 0),
            "encoder_attention_mask": _pad([[1] * len(row) for row in ids], 0),
            "window_texts": torch.tensor(
                encoded["overflow_to_sample_mapping"] if windows else range(len(texts))
            ),
        }
        if "token_type_ids" in encoded:
            features["encoder_token_type_ids"] = _pad(encoded["token_type_ids"], 0)
        return features

    def _special_id(self, kind: str) -> int:
        name = {BOS: "bos_token_id", EOS: "eos_token_id"}[kind]
        token_id = getattr(self.decoder_tokenizer, name)
        if token_id is None:
            token_id = getattr(self.decoder.config, name, None)
        if isinstance(token_id, list):
            token_id = token_id[0]
        if token_id is None:
            raise CheckpointError(f"template has {kind}, but the decoder defines no {name}")
        return int(token_id)

    def forward(self, features: Features) -> Tensor:
        """Embed a padded batch.

        Args:
            features: what ``tokenize`` returns, on the model's device.

        Returns:
            The pooled parts, concatenated, not yet normalised: ``[batch, dimension]`` float32.
        """
        entries = features["entries"]
        hidden_states = self.decoder.get_input_embeddings()(features["input_ids"])
        if self.encoder is not None:
            context = self.contextual_tokens(features)[:, None]
            hidden_states = torch.where(self._rows_of(CONTEXT, entries), context, hidden_states)
        if self.summary is not None:
            is_summary = self._rows_of(SUMMARY, entries)
            number = (is_summary[..., 0].cumsum(dim=1) - 1).clamp(0, len(self.summary) - 1)
            rows = self.summary[number].to(hidden_states.dtype)
            hidden_states = torch.where(is_summary, rows, hidden_states)
        real = entries != PADDING
        positions = torch.arange(entries.shape[1], device=entries.device)
        hidden_states = self.decoder(
            inputs_embeds=hidden_states,
            attention_mask=self._attention_mask(entries),
            position_ids=positions[None].expand_as(entries),
            use_cache=False,
        ).last_hidden_state
        # The index of no entry, which stands for all rows, has none of its own.
        return torch.cat(
            [_entry_mean(hidden_states, entries == index, real) for index in self.template.pooled],
            dim=-1,
        )

    def _rows_of(self, kind: str, entries: Tensor) -> Tensor:
        """Which rows are of entries of a kind: bool ``[batch, length, 1]``."""
        kinds = [entry.kind == kind for entry in self.template.entries]
        return torch.tensor([*kinds, False], device=entries.device)[entries][..., None]

    def contextual_tokens(self, features: Features) -> Tensor:
        """The encoder's pooled states, projected: ``[batch, decoder width]``."""
        assert self.config.encoder is not None
        types = features.get("encoder_token_type_ids")
        mask = features["encoder_attention_mask"]
        hidden_states = self.encoder(
            input_ids=features["encoder_input_ids"],
            attention_mask=mask,
            **({} if types is None else {"token_type_ids": types}),
        ).last_hidden_state
        counted = mask.clone()
        if self.config.encoder.pooling == "cls":
            counted[:, 1:] = 0
        weights = counted[..., None].float()
        texts, batch = features["window_texts"], len(features["entries"])
        sums = (hidden_states.float() * weights).sum(dim=1)
        sums = sums.new_zeros(batch, sums.shape[1]).index_add(0, texts, sums)
        counts = sums.new_zeros(batch, 1).index_add(0, texts, weights.sum(dim=1))
        projected: Tensor = self.projector((sums / counts).to(hidden_states.dtype))
        return projected

    def _attention_mask(self, entries: Tensor) -> Any:
        """What the stock decoder takes: ``[batch, length]``, or 4D masks where not causal."""
        real, causal = entries != PADDING, self.config.attention == "causal"
        if causal and not self.template.splits_summary:
            return real.long()
        config = self.decoder.config
        positions = torch.arange(real.shape[1], device=real.device)
        distance = (positions[:, None] - positions[None, :]).abs()[None, None]
        window = getattr(config, "sliding_window", None)
        # A padded row sees itself: a softmax over nothing would put NaN among the values.
        itself = distance == 0
        full = (real[:, None, None, :] | itself).expand(-1, -1, len(positions), -1)
        if causal:
            # Summary rows see the text, as if each stood right behind it, and themselves.
            summary = self._rows_of(SUMMARY, entries)[..., 0]
            text = (real & ~summary).sum(dim=1, keepdim=True)
            places = torch.where(summary, text, positions)
            before = positions <= places[:, None, :, None]
            full = itself | (full & before & ~summary[:, None, None, :])
            distance = torch.where(itself, 0, places[:, None, :, None] - positions)
        masks = {
            "full_attention": full,
            "sliding_attention": full & (distance < window) if window else full,
        }
        if config._attn_implementation == "eager":  # it adds its mask to the scores
            least = torch.finfo(torch.float32).min
            masks = {
                kind: torch.zeros(mask.shape, device=mask.device).masked_fill(~mask, least)
                for kind, mask in masks.items()
            }
        elif config._attn_implementation != "sdpa":
            kind = "causal with summary tokens" if causal else "bidirectional"
            raise CheckpointError(
                f"attention is {kind}, which {config._attn_implementation} can not mask"
            )
        kinds = set(getattr(config, "layer_types", None) or ())
        if not kinds:
            kinds = {"sliding_attention" if window else "full_attention"}
        return masks[kinds.pop()] if len(kinds) == 1 else masks

    @torch.inference_mode()
    def encode(
        self,
        texts: Sequence[str],
        prompt_name: str | None = None,
        prompt: str | None = None,
        batch_size: int = 1,
        normalize_embeddings: bool | None = None,
        truncate_dim: int | None = None,
    ) -> Tensor:
        """Embed texts the way sentence-transformers does: longest first, padded to the longest.

        Args:
            texts: what to embed.
            prompt_name: which of the config's prompts to use.
            prompt: the prompt itself; wins over ``prompt_name``.
            batch_size: texts a batch; 1 is one text at a time, without padding.
            normalize_embeddings: by default as the config says.
            truncate_dim: keep this many dimensions, the leading ones of each part.

        Returns:
            ``[texts, dimension]`` float32, on the CPU, in the order of ``texts``.

        Raises:
            InputError: an unknown prompt name, an impossible ``truncate_dim``, a bad text.
        """
        prompt = self._prompt(prompt_name, prompt)
        width = self._part_width(truncate_dim)
        normalize = self.config.normalize if normalize_embeddings is None else normalize_embeddings
        embeddings = torch.empty(len(texts), width * self.config.segments)
        order = sorted(range(len(texts)), key=lambda row: -len(str(texts[row])))
        for start in range(0, len(order), batch_size):
            rows = order[start : start + batch_size]
            features = self.tokenize([texts[row] for row in rows], prompt, rows)
            output = self({name: value.to(self.device) for name, value in features.items()})
            output = output.unflatten(1, (self.config.segments, -1))[..., :width].flatten(1)
            embeddings[rows] = (
                nn.functional.normalize(output, dim=-1) if normalize else output
            ).cpu()
        return embeddings

    def _prompt(self, prompt_name: str | None, prompt: str | None) -> str:
        if prompt is not None:
            return prompt
        name = self.config.default_prompt_name if prompt_name is None else prompt_name
        if name is None:
            return ""
        if name not in self.config.prompts:
            known = ", ".join(self.config.prompts) or "there are none"
            raise InputError(f"prompt_name is {name!r}, expected one of the prompts: {known}")
        return self.config.prompts[name]

    def _part_width(self, truncate_dim: int | None) -> int:
        segments = self.config.segments
        if truncate_dim is None:
            return self.dimension // segments
        if not 1 <= truncate_dim <= self.dimension or truncate_dim % segments:
            raise InputError(
                f"truncate_dim is {truncate_dim}, expected a multiple of {segments} "
                f"up to {self.dimension}"
            )
        return truncate_dim // segments


def shorten(sequence: list[Token], max_length: int, row: int) -> list[Token]:
    """Shorten every occurrence of the text, from its right, until the sequence fits.

    All occurrences keep at most the same number of tokens, the largest with which it fits.

    Raises:
        TextError: what is not text leaves no room for the text; ``row`` is its number.
    """
    if not sequence:
        raise TextError(row, "it gives the decoder no token at all")
    counts = Counter(token.occurrence for token in sequence if token.occurrence is not None)
    fixed = len(sequence) - sum(counts.values())
    keep = min(max(counts.values(), default=0), max_length)
    while keep > 0 and fixed + sum(min(keep, count) for count in counts.values()) > max_length:
        keep -= 1
    if fixed > max_length or (keep == 0 and counts):
        raise TextError(
            row,
            f"the prompt and the template take {fixed} tokens and leave too few of max_length "
            f"{max_length} for the text: use a shorter prompt",
        )
    kept, seen = [], Counter[tuple[int, int]]()
    for token in sequence:
        if token.occurrence is not None:
            seen[token.occurrence] += 1
        if token.occurrence is None or seen[token.occurrence] <= keep:
            kept.append(token)
    return kept


def _occurrence(
    index: int, offset: tuple[int, int], spans: list[tuple[int, int]]
) -> tuple[int, int] | None:
    """Which copy of the text, in entry ``index``, a token lies wholly inside, if any."""
    for number, (start, end) in enumerate(spans):
        if start <= offset[0] and offset[1] <= end:
            return index, number
    return None


def _entry_mean(hidden_states: Tensor, of_entry: Tensor, real: Tensor) -> Tensor:
    """Mean over an entry's rows, or over all rows where it has none: ``[batch, d]`` float32."""
    weights = torch.where(of_entry.any(dim=1, keepdim=True), of_entry, real)[..., None]
    summed = torch.where(weights, hidden_states.float(), 0.0).sum(dim=1)
    return summed / weights.sum(dim=1)


def _pad(rows: Sequence[Sequence[int]], value: int) -> Tensor:
    length = max(len(row) for row in rows)
    return torch.tensor([[*row, *[value] * (length - len(row))] for row in rows])


def _load_tokenizer(path: Path) -> Any:
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(path)
    if not tokenizer.is_fast:
        raise CheckpointError(f"{path}: needs a fast tokenizer (tokenizer.json)")
    tokenizer.truncation_side = "right"
    return tokenizer


def _load_projector(
    path: Path, config: Causal2VecConfig, encoder_size: int, decoder_size: int
) -> nn.Module:
    """``c = W2 act(W1 h + b1) + b2`` (arXiv 2507.23386)."""
    from safetensors.torch import load_file

    assert config.projector is not None
    width, bias = config.projector.hidden_size, config.projector.bias
    projector = nn.Sequential()
    projector.add_module("linear_1", nn.Linear(encoder_size, width, bias=bias))
    projector.add_module("activation", ACTIVATIONS[config.projector.activation])
    projector.add_module("linear_2", nn.Linear(width, decoder_size, bias=bias))
    weights = path / "projector.safetensors"
    try:
        projector.load_state_dict(load_file(weights))
    except (OSError, RuntimeError) as error:
        raise CheckpointError(f"{weights}: {error}") from None
    return projector


def _load_summary(path: Path, config: Causal2VecConfig, decoder_size: int) -> Tensor:
    """The learned input rows of the summary tokens (arXiv 2506.04344)."""
    from safetensors.torch import load_file

    weights, shape = path / "summary.safetensors", (config.summary_tokens, decoder_size)
    try:
        found = load_file(weights)
    except (OSError, SafetensorError) as error:
        raise CheckpointError(f"{weights}: {error}") from None
    if {name: tuple(one.shape) for name, one in found.items()} != {"weight": shape}:
        raise CheckpointError(f"{weights}: expected one tensor, 'weight' {list(shape)}")
    weight: Tensor = found["weight"]
    return weight


def _load_decoder(
    path: Path,
    config: Causal2VecConfig,
    dtype: torch.dtype,
    merge_adapter: bool,
    options: dict[str, str],
) -> Any:
    from transformers import AutoModel, AutoModelForCausalLM

    decoder_path = path / config.decoder.path
    if config.decoder.adapter is None:
        return AutoModel.from_pretrained(decoder_path, dtype=dtype, **options)
    try:
        from peft import PeftModel, get_peft_model_state_dict
        from peft.utils import load_peft_weights
    except ImportError:
        raise CheckpointError(
            "the reference merges decoder.adapter with peft, which is not installed: "
            "pip install peft"
        ) from None
    adapter_path = str(path / config.decoder.adapter)
    names = set(load_peft_weights(adapter_path, device="cpu"))
    # An adapter trained on the model with its LM head names every layer one level deeper.
    with_head = any(name.startswith("base_model.model.model.") for name in names)
    auto_class = AutoModelForCausalLM if with_head else AutoModel
    decoder = PeftModel.from_pretrained(
        auto_class.from_pretrained(decoder_path, dtype=dtype, **options),
        adapter_path,
        is_trainable=not merge_adapter,
    )
    unused = names.symmetric_difference(get_peft_model_state_dict(decoder))
    if unused:
        raise CheckpointError(f"{adapter_path}: does not fit the decoder: {sorted(unused)[0]}")
    if not merge_adapter:
        if with_head:
            raise CheckpointError(
                f"{adapter_path}: was trained on a decoder with its LM head, and can be merged "
                "but not trained further"
            )
        return decoder
    merged = decoder.merge_and_unload()
    return merged.model if with_head else merged
