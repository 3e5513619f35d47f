"""Compiles a kernel for a GPU that need not be there, and reads what became of it.

Registers, stack and shared memory are read from the machine code. Loads, stores and tensor-core
instructions are read one step before it, where each still has its place in the source: the
assembler takes them as they are, ``ld.global.v4.b32`` for ``LDG.E.128``. It is the assembler that
spills registers, into the stack.
"""

from __future__ import annotations

import re
import subprocess
import tempfile
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path

import triton
from aot_launches import Launch
from triton.backends.compiler import GPUTarget

__all__ = ["SHARED_MEMORY", "Code", "Tile", "compile_launch"]

KB = 1024
SHARED_MEMORY = {
    80: 163 * KB, 86: 99 * KB, 87: 163 * KB, 89: 99 * KB,
    90: 227 * KB, 100: 227 * KB, 103: 227 * KB, 120: 99 * KB,
}  # fmt: skip
"""The most that a block may have, in bytes, by compute capability (CUDA C++ Programming Guide)."""

WIDEST_LOAD = 16
_WARP = 32
_BITS = {"f8E4M3FN": 8, "f8E5M2": 8, "bf16": 16}
Place = tuple[str, int, int]


@dataclass(frozen=True)
class Tile:
    """What one load in the source reads in one program.

    Attributes:
        place: file, line and column in the source.
        shape: of the tile, () for a single value.
        dtype: of its elements, as Triton's intermediate language writes it.
        threads: of the program.
    """

    place: Place
    shape: tuple[int, ...]
    dtype: str
    threads: int

    @property
    def width(self) -> int:
        """The narrowest load in bytes that is not too narrow for it; 1 where any is right.

        Every thread takes its share of the tile by 16 bytes at once, or all of a smaller share.
        Integers are ids, positions and offsets, which begin anywhere and are a thousandth of what
        is read: loads of single ones are right.
        """
        if not self.shape or self.dtype.startswith("i"):
            return 1
        bits = _BITS.get(self.dtype) or int(self.dtype[1:])
        share = bits // 8
        for size in self.shape:
            share *= size
        share //= self.threads
        return min(WIDEST_LOAD, 1 << max(share, 1).bit_length() - 1)


@dataclass
class Code:
    """What became of a launch's kernel.

    Attributes:
        registers: of a thread.
        stack: bytes of a thread, spilled registers included.
        shared: bytes of a block.
        warps: of a block.
        stages: of a pipelined loop.
        loads: how many loads of each width in bytes, by place in the source.
        stores: how many stores of each width.
        tiles: what the source loads.
        products: matrix products of 16-bit or narrower operands in the source.
        tensor_cores: instructions that run on tensor cores, by name.
    """

    registers: int
    stack: int
    shared: int
    warps: int
    stages: int
    loads: dict[Place, Counter[int]] = field(default_factory=dict)
    stores: Counter[int] = field(default_factory=Counter)
    tiles: list[Tile] = field(default_factory=list)
    products: int = 0
    tensor_cores: Counter[str] = field(default_factory=Counter)

    @property
    def load_widths(self) -> Counter[int]:
        """How many loads of each width there are, wherever they stand."""
        return sum(self.loads.values(), Counter())

    def problems(self, capability: int) -> list[str]:
        """What is wrong with the code, in words; nothing where it is as it should be."""
        found = []
        if self.stack:
            found.append(f"a thread spills or keeps {self.stack} bytes on its stack")
        if self.shared > SHARED_MEMORY[capability]:
            found.append(
                f"{self.shared} bytes of shared memory; a block of sm_{capability} has "
                f"{SHARED_MEMORY[capability]}"
            )
        if self.products and not self.tensor_cores:
            found.append("a product of 16-bit matrices does not run on tensor cores")
        return found + self._narrow_loads()

    def _narrow_loads(self) -> list[str]:
        meant: dict[Place, int] = {}
        for tile in self.tiles:
            # A helper's load may be there for several callers' tiles: the widest decides.
            meant[tile.place] = max(meant.get(tile.place, 0), tile.width)
        found = []
        for file, line, column in sorted(meant.keys() | self.loads.keys()):
            place = (file, line, column)
            where, widths = f"{file}:{line}:{column}", self.loads.get(place, Counter())
            if place not in meant:
                found.append(f"{where}: {_widths(widths)} that no load in the source explains")
            elif not widths:
                found.append(f"{where}: the load was not found in the compiled code")
            elif min(widths) < meant[place]:
                found.append(f"{where}: {_widths(widths)} where {meant[place]} bytes are meant")
        return found


def _widths(widths: Counter[int]) -> str:
    return "loads of " + ", ".join(f"{n} bytes ({widths[n]}x)" for n in sorted(widths))


def compile_launch(launch: Launch) -> Code:
    """Compiles a launch's kernel for its GPU, as the launch itself would.

    Triton keeps what it compiled in its own cache, by the kernel's source, specialisation, options
    and release, so a kernel that did not change is not compiled again.
    """
    target = GPUTarget("cuda", launch.capability, _WARP)
    compiled = triton.compile(launch.source, target=target, options=dict(vars(launch.options)))
    code = Code(
        *_resources(compiled.asm["cubin"]),
        shared=compiled.metadata.shared,
        warps=compiled.metadata.num_warps,
        stages=compiled.metadata.num_stages,
    )
    _read_source(code, compiled.asm["ttir"])
    _read_loads(code, compiled.asm["llir"])
    _read_assembly(code, compiled.asm["ptx"])
    return code


def _resources(cubin: bytes) -> tuple[int, int]:
    """Registers, and bytes of stack and local arrays, of a thread."""
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(cubin)
        file.flush()
        command = [triton.knobs.nvidia.cuobjdump.path, "-res-usage", file.name]
        usage = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    # A helper that was not inlined is a function of its own.
    found = re.findall(r"REG:(\d+) STACK:(\d+).* LOCAL:(\d+)", usage)
    registers, stack, local = zip(*(map(int, numbers) for numbers in found), strict=True)
    return max(registers), sum(stack) + sum(local)


# ``%x = tt.load %pointer, %mask : tensor<1x4096x!tt.ptr<bf16>> loc(#loc12)``
_LOAD = re.compile(r" = tt\.load .* : (?:tensor<([0-9x]+)x)?!tt\.ptr<(\w+)>>? loc\((#\w+)\)")
_DOT = re.compile(r" = tt\.dot .* : tensor<[0-9x]+x(\w+)> \*")
_LOCATION = re.compile(r"^(#\w+) = loc\((.*)\)$", re.MULTILINE)


def _read_source(code: Code, ttir: str) -> None:
    """Finds loads and matrix products in Triton's intermediate language."""
    locations = dict(_LOCATION.findall(ttir))
    threads = code.warps * _WARP
    for shape, dtype, location in _LOAD.findall(ttir):
        sizes = tuple(int(size) for size in shape.split("x") if size)
        place = _place_in_ttir(location, locations)
        code.tiles.append(Tile(place, sizes, dtype, threads))
    code.products = sum(dtype not in ("f32", "f64") for dtype in _DOT.findall(ttir))


def _place_in_ttir(location: str, locations: dict[str, str]) -> Place:
    """The innermost of ``"f.py":8:4``, ``"name"(#x)`` or ``callsite(#x at #y)``."""
    text = locations[location]
    found = re.match(r'"([^"]+)":(\d+):(\d+)', text)
    if found:
        return Path(found[1]).name, int(found[2]), int(found[3])
    return _place_in_ttir(_found(r"#\w+", text)[0], locations)


# Triton writes its loads as inline assembly, into registers or straight into shared memory.
_ASSEMBLY = re.compile(r"ld\.global(?:\.[\w:]+?)*?(?:\.v(\d))?\.[bufs](\d+)\b")
_ASYNC = re.compile(r"cp\.async\.c[ag]\.shared\.global [^;]*?, (0x\w+)")
_PLAIN = re.compile(r" = load .*ptr addrspace\(1\)")
_DEBUG = re.compile(r"!dbg (!\d+)")
_METADATA = re.compile(r"^(!\d+) = (?:distinct )?!\w+\((.*)\)$", re.MULTILINE)


def _read_loads(code: Code, llir: str) -> None:
    """Finds the loads in LLVM's intermediate language; the assembler changes no width."""
    metadata = dict(_METADATA.findall(llir))
    for text in llir.splitlines():
        widths = [int(n or 1) * int(bits) // 8 for n, bits in _ASSEMBLY.findall(text)]
        widths += [int(size, 16) for size in _ASYNC.findall(text)]
        if widths:
            place = _place_in_llir(_found(_DEBUG, text)[1], metadata)
            code.loads.setdefault(place, Counter()).update(widths)
        elif _PLAIN.search(text):
            raise ValueError(f"a load of a kind that this tool can not read: {text.strip()}")


def _place_in_llir(name: str, metadata: dict[str, str]) -> Place:
    place = _found(r"line: (\d+), column: (\d+), scope: (!\d+)", metadata[name])
    file = _found(r"\bfile: (!\d+)", metadata[place[3]])[1]
    filename = _found(r'filename: "([^"]+)"', metadata[file])[1]
    return filename, int(place[1]), int(place[2])


def _found(pattern: str | re.Pattern[str], text: str) -> re.Match[str]:
    """The match of what the compiler always writes."""
    match = re.search(pattern, text)
    if match is None:
        raise ValueError(f"the compiler's output has no {pattern!r} in {text.strip()!r}")
    return match


_STORE = re.compile(r"\bst\.global(?:\.[\w:]+?)*?(?:\.v(\d))?\.[bufs](\d+)\b")
_TENSOR_CORE = re.compile(r"\b(mma\.sync|wgmma\.mma_async|tcgen05\.mma)\b")


def _read_assembly(code: Code, ptx: str) -> None:
    """Counts stores, and instructions of the tensor cores."""
    code.stores.update(int(n or 1) * int(bits) // 8 for n, bits in _STORE.findall(ptx))
    code.tensor_cores.update(_TENSOR_CORE.findall(ptx))
