"""LoRA at the sites of Llama-3-8B and Qwen3-30B-A3B, beside plain torch and others' kernels.

    lora          the adapters' part alone, added to what the base GEMM left (see `lora_problem.py`)
    lora_linear   base GEMM and adapters together, cuBLAS and both halves beside the K-tail form
    segments      the step's metadata, once for all layers

What is built once per step (segments, routes, masks) is outside the timed region, for everybody.
The order is by importance: a run that ends early has the rows that matter most.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator

import torch
from benchmarks.gpu.harness import Case, Create, Setting, relative_error
from benchmarks.gpu.lora_peers import find_peers
from benchmarks.gpu.lora_problem import BASELINES, Problem, Shape, create_problem
from benchmarks.gpu.model_shapes import LLAMA_3_8B, QWEN3_30B_A3B, RANKS

from weft_kernels.cuda.configs import Launch
from weft_kernels.cuda.lora import FORMS, adapted_linear, add_lora_, choose_form
from weft_kernels.cuda.segments import create_segments, fill_segments_, tile_rows
from weft_kernels.cuda.tail_pages import create_tail_pages
from weft_kernels.linear import create_linear_weight
from weft_kernels.popularity import assign_adapters

# in, and the widths that share it
SITES: dict[str, tuple[int, tuple[int, ...]]] = {
    "llama-3-8b qkv": (4096, (4096, 1024, 1024)),
    "llama-3-8b o": (4096, (4096,)),
    "llama-3-8b gate_up": (4096, (14336, 14336)),
    "llama-3-8b down": (14336, (4096,)),
    "qwen3-30b-a3b qkv": (2048, (4096, 512, 512)),
    "qwen3-30b-a3b o": (4096, (2048,)),
}
TINY_SITE = ("tiny qkv", 64, (48, 16, 16))
TOKENS = (64, 1, 8, 16, 32, 128, 256)
ADAPTERS = (64, 8, 1, 4, 16, 32)
PREFILL = ((2048, 1), (2048, 8), (2048, 64))
# rounding of h and y to bfloat16
TOLERANCE = 2e-2


def cases(setting: Setting) -> Iterator[Case]:
    if setting.is_tiny:
        yield _lora(setting, Shape(*TINY_SITE, 5, 3, (4, 16)), "mixed")
        yield _lora(setting, Shape(*TINY_SITE, 24, 3, (8,)), "8")
        yield _linear(setting, Shape(*TINY_SITE, 24, 3, (8,)))
        yield _segments(setting, 24, 3)
        return
    for num_tokens, num_adapters in ((64, 64), (2048, 8)):
        yield _segments(setting, num_tokens, num_adapters)
    points = [(t, n) for t in TOKENS for n in ADAPTERS if n <= t]
    for name, ranks in RANKS.items():
        for model in (LLAMA_3_8B, QWEN3_30B_A3B):
            for site in (site for site in SITES if site.startswith(model.name)):
                for num_tokens, num_adapters in points:
                    shape = Shape(site, *SITES[site], num_tokens, num_adapters, ranks)
                    yield _lora(setting, shape, name)
                    if name == "16" and num_tokens in (16, 64, 128):
                        yield _linear(setting, shape)
    for num_tokens, num_adapters in PREFILL:
        for site in SITES:
            yield _lora(setting, Shape(site, *SITES[site], num_tokens, num_adapters, (16,)), "16")


def _lora(setting: Setting, shape: Shape, rank: str) -> Case:
    """In the form that is chosen for the shape; the other one is among the peers where small."""
    form = choose_form(shape.num_tokens, shape.num_in)

    def ours(form: str) -> Callable[[Problem], Launch]:
        def prepare(problem: Problem) -> Launch:
            y, x, table = problem.y, problem.x, problem.table
            return lambda: add_lora_(y, x, problem.group, table, problem.segments, form=form)

        return prepare

    others = {f: ours(f) for f in ("pair", "fused") if f != form and shape.num_tokens <= 16}
    # a loop or a gather over the rows of a prompt takes too long to be worth the time
    is_decode = shape.num_tokens <= max(TOKENS)
    baselines = {n: b for n, b in BASELINES.items() if is_decode or n == "masked dense"}
    peers = {
        name: _create(setting, shape, prepare) for name, prepare in {**others, **baselines}.items()
    }
    for name, peer in find_peers(setting.peers).items():
        # others' kernels take half precision only
        dtype = torch.float16 if setting.is_tiny else setting.dtype
        peers[name] = _create(setting, shape, peer, dtype=dtype)

    def error() -> float:
        problem = create_problem(setting, shape)
        ours(form)(problem)()
        return relative_error(problem.y, problem.delta())

    return Case(
        "lora",
        _key(shape) | {"rank": rank},
        _create(setting, shape, ours(form)),
        useful_bytes=shape.num_bytes(setting.dtype.itemsize),
        flops=shape.num_flops,
        error=error,
        tolerance=TOLERANCE,
        config={"TILE_ROWS": tile_rows(shape.num_tokens), "FUSED": int(form == "fused")},
        peers=peers,
    )


def _key(shape: Shape) -> dict[str, int | str]:
    return {"site": shape.site, "tokens": shape.num_tokens, "adapters": shape.num_adapters}


def _create(
    setting: Setting,
    shape: Shape,
    prepare: Callable[[Problem], Launch],
    *,
    dtype: torch.dtype | None = None,
) -> Create:
    """Fresh inputs each time; the first is checked, so that nobody is timed on a wrong result."""
    checked: list[float] = []

    def create() -> Launch:
        problem = create_problem(setting, shape, dtype=dtype)
        launch = prepare(problem)
        if not checked:
            launch()
            error = relative_error(problem.y, problem.delta())
            if not error <= TOLERANCE:
                raise ValueError(f"the result is off by {error:.3g}")
            checked.append(error)
        return launch

    return create


def _linear(setting: Setting, shape: Shape) -> Case:
    """The K-tail form, with the base GEMM in it."""
    num_out = sum(shape.widths)

    def inputs() -> tuple[Problem, torch.Tensor]:
        w = torch.randn(shape.num_in, num_out, device=setting.device).to(setting.dtype)
        return create_problem(setting, shape), w.mul_(shape.num_in**-0.5)

    def run(form: str, problem: Problem, w: torch.Tensor) -> Callable[[], torch.Tensor]:
        weight = create_linear_weight(w)
        pages = create_tail_pages(problem.table, problem.segments)
        return lambda: adapted_linear(
            problem.x, weight, None, problem.group, problem.table, problem.segments,
            form=form, tail_pages=pages,
        )  # fmt: skip

    def create(form: str) -> Create:
        def prepare() -> Launch:
            call = run(form, *inputs())

            def launch() -> None:
                call()

            return launch

        return prepare

    def base() -> Launch:
        problem, w = inputs()
        weight = create_linear_weight(w)

        def launch() -> None:
            weight.apply(problem.x, None)

        return launch

    def error() -> float:
        problem, w = inputs()
        return relative_error(
            run("tail", problem, w)(), problem.x.double() @ w.double() + problem.delta()
        )

    # W in, and y is not read
    num_bytes = shape.num_bytes(setting.dtype.itemsize)
    num_bytes += setting.dtype.itemsize * num_out * (shape.num_in - shape.num_tokens)
    return Case(
        "lora_linear",
        _key(shape),
        create("tail"),
        useful_bytes=num_bytes,
        flops=shape.num_flops + 2 * shape.num_tokens * shape.num_in * num_out,
        error=error,
        tolerance=TOLERANCE,
        peers={f"base, {form}": create(form) for form in FORMS if form != "tail"}
        | {"base alone": base},
    )


def _segments(setting: Setting, num_tokens: int, num_adapters: int) -> Case:
    rows = assign_adapters("uniform", num_tokens, num_adapters, seed=0)

    def create() -> Launch:
        slots = torch.tensor(rows, dtype=torch.int32).to(setting.device)
        segments = create_segments(slots, num_adapters)
        return lambda: fill_segments_(segments, slots)

    def error() -> float:
        slots = torch.tensor(rows, dtype=torch.int32).to(setting.device)
        want = torch.tensor(sorted(range(num_tokens), key=lambda row: rows[row]))
        return relative_error(create_segments(slots, num_adapters).rows_P, want)

    def create_sort() -> Launch:
        slots = torch.tensor(rows, dtype=torch.int32).to(setting.device)

        def launch() -> None:
            torch.sort(slots, stable=True)

        return launch

    return Case(
        "segments",
        {"tokens": num_tokens, "adapters": num_adapters},
        create,
        # slots in; rows and runs of places out; the lists are bounded by the same
        useful_bytes=4 * 3 * num_tokens,
        error=error,
        tolerance=0.0,
        peers={"torch: sort alone": create_sort},
    )
