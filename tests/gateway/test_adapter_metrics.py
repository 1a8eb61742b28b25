"""Metrics of adapters, as routers in front of several replicas read them."""

from __future__ import annotations

import time
from typing import Any

from prometheus_client.parser import text_string_to_metric_families
from prometheus_client.samples import Sample

from weft.gateway.adapter_metrics import MAX_ADAPTERS
from weft.messages import AdapterPlacement

ONE, TWO = "sha256:" + "1" * 64, "sha256:" + "2" * 64


def samples(site: Any, name: str) -> list[Sample]:
    families = text_string_to_metric_families(site.http.get("/metrics").text)
    return [sample for family in families for sample in family.samples if sample.name == name]


def test_routers_see_which_adapters_run_and_wait(site: Any) -> None:
    site.engine.running_adapters, site.engine.waiting_adapters = (ONE, TWO), (TWO,)
    before = time.time()
    (sample,) = samples(site, "vllm:lora_requests_info")
    assert sample.labels == {
        "max_lora": "1",
        "running_lora_adapters": f"{ONE},{TWO}",
        "waiting_lora_adapters": TWO,
    }
    assert before - 1 <= sample.value <= time.time() + 1


def test_each_resident_adapter_has_its_level_rank_and_bytes(site: Any) -> None:
    site.engine.adapter_placements = [
        AdapterPlacement(TWO, "host", "cpu", rank=4, num_bytes=100),
        AdapterPlacement(
            ONE, "device", "gpu", num_references=3, rank=16, num_bytes=400, is_pinned=True
        ),
        AdapterPlacement("sha256:coming", "fetching", "remote"),
        AdapterPlacement("sha256:kept", "disk", "disk"),
    ]
    loaded = [sample.labels for sample in samples(site, "vllm:lora_adapter_loaded")]
    assert loaded == [
        {"adapter_name": ONE, "level": "gpu", "pinned": "true", "rank": "16"},
        {"adapter_name": TWO, "level": "cpu", "pinned": "false", "rank": "4"},
        {"adapter_name": "sha256:kept", "level": "disk", "pinned": "false", "rank": "0"},
    ]
    sizes = samples(site, "weft_adapter_bytes")
    assert [(s.labels["level"], s.value) for s in sizes] == [("gpu", 400), ("cpu", 100)]
    (references,) = samples(site, "weft_adapter_references")
    assert (references.labels["adapter_name"], references.value) == (ONE, 3)
    (count,) = samples(site, "weft_adapter_load_seconds_count")
    assert count.value > 0


def test_the_lines_of_thousands_of_adapters_are_bounded(site: Any) -> None:
    site.engine.adapter_placements = [
        AdapterPlacement(f"sha256:{i}", "disk", "disk") for i in range(MAX_ADAPTERS)
    ]
    site.engine.adapter_placements += [
        AdapterPlacement(f"sha256:f{i}", "device", "gpu") for i in range(5)
    ]
    loaded = samples(site, "vllm:lora_adapter_loaded")
    assert len(loaded) == MAX_ADAPTERS
    assert [sample.labels["level"] for sample in loaded[:6]] == ["gpu"] * 5 + ["disk"]


def test_no_name_of_a_tenants_is_in_the_metrics(site: Any, acme: str, lora: Any) -> None:
    site.create_adapter(acme, "secret-bot")
    digest = site.upload(acme, "secret-bot", lora()).json()["digest"]
    site.client(acme).completions.create(model="secret-bot", prompt="abc")
    site.engine.running_adapters = (digest,)
    site.engine.adapter_placements = [AdapterPlacement(digest, "device", "gpu")]
    text = site.http.get("/metrics").text
    assert digest in text
    assert "secret-bot" not in text
    assert "tnt_" not in text
