"""Which adapters run, wait and are resident: what routers in front of several replicas go by.

`vllm:lora_requests_info` is read by the Gateway API's inference extension and llm-d,
`vllm:lora_adapter_loaded` is what vLLM has drafted for residency. Both name adapters by digests.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence

from prometheus_client.core import GaugeMetricFamily, Metric

from weft.messages import AdapterPlacement, EngineInfo, EngineStats

# of each kind of line; thousands of adapters on disk are no business of a scrape
MAX_ADAPTERS = 1000
_LEVELS = ("gpu", "cpu", "disk")


def adapter_families(
    stats: EngineStats, placements: Sequence[AdapterPlacement], info: EngineInfo
) -> Iterator[Metric]:
    """Of one engine, at one moment."""
    requests = GaugeMetricFamily(
        "vllm:lora_requests_info",
        "Adapters in the batch and waited for; the value is the time.",
        labels=("max_lora", "running_lora_adapters", "waiting_lora_adapters"),
    )
    requests.add_metric(
        (
            str(info.max_adapters_in_batch),
            ",".join(stats.running_adapters[:MAX_ADAPTERS]),
            ",".join(stats.waiting_adapters[:MAX_ADAPTERS]),
        ),
        time.time(),
    )
    yield requests
    yield from _residency(placements)


def _residency(placements: Sequence[AdapterPlacement]) -> Iterator[Metric]:
    loaded = GaugeMetricFamily(
        "vllm:lora_adapter_loaded",
        "1 for each adapter that is on a tier of this replica.",
        labels=("adapter_name", "level", "pinned", "rank"),
    )
    sizes = GaugeMetricFamily(
        "weft_adapter_bytes",
        "Bytes of an adapter on the nearest tier that has it.",
        labels=("adapter_name", "level"),
    )
    references = GaugeMetricFamily(
        "weft_adapter_references",
        "Running requests that use an adapter.",
        labels=("adapter_name",),
    )
    here = [placement for placement in placements if placement.level in _LEVELS]
    here.sort(key=lambda p: (_LEVELS.index(p.level), -p.num_references, p.adapter_digest))
    for placement in here[:MAX_ADAPTERS]:
        name = placement.adapter_digest
        pinned = str(placement.is_pinned).lower()
        loaded.add_metric((name, placement.level, pinned, str(placement.rank)), 1)
        if placement.num_bytes:
            sizes.add_metric((name, placement.level), placement.num_bytes)
        if placement.num_references:
            references.add_metric((name,), placement.num_references)
    yield from (loaded, sizes, references)
