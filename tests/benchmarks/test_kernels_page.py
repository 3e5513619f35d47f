"""docs/kernels.md has a section for every op, with what it moves, its launch and its figures."""

import re
from pathlib import Path

import pytest
from kernel_benchmark.catalogue import full_cases

from c2v_engine.kernels._ops import TRITON_FORMS
from c2v_engine.kernels._tiles import RowTile, element_tile, row_tile

ROOT = Path(__file__).resolve().parents[2]
PAGE = (ROOT / "docs" / "kernels.md").read_text(encoding="utf-8")
SECTIONS = {
    name: text
    for heading, text in re.findall(r"^## (`.*?)\n(.*?)(?=^## |\Z)", PAGE, re.MULTILINE | re.DOTALL)
    for name in re.findall(r"`(\w+)`", heading)
}


# What is launched without a Triton kernel: compiled, or a product of torch's.
WITHOUT_TRITON = {"dual_token_pool", "quantize_rows_int8", "linear_fp8", "linear_int8"}
OPS = {*TRITON_FORMS, *WITHOUT_TRITON}


@pytest.mark.parametrize("op", sorted(OPS))
def test_every_op_has_its_section(op):
    assert {"**Bytes:**", "**Launch:**", "**Figures:**"} <= set(
        re.findall(r"\*\*\w+:\*\*", SECTIONS[op])
    )


def test_no_section_is_of_an_op_that_is_gone():
    assert set(SECTIONS) == OPS


def test_the_tiles_are_those_of_the_launchers():
    found = re.findall(r"^\|([\d, ]+)\| (\d+) rows? x (\d+) \| (\d+) \|(.*)\|", PAGE, re.MULTILINE)
    assert len(found) == 5
    for widths, rows, columns, warps, element in found:
        for width in map(int, widths.split(",")):
            assert row_tile(width) == RowTile(int(rows), int(columns), int(warps))
            block = element_tile(width)
            assert element.strip() == f"{block.rows} rows x {block.columns}"


def test_the_bytes_of_the_pooling_goal_are_those_of_the_benchmark():
    case = next(case for case in full_cases() if case.op.name == "dual_token_pool")
    assert f"| {case.moved_bytes / 1e6:.0f} MB |" in PAGE
