"""Importing the package is light, and the public name is there."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest

HEAVY = ("torch", "transformers", "tokenizers", "safetensors", "numpy", "pyarrow", "rich", "typer")


def loaded_after(statement: str) -> set[str]:
    """The modules that a fresh interpreter holds after a statement and did not hold before."""
    script = (
        "import json, sys\n"
        "before = set(sys.modules)\n"
        f"{statement}\n"
        "print(json.dumps(sorted(set(sys.modules) - before)))\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, timeout=120, check=True
    )
    return set(json.loads(done.stdout.splitlines()[-1]))


@pytest.mark.parametrize("module", ["c2v_engine", "c2v_engine.errors", "c2v_engine._version"])
def test_importing_the_package_loads_nothing_heavy(module):
    loaded = loaded_after(f"import {module}")
    assert "c2v_engine" in loaded
    assert not loaded & set(HEAVY)


def test_the_command_line_is_imported_without_torch():
    loaded = loaded_after("import c2v_engine.cli")
    assert "c2v_engine.cli" in loaded
    assert not loaded & {"torch", "transformers", "tokenizers", "pyarrow"}


def test_everything_public_can_be_imported():
    import c2v_engine

    assert set(c2v_engine.__all__) == {"Causal2Vec", "__version__"}
    for name in c2v_engine.__all__:
        assert getattr(c2v_engine, name)
    assert c2v_engine.__version__.count(".") == 2


def test_an_unknown_name_is_an_attribute_error():
    import c2v_engine

    with pytest.raises(AttributeError, match="NoSuchThing"):
        _ = c2v_engine.NoSuchThing


def test_the_public_name_embeds_without_any_optional_package():
    loaded = loaded_after(
        "from c2v_engine import Causal2Vec\n"
        "import c2v_engine.engine\n"
        "assert Causal2Vec is c2v_engine.engine.Causal2Vec\n"
        "assert Causal2Vec.from_pretrained(device='cpu').encode('one text').shape == (512,)"
    )
    assert {"torch", "transformers"} <= loaded
    assert not loaded & {"peft", "sentence_transformers", "flash_attn", "pyarrow"}
