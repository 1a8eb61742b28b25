"""An engine is built from its configuration, or refused by name; warming it up leaves no trace."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest
import torch

from weft.engine.build import warm_up
from weft.engine.config import MIB, EngineConfig
from weft.engine.memory_plan import MemoryPlan, resolve_memory
from weft.engine.model.config import create_model_config, read_hf_config

if TYPE_CHECKING:
    from tests.bench import Bench

KV_BLOCK_BYTES = 2 * 3 * 16 * 64 * 4  # of the dense bench: k and v, 3 layers, 16 tokens


def test_warming_up_leaves_no_trace(dense: Bench) -> None:
    engine = dense.build()[0].engine
    warm_up(engine)
    assert not engine.has_work
    assert engine.counters.num_generation_tokens == 0
    assert engine.counters.time_to_first_token == []


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"dtype": "int8"}, "dtype must be one of"),
        ({"device": "tpu"}, "device must be auto, cpu or cuda, not 'tpu'"),
        ({"max_running": 0}, "max_running must be at least 1"),
        ({"max_step_tokens": 8}, "max_step_tokens=8 must be at least max_running=64"),
        ({"max_model_len": 513}, "max_model_len=513 is more than the base's"),
        ({"kv_bytes": 2 * KV_BLOCK_BYTES}, "the KV cache has room for 16 tokens"),
        ({"adapter_bytes": 1 << 50}, "bytes, but only"),
    ],
)
def test_what_cannot_be_built_is_refused_by_name(
    dense: Bench, options: dict[str, Any], message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        dense.build(**options)


def test_room_for_adapters_is_wanted_twice_only_where_they_are_packed(
    dense: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("weft.engine.memory_plan._free_bytes", lambda device: 384 * MIB)
    model = create_model_config(read_hf_config(dense.base_dir))
    config = EngineConfig(dense.base_dir, dense.root, adapter_bytes=256 * MIB, kv_bytes=MIB)

    def resolve(*, copies_adapters: bool) -> MemoryPlan:
        cpu = torch.device("cpu")
        return resolve_memory(config, model, torch.float32, cpu, copies_adapters=copies_adapters)

    assert resolve(copies_adapters=False).adapter_bytes == 256 * MIB
    with pytest.raises(ValueError, match=f"adapters .{512 * MIB}. need"):
        resolve(copies_adapters=True)
