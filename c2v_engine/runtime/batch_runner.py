"""Single batches for a caller that forms them itself: a server, which joins many requests.

``Runner.run`` forms the batches of one call's texts. Here tokenising, launching and collecting are
apart, so that whoever knows what waits decides what is computed next.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import torch

from c2v_engine.errors import TextError
from c2v_engine.model.pooling import OutputFormat
from c2v_engine.runtime.counting import Counter
from c2v_engine.runtime.execution import Embedded, Execution, UnderWay
from c2v_engine.runtime.shared_prompt import SharedPrompt
from c2v_engine.runtime.tokenization import CheckpointTokenizer, Token, TokenizedText


@dataclass(frozen=True, eq=False)
class ReadyText:
    """A text that can be put into a batch.

    Attributes:
        text: tokenised.
        prompt: ids of its leading rows that are computed once for all that begin with them; texts
            of one batch have the same.
        rows: of the decoder, by which a batch is filled.
    """

    text: TokenizedText
    prompt: tuple[int, ...]
    rows: int

    @property
    def tokens(self) -> int:
        """Rows of the decoder or tokens of the encoder, whichever are more."""
        return max(self.rows, self.text.encoder_tokens)


@dataclass(frozen=True)
class _Launched:
    """A batch as it is counted."""

    texts: list[TokenizedText]
    prompt: tuple[int, ...]


class LaunchedBatch:
    """A batch that was launched.

    Args:
        batch: its texts.
        under_way: what the device does of it.
        output: the format of its embeddings.
        counter: told when it is done.
    """

    def __init__(
        self, batch: _Launched, under_way: UnderWay, output: OutputFormat, counter: Counter
    ) -> None:
        self._batch = batch
        self._under_way = under_way
        self._output = output
        self._counter = counter

    def result(self) -> tuple[torch.Tensor, torch.Tensor]:
        """Wait for it; call it once.

        Returns:
            Embeddings ``[texts, columns]`` on the CPU, and bool ``[texts]``: which of them are
            finite, and so can be used.
        """
        try:
            embedded = self._under_way.result()
        finally:
            self._counter.end()
        self._counter.add(self._batch, len(self._batch.texts))
        return embedded.embeddings, finite_texts(embedded, self._output)


class BatchRunner:
    """Runs batches of one model; ``tokenize`` from any thread, the rest from one.

    Args:
        execution: of the model.
        tokenizer: of its checkpoint.
        shared_prompt: gives the leading rows that a prompt's texts have in common.
        counter: of what goes through.
        device: that the model is on.

    Attributes:
        ahead: how many batches are worth launching before the first is waited for.
        batch_tokens: most tokens of a batch that suit the device.
    """

    def __init__(
        self,
        execution: Execution,
        tokenizer: CheckpointTokenizer,
        shared_prompt: Callable[[str], SharedPrompt],
        counter: Counter,
        device: torch.device,
    ) -> None:
        self._execution = execution
        self._tokenizer = tokenizer
        self._shared_prompt = shared_prompt
        self._counter = counter
        self._device = device
        self.ahead = execution.ahead
        self.batch_tokens = execution.batch_tokens

    def tokenize(self, texts: Sequence[str], prompt: str) -> list[ReadyText]:
        """Make texts ready.

        Raises:
            TextError: a text that can not be embedded; row is the position in ``texts``.
        """
        with self._counter.tokenizing():
            tokenized = self._tokenizer(texts, prompt)
        shared = self._shared_prompt(prompt)
        cost = self._execution.model.prompt_cost(len(shared.token_ids))
        ready = []
        for text in tokenized:
            rows = len(text.token_ids)
            if shared.begins(text):
                ready.append(ReadyText(text, shared.token_ids, rows - len(shared.token_ids) + cost))
            else:
                ready.append(ReadyText(text, (), rows))
        return ready

    def tokens(self, text: str, prompt: str) -> list[Token]:
        """The decoder's sequence of a text, for people; see ``DecoderTokenizer.tokens``."""
        return self._tokenizer.decoder.tokens(text, prompt)

    def launch(self, texts: Sequence[ReadyText], output: OutputFormat) -> LaunchedBatch:
        """Launch a batch; on a CPU it is computed at once.

        Args:
            texts: at least one, all with the same ``prompt``.
            output: the format of the embeddings.

        Raises:
            torch.OutOfMemoryError: it does not fit in the device's memory.
        """
        batch = _Launched([ready.text for ready in texts], texts[0].prompt)
        if output.ranges is not None:
            output = replace(output, ranges=output.ranges.to(self._device))
        self._counter.begin()
        try:
            under_way = self._execution.launch(batch.texts, output, self.batch_tokens, batch.prompt)
        except BaseException:
            self._counter.end()
            raise
        return LaunchedBatch(batch, under_way, output, self._counter)

    def release_memory(self) -> None:
        """Give back what can be, after a batch did not fit and all others are done."""
        self._execution.out_of_memory()


def finite_texts(embedded: Embedded, output: OutputFormat) -> torch.Tensor:
    """Bool ``[texts]``: which embeddings hold neither NaN nor infinity."""
    finite = torch.isfinite(embedded.norms)
    if output.precision == "float16" and not output.normalize:
        # A finite float32 vector may still be too large for float16.
        finite &= torch.isfinite(embedded.embeddings).all(dim=1)
    return finite


def too_large(text: TokenizedText, row: int) -> TextError:
    """The error of a text that does not fit in the device's memory, even alone."""
    return TextError(
        row,
        f"its {len(text.token_ids)} decoder rows and {text.encoder_tokens} encoder "
        "tokens do not fit in the device's memory, even alone: lower max_length in the "
        "checkpoint's config, or take a smaller dtype or another device",
    )


NOT_FINITE = "its embedding is not finite: weights hold NaN, or dtype or precision overflow"
