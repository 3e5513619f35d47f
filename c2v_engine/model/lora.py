"""Merging a PEFT LoRA adapter (arXiv 2106.09685) into the weights it adapts, on load."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import torch

from c2v_engine.errors import CheckpointError, UnsupportedError
from c2v_engine.model.weights import WeightFolder

ADAPTER_CONFIG = "adapter_config.json"
ADAPTER_WEIGHTS = "adapter_model.safetensors"
# A weight's name holds the module's path in the model that peft wrapped: where the adapter was
# trained with the LM head, layers stand one level deeper than in the base model.
_FACTOR = re.compile(
    r"^(?:base_model\.model\.)?((?:.+\.)?(layers\.\d+\.\S+?))\.lora_([AB])\.weight$"
)
_UNSUPPORTED = (
    "use_dora",
    "use_qalora",
    "use_bdlora",
    "fan_in_fan_out",
    "modules_to_save",
    "megatron_config",
    "alora_invocation_tokens",
    "arrow_config",
    "kasa_config",
    "layer_replication",
    "monteclora_config",
    "target_parameters",
    "trainable_token_indices",
)
# Other initialisations rewrite the base weight when peft builds the layer: what lies on the disk is
# then not what the factors belong to, unless the adapter was converted on saving.
_PLAIN_INITIALISATIONS = (True, False, None, "gaussian", "eva", "orthogonal")


class LoraAdapter:
    """The factors of one adapter: ``W + scaling * B A`` for every module it names.

    Args:
        folder: what ``PeftModel.save_pretrained`` wrote.

    Raises:
        CheckpointError: a file is missing or damaged.
        UnsupportedError: a kind of adapter that is not plain LoRA.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._config = self._read_config()
        self._weights = WeightFolder(folder, ADAPTER_WEIGHTS)
        self._factors: dict[str, dict[str, str]] = {}
        self._paths: dict[str, str] = {}
        for name in self._weights.names:
            match = _FACTOR.match(name)
            if match is None:
                raise UnsupportedError(
                    f"{folder / ADAPTER_WEIGHTS}: weight {name} is not a LoRA factor of a layer"
                )
            path, module, factor = match.groups()
            self._paths[module] = path
            factors = self._factors.setdefault(module, {})
            if factor in factors:
                raise CheckpointError(
                    f"{folder / ADAPTER_WEIGHTS}: weights {factors[factor]} and {name} are the "
                    "same factor of the same module"
                )
            factors[factor] = name
        if not self._factors:
            raise CheckpointError(f"{folder / ADAPTER_WEIGHTS}: holds no LoRA factor")
        self._merged: set[str] = set()

    def _read_config(self) -> dict[str, Any]:
        path = self.folder / ADAPTER_CONFIG
        try:
            config = json.loads(path.read_text(encoding="utf-8"))
        except FileNotFoundError:
            raise CheckpointError(f"{path}: no such file") from None
        except (OSError, ValueError) as error:
            raise CheckpointError(f"{path}: not valid JSON: {error}") from None
        if not isinstance(config, dict) or config.get("peft_type") != "LORA":
            raise UnsupportedError(f"{path}: only adapters with peft_type LORA are supported")
        for key in _UNSUPPORTED:
            if config.get(key):
                raise UnsupportedError(f"{path}: {key} is not supported")
        initialisation = config.get("init_lora_weights", True)
        if initialisation not in _PLAIN_INITIALISATIONS:
            raise UnsupportedError(
                f"{path}: init_lora_weights {initialisation!r} changes the base weights; save the "
                "adapter with path_initial_model_for_weight_conversion"
            )
        if config.get("bias", "none") != "none" or config.get("lora_bias"):
            raise UnsupportedError(f"{path}: biases in the adapter are not supported")
        _check_numbers(config, path)
        return config

    def _scaling(self, module: str, rank: int) -> float:
        alpha = _pattern_value(self._config.get("alpha_pattern"), self._paths[module])
        if alpha is None:
            alpha = self._config["lora_alpha"]
        return float(alpha) / (rank**0.5 if self._config.get("use_rslora") else rank)

    def merge(self, name: str, weight: torch.Tensor) -> torch.Tensor:
        """The adapted weight.

        Args:
            name: base-model name such as ``layers.0.self_attn.q_proj.weight``.
            weight: as stored.

        Returns:
            In float32 where the adapter changes it (rounded once, later), else as given.

        Raises:
            CheckpointError: a factor is missing or does not fit.
        """
        module, _, kind = name.rpartition(".")
        factors = self._factors.get(module)
        if factors is None or kind != "weight" or weight.ndim != 2:
            return weight
        if set(factors) != {"A", "B"}:
            raise CheckpointError(
                f"{self.folder / ADAPTER_WEIGHTS}: {module} has only factor {next(iter(factors))}"
            )
        path = self._paths[module]
        rank = _pattern_value(self._config.get("rank_pattern"), path) or self._config["r"]
        a = self._weights.take(factors["A"], (rank, weight.shape[1])).float()
        b = self._weights.take(factors["B"], (weight.shape[0], rank)).float()
        self._merged.add(module)
        return weight.float() + self._scaling(module, rank) * (b @ a)

    def refuse_unmerged(self) -> None:
        """Refuse factors of modules that the decoder does not have.

        Raises:
            CheckpointError: naming the first one.
        """
        rest = sorted(set(self._factors) - self._merged)
        if rest:
            raise CheckpointError(
                f"{self.folder / ADAPTER_WEIGHTS}: adapts {rest[0]}, which the decoder has not"
            )


def _check_numbers(config: dict[str, Any], path: Path) -> None:
    """Refuse ranks and alphas that are no numbers, and patterns that can not be matched."""
    for key, patterns in (("r", "rank_pattern"), ("lora_alpha", "alpha_pattern")):
        values = config.get(patterns) or {}
        if not isinstance(values, dict):
            raise CheckpointError(f"{path}: {patterns} is {values!r}, expected an object")
        for name, value in ((key, config.get(key)), *values.items()):
            number = isinstance(value, int if key == "r" else (int, float))
            if not number or isinstance(value, bool) or value <= 0:
                raise CheckpointError(f"{path}: {name} is {value!r}, expected a positive number")
        for pattern in values:
            try:
                re.compile(pattern)
            except re.error as error:
                raise CheckpointError(f"{path}: {patterns} has {pattern!r}: {error}") from None


def _pattern_value(patterns: dict[str, Any] | None, module: str) -> Any:
    """The value of the first pattern that matches the module's path, as peft matches them."""
    for pattern, value in (patterns or {}).items():
        if re.match(rf"(.*\.)?({pattern})$", module):
            return value
    return None
