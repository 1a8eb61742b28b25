"""What an engine says of itself to whoever watches: counts, and where its adapters are."""

from __future__ import annotations

from weft.engine.build import BuiltEngine
from weft.engine.metrics import take_observations
from weft.messages import AdapterLevel, AdapterPlacement, EngineStats
from weft_adapters.states import AdapterState
from weft_adapters.tiers import AdapterTiers

_LEVELS: dict[AdapterState, AdapterLevel] = {
    AdapterState.DEVICE: "gpu",
    AdapterState.DRAINING: "gpu",
    AdapterState.HOST: "cpu",
    AdapterState.LOADING: "cpu",
    AdapterState.DISK: "disk",
}


def take_stats(built: BuiltEngine, num_waiting: int, *, drain: bool) -> EngineStats:
    """The counters now; `drain` empties the histogram buffers."""
    scheduler, counters, pool = built.engine.scheduler, built.engine.counters, built.pool
    waiting, running = list(scheduler.waiting), list(scheduler.running)
    observed = take_observations(counters, drain)
    observed["adapter_load_time"] = built.tiers.take_load_times(drain=drain)
    return EngineStats(
        num_running=len(running),
        num_waiting=num_waiting,
        num_blocks_total=scheduler.blocks.num_usable,
        num_blocks_free=scheduler.blocks.num_free,
        num_pages_total=pool.num_pages,
        num_pages_free=pool.num_free_pages,
        num_prompt_tokens=counters.num_prompt_tokens,
        num_generation_tokens=counters.num_generation_tokens,
        num_preemptions=scheduler.num_preemptions,
        num_pauses=scheduler.num_pauses,
        num_cached_prompt_tokens=counters.num_cached_prompt_tokens,
        running_adapters=tuple(sorted({r.adapter_digest for r in running if r.adapter_digest})),
        waiting_adapters=tuple(sorted({r.adapter_digest for r in waiting if r.adapter_digest})),
        adapter_states={d: str(s) for d, s in built.tiers.states().items()},
        histograms=observed,
    )


def list_placements(tiers: AdapterTiers, adapter_digest: str | None) -> list[AdapterPlacement]:
    """Of all, or of one. Those that are fetched are "remote" as yet, wherever they come from."""
    found = tiers.placements() if adapter_digest is None else [tiers.placement(adapter_digest)]
    return [
        AdapterPlacement(
            placement.digest,
            str(placement.state),
            _LEVELS.get(placement.state, "remote"),
            placement.num_references,
            placement.rank,
            placement.num_bytes,
            placement.is_pinned,
            placement.failure,
        )
        for placement in found
    ]
