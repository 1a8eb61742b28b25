"""Attack classes 24 to 30 and 32: tensor files that are not what they say. See README.md."""

from __future__ import annotations

import io
import json
import pickle
import struct
import tarfile
import time
import tracemalloc
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import save

from weft_adapters.sites import BaseSpec
from weft_adapters.validation import ValidationReport, validate

Refused = Callable[..., list[dict[str, Any]]]
A = "base_model.model.model.layers.0.self_attn.q_proj.lora_A.weight"
B = A.replace("lora_A", "lora_B")
GOOD_CONFIG = json.dumps({"peft_type": "LORA", "r": 4, "lora_alpha": 8}).encode()


class Bomb:
    """Says so when it is unpickled."""

    def __reduce__(self) -> tuple[Any, tuple[str]]:
        return (pytest.fail, ("a tenant's pickle was loaded",))


def with_header(header: object, data: bytes = b"") -> bytes:
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return struct.pack("<Q", len(text)) + text + data


def codes(faults: list[dict[str, Any]]) -> set[str]:
    return {fault["code"] for fault in faults}


@pytest.mark.parametrize("kind", ["torch.save", "torch.save, legacy", "pickle", "npy", "npz"])
def test_24_other_formats_are_named_and_never_unpickled(
    assert_refused: Refused, factors: dict[str, Any], kind: str
) -> None:
    file = io.BytesIO()
    if kind.startswith("torch.save"):
        import torch

        hostile = {**{name: torch.from_numpy(t) for name, t in factors.items()}, "bomb": Bomb()}
        torch.save(hostile, file, _use_new_zipfile_serialization="legacy" not in kind)
    elif kind == "pickle":
        pickle.dump(Bomb(), file)
    elif kind == "npy":
        np.save(file, np.array([Bomb()], dtype=object), allow_pickle=True)
    else:
        np.savez(file, a=np.ones(3))
    assert "not_safetensors" in codes(assert_refused(tensors=file.getvalue()))


@pytest.mark.parametrize(
    ("length", "code"),
    [
        (2**64 - 1, "header_too_large"),
        (2**63, "header_too_large"),
        (90 * 2**20, "header_too_large"),
        (2**24, "header_truncated"),
        (0, "header_empty"),
    ],
)
def test_25_a_length_that_is_a_lie_is_refused(
    assert_refused: Refused, length: int, code: str
) -> None:
    assert codes(assert_refused(tensors=struct.pack("<Q", length) + b"{}")) == {code}


def test_25_truncated_files_are_refused_wherever_they_end(
    spec: BaseSpec, factors: dict[str, Any], tmp_path: Path
) -> None:
    good = save(factors)
    assert judge(spec, good, tmp_path).ok
    for length in [*range(0, 300, 7), len(good) - 1]:
        assert not judge(spec, good[:length], tmp_path).ok


def judge(
    spec: BaseSpec, tensors: bytes, folder: Path, config: bytes = GOOD_CONFIG
) -> ValidationReport:
    path = folder / "attack.safetensors"
    path.write_bytes(tensors)
    return validate(config, path, spec, max_rank=16)


def test_25_a_claim_of_exabytes_allocates_next_to_nothing(spec: BaseSpec, tmp_path: Path) -> None:
    path = tmp_path / "sparse"
    with path.open("wb") as file:
        file.write(struct.pack("<Q", 2**62))
        file.truncate(2**42)
    tracemalloc.start()
    try:
        assert not validate(GOOD_CONFIG, path, spec, max_rank=16).ok
        assert tracemalloc.get_traced_memory()[1] < 2**20
    finally:
        tracemalloc.stop()


def entry(**changes: object) -> dict[str, object]:
    return {"dtype": "F32", "shape": [4, 16], "data_offsets": [0, 256], **changes}


@pytest.mark.parametrize(
    ("header", "code"),
    [
        ({A: entry(), B: entry()}, "offsets_invalid"),
        ({A: entry(), B: entry(data_offsets=[128, 384])}, "offsets_invalid"),
        ({A: entry(data_offsets=[256, 512])}, "offsets_invalid"),
        ({A: entry(data_offsets=[-256, 0])}, "header_invalid"),
        ({A: entry(data_offsets=[256, 0])}, "bytes_mismatch"),
        ({A: entry(data_offsets=[2**64 - 256, 2**64])}, "header_invalid"),
        ({A: entry(data_offsets=[0, 2**40])}, "bytes_mismatch"),
        ({A: entry(shape=[4, 17])}, "bytes_mismatch"),
        ({A: entry(shape=[2**31, 2**31, 2**31])}, "bytes_mismatch"),
        ({A: entry(shape=[2**62, 4])}, "bytes_mismatch"),
        ({A: entry(shape=[2**64 // 4 + 4, 16])}, "bytes_mismatch"),
        ({A: entry(dtype="I64")}, "unsupported_dtype"),
        ({A: entry(dtype="F8_E5M2")}, "unsupported_dtype"),
        ({A: entry(dtype="F31")}, "unsupported_dtype"),
        (b'{"a":{},"a":{}}', "header_invalid"),
        (b'{"__metadata__":{"a":"' + b"x" * 300_000 + b'"}}', "header_invalid"),
    ],
)
def test_26_entries_that_do_not_fit_the_file_are_refused(
    assert_refused: Refused, header: object, code: str
) -> None:
    assert codes(assert_refused(tensors=with_header(header, bytes(256)))) == {code}


def test_26_a_million_tensors_and_90_mb_of_metadata_are_refused_unread(
    spec: BaseSpec, tmp_path: Path
) -> None:
    entries = b",".join(
        b'"%d":{"dtype":"F32","shape":[0],"data_offsets":[0,0]}' % i for i in range(1_000_000)
    )
    metadata = b'{"__metadata__":{"a":"' + b"x" * 90 * 2**20 + b'"}}'
    for header in (b"{" + entries + b"}", metadata):
        start_s = time.process_time()
        report = judge(spec, with_header(header), tmp_path)
        assert [fault.code for fault in report.faults] == ["header_too_large"]
        assert time.process_time() - start_s < 1


@pytest.mark.parametrize(
    ("value", "code"),
    [
        (np.nan, "non_finite"),
        (np.inf, "non_finite"),
        (-np.inf, "non_finite"),
        (3e38, "value_too_large"),
        (-1e10, "value_too_large"),
    ],
)
def test_27_values_that_are_not_finite_or_will_not_stay_so_are_refused(
    assert_refused: Refused, factors: dict[str, Any], value: float, code: str
) -> None:
    spoiled = {name: t.copy() for name, t in factors.items()}
    spoiled[B][-1, -1] = value
    assert codes(assert_refused(tensors=spoiled)) == {code}


@pytest.mark.parametrize(
    ("factor", "warning"),
    [(0.0, "changes nothing"), (1e-43, "changes nothing"), (1e6, "outlier")],
    ids=["zeros", "denormals", "huge"],
)
def test_27_no_effect_and_too_much_of_it_are_warned_of(
    spec: BaseSpec, factors: dict[str, Any], tmp_path: Path, factor: float, warning: str
) -> None:
    odd = {**factors, B: (factors[B] * factor).astype(np.float32)}
    report = judge(spec, save(odd), tmp_path)
    assert report.ok
    assert any(warning in text for text in report.warnings)


RANKS: list[tuple[object, str]] = [
    (65536, "invalid_rank"),
    (0, "invalid_rank"),
    (-4, "invalid_rank"),
    (4.0, "invalid_rank"),
    ("4", "invalid_rank"),
    (True, "invalid_rank"),
    (None, "invalid_rank"),
    (10**300, "invalid_rank"),
    (5, "wrong_rank"),
    (200, "wrong_rank"),
]


@pytest.mark.parametrize(("rank", "code"), RANKS)
def test_28_ranks_that_are_no_ranks_are_refused(
    assert_refused: Refused, rank: object, code: str
) -> None:
    keys = {"peft_type": "LORA", "lora_alpha": 8}
    assert code in codes(assert_refused(config=json.dumps({**keys, "r": rank}).encode()))
    patterned = {**keys, "r": 4, "rank_pattern": {"q_proj": rank}}
    assert code in codes(assert_refused(config=json.dumps(patterned).encode()))


def test_28_a_rank_beyond_any_number_is_refused(assert_refused: Refused) -> None:
    config = b'{"peft_type": "LORA", "lora_alpha": 8, "r": 1e400}'
    assert codes(assert_refused(config=config)) == {"invalid_json"}


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("base_model.model.model.", "model."),
        ("base_model.model.", ""),
        ("base_model.model.", "base_model.model.base_model.model."),
        ("model.layers", "model.language_model.layers"),
        ("layers.0", "layers.1"),
        ("layers.0", "layers.00"),
        ("self_attn", "linear_attn"),
        ("q_proj", "qkv_proj"),
        ("lora_A", "lora_A.default"),
        ("q_proj", "q_pr\u043ej"),
    ],
)
def test_29_names_that_are_not_the_bases_are_refused_and_listed(
    assert_refused: Refused, factors: dict[str, Any], old: str, new: str
) -> None:
    """Served elsewhere, such an adapter answers as the base does, and nobody is told."""
    faults = assert_refused(tensors={name.replace(old, new): t for name, t in factors.items()})
    assert codes(faults) <= {"unmapped_tensor", "missing_factor"}
    assert all(fault["tensor"] for fault in faults)


def test_29_one_stray_tensor_among_good_ones_is_enough(
    assert_refused: Refused, factors: dict[str, Any], spec: BaseSpec, tmp_path: Path
) -> None:
    stray = {**factors, "base_model.model.model.extra": np.zeros(1, np.float32)}
    (fault,) = assert_refused(tensors=stray)
    assert (fault["code"], fault["tensor"]) == ("unmapped_tensor", "base_model.model.model.extra")
    (row,) = judge(spec, save(stray), tmp_path).unmatched
    assert row.name == "base_model.model.model.extra"


def test_30_an_adapter_of_another_base_is_refused_with_each_mismatch(
    assert_refused: Refused, factors: dict[str, Any]
) -> None:
    wider = {A: np.zeros((4, 32), np.float32), B: np.zeros((32, 4), np.float32)}
    assert codes(assert_refused(tensors=wider)) == {"wrong_shape"}
    deeper = factors | {name.replace("layers.0", "layers.7"): t for name, t in factors.items()}
    assert codes(assert_refused(tensors=deeper)) == {"unmapped_tensor"}
    experts = factors | {
        name.replace("self_attn.q_proj", "mlp.experts.0.up_proj"): t for name, t in factors.items()
    }
    assert codes(assert_refused(tensors=experts)) == {"unmapped_tensor"}


@pytest.mark.parametrize(
    "keys",
    [
        {"lora_bias": True},
        {"alora_invocation_tokens": [1, 2]},
        {"layer_replication": [[0, 1]]},
        {"trainable_token_indices": [3]},
        {"use_qalora": True},
        {"a_key_from_next_year": 1},
        {"peft_type": "LOHA"},
        {"peft_type": "IA3"},
        {"init_lora_weights": "loftq"},
        {"modules_to_save": ["classifier"]},
    ],
    ids=lambda keys: str(*keys.items()),
)
def test_30_what_is_not_served_is_refused_by_name(
    assert_refused: Refused, keys: dict[str, object]
) -> None:
    """Many variants look like plain LoRA in their tensors."""
    config = {"peft_type": "LORA", "r": 4, "lora_alpha": 8, **keys}
    (name,) = keys
    faults = assert_refused(config=json.dumps(config).encode())
    assert any(name in fault["message"] for fault in faults), faults


def archives() -> dict[str, bytes]:
    """Each with what an extracting server would stumble over."""
    stored, deflated, nested = io.BytesIO(), io.BytesIO(), io.BytesIO()
    with zipfile.ZipFile(stored, "w") as file:
        for name in ("../../evil", "/etc/evil", "a\0b", "a\r\nb", "\u202eevil", "CON"):
            file.writestr(name, b"x")
    with zipfile.ZipFile(deflated, "w", zipfile.ZIP_DEFLATED) as file:
        file.writestr("adapter_model.safetensors", bytes(50 * 2**20))
    with zipfile.ZipFile(nested, "w") as file:
        file.writestr("inner.zip", deflated.getvalue())
    linked = io.BytesIO()
    with tarfile.open(fileobj=linked, mode="w:gz") as tar:
        for kind in (tarfile.SYMTYPE, tarfile.LNKTYPE, tarfile.CHRTYPE, tarfile.FIFOTYPE):
            info = tarfile.TarInfo("adapter_model.safetensors")
            info.type, info.linkname = kind, "/etc/passwd"
            tar.addfile(info)
    return {
        "zip": stored.getvalue(), "zip bomb": deflated.getvalue(), "nested": nested.getvalue(),
        "tar.gz": linked.getvalue(),
    }  # fmt: skip


@pytest.mark.parametrize("kind", ["zip", "zip bomb", "nested", "tar.gz"])
def test_32_archives_are_named_and_never_extracted(assert_refused: Refused, kind: str) -> None:
    tracemalloc.start()
    try:
        data = archives()[kind]
        tracemalloc.reset_peak()
        before = tracemalloc.get_traced_memory()[0]
        assert "not_safetensors" in codes(assert_refused(tensors=data))
        assert tracemalloc.get_traced_memory()[1] - before < 8 * 2**20
    finally:
        tracemalloc.stop()
    assert "invalid_json" in codes(assert_refused(config=data))
