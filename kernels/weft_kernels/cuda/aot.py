"""Ahead-of-time compilation for sm_90: what ptxas makes of every kernel and configuration.

No device is needed, only Triton and the tools that it ships. An operator's module lists its
variants in `aot_variants()`; `python -m weft_kernels.cuda.aot [NAME ...]` compiles them and prints
one JSON line each. Kernels must not have been decorated for the interpreter.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import pkgutil
import re
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict, dataclass, replace
from functools import cache
from importlib import import_module
from typing import Any

import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

import weft_kernels.cuda

TARGET = GPUTarget("cuda", 90, 32)
# of the 228 KiB of an SM, what one block may use
MAX_SHARED_BYTES = 232_448

_MMA = re.compile(r"\b(mma\.sync|wgmma\.mma_async)\b")
_VECTOR_LOAD = re.compile(
    r"\bld\.global\S*\.(v4\.\w32|v2\.\w64|v8\.\w\w)\b"
    r"|\bcp\.async\.c[ag]\.shared\.global\b[^;]*\], (16|0x10)\b"
    r"|\bcp\.async\.bulk\b"
)
_RESOURCES = re.compile(r"REG:(\d+) STACK:(\d+) SHARED:\d+ LOCAL:(\d+)")


@dataclass(frozen=True, slots=True)
class AotVariant:
    """A kernel with everything that decides its machine code.

    name: "operator/what-it-is"; signature: each argument's Triton type, such as "*bf16", "i32" or
    "constexpr"; constants: the constexprs, and None for a pointer that is not given;
    divisible_by_16: the pointers and integers that launches make with that property.
    """

    name: str
    kernel: Any
    signature: Mapping[str, str]
    constants: Mapping[str, Any]
    divisible_by_16: Sequence[str]
    num_warps: int
    num_stages: int
    needs_mma: bool = False
    needs_vector_loads: bool = True
    launch_pdl: bool = False


@dataclass(frozen=True, slots=True)
class AotReport:
    """What came out for a variant; `error` if nothing did."""

    name: str
    error: str | None = None
    registers: int = 0
    stack_bytes: int = 0
    local_bytes: int = 0
    shared_bytes: int = 0
    has_mma: bool = False
    has_vector_loads: bool = False
    waits_for_dependency: bool = False

    def faults(self, variant: AotVariant) -> list[str]:
        """What the variant promises and the machine code does not keep, a sentence each."""
        if self.error is not None:
            return [f"it does not compile: {self.error}"]
        faults = []
        if self.stack_bytes or self.local_bytes:
            faults.append(
                f"it spills: {self.stack_bytes} bytes of stack, {self.local_bytes} of local memory"
            )
        if self.shared_bytes > MAX_SHARED_BYTES:
            faults.append(f"it needs {self.shared_bytes} bytes of shared memory")
        if variant.needs_mma and not self.has_mma:
            faults.append("it has no tensor-core instruction")
        if variant.needs_vector_loads and not self.has_vector_loads:
            faults.append("it has no 16-byte load from global memory")
        if variant.launch_pdl and not self.waits_for_dependency:
            faults.append("it never waits for the kernel that it is launched beside")
        return faults


def compile_variant(variant: AotVariant) -> AotReport:
    """Compile for `TARGET` and look at the PTX and the cubin.

    ValueError where the variant does not fit its kernel's arguments.
    """
    source = _source(variant)
    options = {
        "num_warps": variant.num_warps,
        "num_stages": variant.num_stages,
        "launch_pdl": variant.launch_pdl,
    }
    compiled = triton.compile(source, target=TARGET, options=options)
    ptx = compiled.asm["ptx"]
    registers, stack_bytes, local_bytes = _resources(compiled.asm["cubin"])
    return AotReport(
        variant.name,
        registers=registers,
        stack_bytes=stack_bytes,
        local_bytes=local_bytes,
        shared_bytes=compiled.metadata.shared,
        has_mma=_MMA.search(ptx) is not None,
        has_vector_loads=_VECTOR_LOAD.search(ptx) is not None,
        waits_for_dependency="griddepcontrol.wait" in ptx,
    )


def _source(variant: AotVariant) -> ASTSource:
    if not isinstance(variant.kernel, triton.JITFunction):
        raise ValueError(f"{variant.name}: the kernel was decorated for the interpreter")
    arguments = list(variant.kernel.arg_names)
    given = variant.signature.keys() | variant.constants.keys()
    unknown = (given | set(variant.divisible_by_16)) - set(arguments)
    if unknown or given != set(arguments):
        wrong = sorted(unknown or set(arguments) - given)
        raise ValueError(
            f"{variant.name}: {', '.join(wrong)} "
            + ("are no arguments of the kernel" if unknown else "have no type")
        )
    signature = {
        name: "constexpr" if name in variant.constants else variant.signature[name]
        for name in arguments
    }
    without = [n for n in arguments if signature[n] == "constexpr" and n not in variant.constants]
    if without:
        raise ValueError(f"{variant.name}: the constants {', '.join(without)} have no value")
    # a pointer that is None has no alignment to promise
    aligned = [name for name in variant.divisible_by_16 if signature[name] != "constexpr"]
    attributes = {(arguments.index(name),): [["tt.divisibility", 16]] for name in aligned}
    return ASTSource(variant.kernel, signature, dict(variant.constants), attributes)


def _resources(cubin: bytes) -> tuple[int, int, int]:
    """Registers, bytes of stack and bytes of local memory of a thread."""
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(cubin)
        file.flush()
        text = subprocess.run(
            [triton.knobs.nvidia.cuobjdump.path, "-res-usage", file.name],
            capture_output=True, text=True, check=True,
        ).stdout  # fmt: skip
    found = _RESOURCES.search(text)
    if found is None:
        raise RuntimeError(f"cuobjdump says nothing of resources: {text!r}")
    registers, stack_bytes, local_bytes = map(int, found.groups())
    return registers, stack_bytes, local_bytes


def operator_modules() -> list[Any]:
    """Every module of the package, imported, in the order of their names."""
    path = weft_kernels.cuda.__path__
    names = sorted(module.name for module in pkgutil.iter_modules(path))
    return [import_module(f"weft_kernels.cuda.{name}") for name in names]


@cache
def find_variants() -> Mapping[str, AotVariant]:
    """The variants of all operators by name; ValueError for a name that comes twice."""
    variants: dict[str, AotVariant] = {}
    for module in operator_modules():
        for variant in module.aot_variants() if hasattr(module, "aot_variants") else ():
            if variant.name in variants:
                raise ValueError(f"two variants are called {variant.name}")
            variants[variant.name] = variant
    return variants


def machine_code_key(variant: AotVariant) -> str:
    """Equal for variants that compile to the same machine code."""
    return repr(
        (
            variant.kernel.__module__,
            variant.kernel.__name__,
            sorted(variant.signature.items()),
            sorted((name, str(value)) for name, value in variant.constants.items()),
            sorted(variant.divisible_by_16),
            variant.num_warps,
            variant.num_stages,
            variant.launch_pdl,
        )
    )


def report(name: str) -> AotReport:
    """`compile_variant` of a variant by name, with what it raises as the report's error."""
    variant = find_variants()[name]
    # line tables take a seventh of the time and change no instruction
    triton.knobs.compilation.disable_line_info = True
    try:
        return compile_variant(variant)
    except Exception as error:  # whatever the compiler raises is that variant's result
        return AotReport(name, error=f"{type(error).__name__}: {error}")


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(prog="weft_kernels.cuda.aot", description=__doc__)
    parser.add_argument("names", nargs="*", help="variants to compile; all without")
    parser.add_argument("--workers", type=int, default=2)
    options = parser.parse_args(arguments)
    variants = find_variants()
    unknown = set(options.names) - variants.keys()
    if unknown:
        parser.error(f"no variants are called {', '.join(sorted(unknown))}")
    alike: dict[str, list[AotVariant]] = {}
    for name in options.names or variants:
        alike.setdefault(machine_code_key(variants[name]), []).append(variants[name])
    # LLVM does not survive a fork
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(options.workers, mp_context=context) as pool:
        results = pool.map(report, [group[0].name for group in alike.values()])
        for result, group in zip(results, alike.values(), strict=True):
            for variant in group:
                line = asdict(replace(result, name=variant.name))
                line["faults"] = result.faults(variant)
                sys.stdout.write(json.dumps(line) + "\n")
            sys.stdout.flush()


if __name__ == "__main__":
    main()
