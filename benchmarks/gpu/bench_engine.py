"""A decode step of a whole model: random weights of Qwen3-30B-A3B and Llama-3-8B, 1k of context.

    step          one replay of the engine's decoder, from token ids to float32 logits
    served_step   the same as the engine's runner does it, by the host's clock: metadata, one copy
                  to the device, the replay of a captured graph, greedy tokens, one copy back

Adapters are distinct, of rank 16 or of 8, 16 and 64 in turn, on the attention's projections of
Qwen3-30B-A3B and on all linears of Llama-3-8B; there are 64 slots for them, however many are used.
Useful bytes are the floor: the weights that are read (of experts, as many as are expected of random
routing), the keys and values of every context, and the pages of every adapter. The peer `own step
without adapters` is the same step, so its ratio is the retention.

The error is that of two layers of the same shape in float32, against torch's operators.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import lru_cache

import torch
from benchmarks.gpu.engine_model import (
    BLOCK_SIZE,
    Adapters,
    Base,
    Load,
    adapted_sites,
    create_adapters,
    create_base,
    create_batch,
    create_plan,
)
from benchmarks.gpu.harness import Case, Create, Setting, relative_error
from benchmarks.gpu.judges import OWN_STEP
from benchmarks.gpu.model_shapes import LLAMA_3_8B, QWEN3_30B_A3B, RANKS, Model
from torch import Tensor

from weft.engine.cuda_runner import CudaRunner
from weft.engine.model.config import create_model_config
from weft.engine.runner import Runner
from weft.engine.slot_adapters import SlotAdapters
from weft_adapters.sites import BaseSpec
from weft_kernels.cuda.configs import Launch
from weft_kernels.cuda.timing import free_memory

MODELS = (QWEN3_30B_A3B, LLAMA_3_8B)
NUM_SLOTS, CONTEXT = 64, 1024
# requests and distinct adapters, by importance
LOADS = (
    (64, 64), (64, 0), (64, 8), (8, 8), (1, 1), (64, 1), (64, 32), (32, 32), (32, 0), (8, 0), (1, 0)
)  # fmt: skip
SERVED = ((64, 64), (64, 0))


def cases(setting: Setting) -> Iterator[Case]:
    """A model's after one another: to make one takes long. So does it to capture all steps that a
    runner may have, so that these come last."""
    if setting.is_tiny:
        for model in MODELS:
            yield _step(setting, model, Load(3, 20, 2), "16")
        yield _step(setting, QWEN3_30B_A3B, Load(2, 20, 0), "16")
        yield _step(setting, LLAMA_3_8B, Load(3, 20, 3), "mixed")
        yield _served(setting, LLAMA_3_8B, Load(2, 20, 1))
        return
    for model in MODELS:
        for num_requests, num_adapters in LOADS:
            yield _step(setting, model, Load(num_requests, CONTEXT, num_adapters), "16")
        yield _step(setting, model, Load(64, CONTEXT, 64), "mixed")
    for model in reversed(MODELS):
        for num_requests, num_adapters in SERVED:
            yield _served(setting, model, Load(num_requests, CONTEXT, num_adapters))


def _step(setting: Setting, model: Model, load: Load, rank: str) -> Case:
    def launch(load: Load) -> Launch:
        world = _world(setting, model)
        batch = create_batch(world.base, load, world.adapters(rank), setting.device)
        return lambda: world.base.decoder.forward(batch, world.base.kv)

    return _case("step", setting, model, load, rank, launch, _error)


def _served(setting: Setting, model: Model, load: Load) -> Case:
    def launch(load: Load) -> Launch:
        world = _world(setting, model)
        chosen = world.adapters("16").choose(load)
        runner, plan = world.runner("16"), create_plan(world.base, load, chosen)
        return lambda: runner.launch(plan, chosen).collect()

    case = _case("served_step", setting, model, load, "16", launch, _served_error)
    return replace(case, clock="host")


def _case(
    operator: str, setting: Setting, model: Model, load: Load, rank: str,
    launch: Callable[[Load], Launch], error: Callable[[Setting, Model, bool], float],
) -> Case:  # fmt: skip
    peers: dict[str, Create] = {}
    if load.num_adapters:
        peers[OWN_STEP] = lambda: launch(replace(load, num_adapters=0))
    return Case(
        operator,
        {
            "model": model.name,
            "requests": load.num_requests,
            "context": load.context,
            "adapters": load.num_adapters,
            "rank": rank if load.num_adapters else "0",
            "sites": model.sites,
        },
        lambda: launch(load),
        useful_bytes=_useful_bytes(setting, model, load, rank),
        error=lambda: error(setting, model, load.num_adapters > 0),
        tolerance=1e-3,
        peers=peers,
        clock="step",
    )


class _World:
    """A model, and the adapters and the runner that were made last: two models, or two pools, are
    too much for a device's memory."""

    def __init__(self, setting: Setting, model: Model) -> None:
        self._setting, self._model = setting, model
        self._made: tuple[str, Adapters] | None = None
        self._runner: CudaRunner | None = None
        num_tokens = 2 * 20 * 3 if setting.is_tiny else 64 * CONTEXT
        kernels = "triton" if setting.is_tiny else "auto"
        self.base = create_base(model.raw(setting), setting, num_tokens + BLOCK_SIZE, kernels)

    def is_of(self, setting: Setting, model: Model) -> bool:
        return (self._setting, self._model) == (setting, model)

    def adapters(self, rank: str) -> Adapters:
        if self._made is None or self._made[0] != rank:
            self._made = self._runner = None
            free_memory()  # a runner and its graphs refer to each other
            num = 3 if self._setting.is_tiny else NUM_SLOTS
            has_all = self._model.has_all_sites
            made = create_adapters(self.base, self._setting, has_all, num, RANKS[rank])
            self._made = rank, made
        return self._made[1]

    def runner(self, rank: str) -> CudaRunner:
        """With its steps captured, as a server has them before its first request."""
        adapters = self.adapters(rank)
        if self._runner is None:
            num = 3 if self._setting.is_tiny else 64
            self._runner = _create_runner(self.base, adapters, num)
        return self._runner


_worlds: list[_World] = []


def _world(setting: Setting, model: Model) -> _World:
    if not (_worlds and _worlds[0].is_of(setting, model)):
        _worlds.clear()
        free_memory()
        _worlds.append(_World(setting, model))
    return _worlds[0]


def _create_runner(base: Base, adapters: Adapters, max_running: int) -> CudaRunner:
    assert isinstance(adapters.slots, SlotAdapters)
    runner = CudaRunner(
        base.decoder, base.kv, adapters.slots, BLOCK_SIZE,
        max_rows=max_running, max_running=max_running, max_len=base.decoder.max_model_len,
    )  # fmt: skip
    runner.warm_up()
    return runner


def _useful_bytes(setting: Setting, model: Model, load: Load, rank: str) -> int:
    raw = model.raw(setting)
    config, spec = create_model_config(raw), BaseSpec.from_config(raw, "random")
    hidden, size = config.hidden_size, setting.dtype.itemsize
    attention = hidden * (2 * config.q_size + 2 * config.kv_size)
    numbers = hidden * config.vocab_size + config.num_layers * attention
    for i in range(config.num_layers):
        if i not in config.moe_layers:
            numbers += 3 * hidden * config.intermediate_size
            continue
        missed = (1 - config.num_experts_per_tok / config.num_experts) ** load.num_requests
        num_hit = round(config.num_experts * (1 - missed))
        numbers += hidden * config.num_experts
        numbers += num_hit * 3 * hidden * config.moe_intermediate_size
    numbers += 2 * config.num_layers * config.kv_size * load.num_requests * load.context
    ranks = sum(RANKS[rank][i % len(RANKS[rank])] for i in range(load.num_adapters))
    for site in adapted_sites(spec, model.has_all_sites):
        numbers += ranks * sum(spec.shape(site))
    return size * numbers


# ---- errors, which no load and rank has a share in ----


@lru_cache
@torch.inference_mode()
def _error(setting: Setting, model: Model, has_adapters: bool) -> float:
    def logits(base: Base, load: Load, adapters: Adapters, is_ours: bool) -> Tensor:
        return base.decoder.forward(create_batch(base, load, adapters, setting.device), base.kv)

    return _compare(setting, model, has_adapters, logits)


@lru_cache
@torch.inference_mode()
def _served_error(setting: Setting, model: Model, has_adapters: bool) -> float:
    """Ours from captured steps."""

    def logits(base: Base, load: Load, adapters: Adapters, is_ours: bool) -> Tensor:
        chosen = adapters.choose(load)
        plan = create_plan(base, load, chosen)
        runner: Runner
        if is_ours:
            runner = _create_runner(base, adapters, load.num_requests)
        else:
            runner = Runner(base.decoder, base.kv, adapters.slots, BLOCK_SIZE)
        rows = runner.logits(plan, chosen)
        return torch.stack([rows[item.req] for item in plan.scheduled])

    return _compare(setting, model, has_adapters, logits)


def _compare(
    setting: Setting, model: Model, has_adapters: bool,
    logits: Callable[[Base, Load, Adapters, bool], Tensor],
) -> float:  # fmt: skip
    exact = replace(setting, dtype=torch.float32)
    raw = {**model.raw(setting), "num_hidden_layers": 2}
    raw["vocab_size"] = min(raw["vocab_size"], 1024)
    load, found = Load(4, 40, 3 if has_adapters else 0), []
    for kernels in ("triton", "torch"):
        torch.manual_seed(0)
        base = create_base(raw, exact, load.num_requests * 48, kernels)
        adapters = create_adapters(base, exact, model.has_all_sites, 3, RANKS["mixed"])
        found.append(logits(base, load, adapters, kernels == "triton"))
    return relative_error(*found)
