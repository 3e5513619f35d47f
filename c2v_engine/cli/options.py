"""Options that several commands share, and the model they choose."""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum
from typing import TYPE_CHECKING, Annotated, Any

import typer

from c2v_engine.cli.app import fail

if TYPE_CHECKING:
    from c2v_engine import Causal2Vec


class Precision(str, Enum):
    """What the embeddings are written in."""

    FLOAT32 = "float32"
    FLOAT16 = "float16"
    BFLOAT16 = "bfloat16"
    INT8 = "int8"
    UINT8 = "uint8"
    BINARY = "binary"
    UBINARY = "ubinary"


ModelOption = Annotated[
    str | None, typer.Option("--model", "-m", help="Model folder or Hub name; else the default.")
]
ColumnOption = Annotated[
    str | None, typer.Option(help="Column with the texts; else 'text' (a .txt file has none).")
]
PromptNameOption = Annotated[str | None, typer.Option(help="A prompt named in the model.")]
DtypeOption = Annotated[
    str,
    typer.Option(help="auto, float32, bfloat16, float16; float8 on a GPU, int8 on a CPU."),
]
DeviceOption = Annotated[str, typer.Option(help="auto, cpu, cuda, cuda:1, ...")]
DevicesOption = Annotated[
    str | None,
    typer.Option(help="Several, a process each: GPU numbers or names, as in 0,1,2, or all."),
]
BackendOption = Annotated[str, typer.Option(help="Attention backend; see c2v doctor.")]
BatchTokensOption = Annotated[
    int | None, typer.Option(min=1, help="Most tokens computed together.")
]
TruncateOption = Annotated[
    int | None, typer.Option(min=1, help="Dimensions to keep, the leading ones of each half.")
]
QuietOption = Annotated[bool, typer.Option("--quiet", "-q", help="Print nothing but problems.")]


@dataclass(frozen=True)
class EngineOptions:
    """The engine that a command's options choose; the fields are those options."""

    model: str | None = None
    device: str = "auto"
    dtype: str = "auto"
    attention: str = "auto"
    devices: str | None = None
    deterministic: bool = False

    @property
    def device_names(self) -> list[str | int] | None:
        """The devices of ``--devices``: numbers and names; None where it was not given."""
        if self.devices is None:
            return None
        if self.devices.strip() == "all":
            import torch

            count = torch.cuda.device_count()
            if count == 0:
                fail("--devices all: torch finds no CUDA GPU here")
            return list(range(count))
        names = [name.strip() for name in self.devices.split(",")]
        return [int(name) if name.isdecimal() else name for name in names]

    def load(self) -> Causal2Vec:
        """Load the model."""
        from c2v_engine import Causal2Vec

        options: dict[str, Any] = {}
        if self.devices is not None:
            options["devices"] = self.device_names
        if self.deterministic:
            options["deterministic"] = True
        return Causal2Vec.from_pretrained(
            self.model, device=self.device, dtype=self.dtype, attention=self.attention, **options
        )


def load_model(
    model: str | None, device: str, dtype: str, attention: str, devices: str | None = None
) -> Causal2Vec:
    """Load the model that a command's options name."""
    return EngineOptions(model, device, dtype, attention, devices).load()
