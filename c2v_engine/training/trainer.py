"""sentence-transformers' trainer, with the checkpoints and the failures of this project."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from sentence_transformers import SentenceTransformer, SentenceTransformerTrainer

from c2v_engine.errors import InputError
from c2v_engine.training.record import TRAINED_WEIGHTS

TEXT_SHOWN = 80


class Causal2VecTrainer(SentenceTransformerTrainer):  # type: ignore[misc]
    """Saves and resumes what is trained alone, and stops at the first loss that is not finite."""

    def compute_loss(
        self,
        model: SentenceTransformer,
        inputs: dict[str, Any],
        return_outputs: bool = False,
        num_items_in_batch: Any = None,
    ) -> Any:
        """Compute the loss of a batch.

        Raises:
            InputError: it is NaN or infinite; the message names step, data set and, where one text
                alone is the cause, that text.
        """
        name = inputs.get("dataset_name", "data")
        columns = {
            column: {
                key.removeprefix(f"{column}_"): value
                for key, value in inputs.items()
                if key.startswith(f"{column}_")
            }
            for column in ("query", "positive", "negative")
            if f"{column}_input_ids" in inputs
        }
        loss = super().compute_loss(model, inputs, return_outputs, num_items_in_batch)
        value = loss[0] if return_outputs else loss
        if not bool(torch.isfinite(value)):
            raise InputError(self._not_finite(float(value.detach()), name, columns))
        return loss

    @torch.no_grad()
    def _not_finite(self, value: float, name: str, columns: dict[str, dict[str, Any]]) -> str:
        step = self.state.global_step + 1
        reference = self.model[0].reference
        for column, features in columns.items():
            embedded = self.model(dict(features))["sentence_embedding"]
            bad = (~torch.isfinite(embedded).all(dim=-1)).nonzero().flatten().tolist()
            if bad and len(bad) < len(embedded):
                ids = features["input_ids"][bad[0]][features["attention_mask"][bad[0]].bool()]
                text = reference.decoder_tokenizer.decode(ids.tolist(), skip_special_tokens=True)
                return (
                    f"step {step}: the loss is {value}: in data set {name!r}, column {column!r}, "
                    f"the text {text[:TEXT_SHOWN]!r} has an embedding that is not finite"
                )
        return (
            f"step {step}: the loss is {value} in data set {name!r}, and not by one text alone: "
            "lower learning_rate, or raise warmup_ratio or temperature"
        )

    def add_model_card_callback(self, default_args_dict: dict[str, Any]) -> None:
        """Leave the card to whoever publishes the model."""

    def _trained(self) -> dict[str, torch.Tensor]:
        model = self.accelerator.unwrap_model(self.model)
        return {
            name: parameter
            for name, parameter in model.named_parameters()
            if parameter.requires_grad
        }

    def _save(self, output_dir: str | None = None, state_dict: Any = None) -> None:
        folder = Path(output_dir or self.args.output_dir)
        folder.mkdir(parents=True, exist_ok=True)
        state = {name: value.detach().cpu() for name, value in self._trained().items()}
        save_file(state, folder / TRAINED_WEIGHTS)

    def _load_from_checkpoint(self, checkpoint_path: str) -> None:
        path = Path(checkpoint_path) / TRAINED_WEIGHTS
        state = load_file(path)
        trained = self._trained()
        if set(state) != set(trained):
            name = sorted(set(state) ^ set(trained))[0]
            raise InputError(f"{path}: does not fit the run: {name} is trained in one of them only")
        with torch.no_grad():
            for name, value in state.items():
                trained[name].copy_(value)
