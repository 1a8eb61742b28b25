"""The safetensors header against every way to lie in it."""

from __future__ import annotations

import json
import pickle
import struct
import time
import tracemalloc
import zipfile
from io import BytesIO
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.numpy import save

from weft_adapters.faults import AdapterFaultError
from weft_adapters.header import MAX_HEADER_BYTES, Header, read_header

GOOD = save(
    {"b": np.ones((2, 3), np.float32), "a": np.ones((4,), np.float16)}, metadata={"format": "pt"}
)


def parse(data: bytes) -> Header:
    return read_header(BytesIO(data), len(data))


def code_of(data: bytes) -> str:
    with pytest.raises(AdapterFaultError) as caught:
        parse(data)
    fault = caught.value.faults[0]
    assert fault.message.endswith(".")
    json.dumps(fault.to_dict())
    return fault.code


def with_header(header: object, num_data_bytes: int = 0) -> bytes:
    text = header if isinstance(header, str) else json.dumps(header)
    data = text.encode("utf-8", "surrogatepass")
    return struct.pack("<Q", len(data)) + data + bytes(num_data_bytes)


def entry(**changes: object) -> dict[str, object]:
    return {"dtype": "F32", "shape": [2], "data_offsets": [0, 8], **changes}


def test_a_good_file_is_read_as_safetensors_wrote_it() -> None:
    header = parse(GOOD)
    assert {name: info.shape for name, info in header.tensors.items()} == {"a": (4,), "b": (2, 3)}
    info = header.tensors["a"]
    assert info.dtype == "F16"
    assert (info.num_bytes, info.num_elements) == (8, 4)
    assert GOOD[info.start : info.stop] == np.ones(4, np.float16).tobytes()


@pytest.mark.parametrize(
    ("data", "code"),
    [
        (b"", "header_truncated"),
        (b"1234567", "header_truncated"),
        (bytes(8), "header_empty"),
        (b"\xff" * 8 + b"{}", "header_too_large"),
        (struct.pack("<Q", MAX_HEADER_BYTES + 1), "header_too_large"),
        (struct.pack("<Q", 1000) + b"{}", "header_truncated"),
        (GOOD[:40], "header_truncated"),
        (GOOD[:-1], "file_truncated"),
        (GOOD + b"x", "trailing_bytes"),
        (with_header("[]"), "header_invalid"),
        (with_header("{"), "header_invalid"),
        (with_header('{"a": NaN}'), "header_invalid"),
        (with_header('{"a": 1e999}'), "header_invalid"),
        (with_header('{"a": ' + "9" * 5000 + "}"), "header_invalid"),
        (with_header("{" + '"a":[' * 50_000), "header_invalid"),
        (with_header('{"a":' + "[" * 100 + "]" * 100 + "}"), "header_invalid"),
        (with_header('{"\\ud800": 1}'), "header_invalid"),
        (with_header('{"a":{},"a":{}}'), "header_invalid"),
        (struct.pack("<Q", 4) + b'{"\xff}', "header_invalid"),
        (with_header({"__metadata__": {"a": 1}}), "header_invalid"),
        (with_header({"__metadata__": []}), "header_invalid"),
        (with_header({"a": []}), "header_invalid"),
        (with_header({"a": entry(more=1)}, 8), "header_invalid"),
        (with_header({"n" * 600: entry()}, 8), "header_invalid"),
        (with_header({"a": entry(dtype="F64")}, 8), "unsupported_dtype"),
        (with_header({"a": entry(dtype=["F32"])}, 8), "unsupported_dtype"),
        (with_header({"a": entry(shape=[-2])}, 8), "header_invalid"),
        (with_header({"a": entry(shape=[2.0])}, 8), "header_invalid"),
        (with_header({"a": entry(shape=[True, 2])}, 8), "header_invalid"),
        (with_header({"a": entry(shape="2")}, 8), "header_invalid"),
        (with_header({"a": entry(shape=[1] * 9)}, 8), "header_invalid"),
        (with_header({"a": entry(shape=[2**62, 2**62])}, 8), "bytes_mismatch"),
        (with_header({"a": entry(shape=[3])}, 8), "bytes_mismatch"),
        (with_header({"a": entry(data_offsets=[8, 0])}, 8), "bytes_mismatch"),
        (with_header({"a": entry(data_offsets=[-8, 0])}, 8), "header_invalid"),
        (with_header({"a": entry(data_offsets=[0, 8, 16])}, 8), "header_invalid"),
        (with_header({"a": entry(data_offsets=[8, 16])}, 16), "offsets_invalid"),
        (with_header({"a": entry(), "b": entry()}, 8), "offsets_invalid"),
        (with_header({"a": entry(), "b": entry(data_offsets=[4, 12])}, 12), "offsets_invalid"),
        (with_header({"a": entry()}), "file_truncated"),
        (with_header({"a": entry()}, 9), "trailing_bytes"),
        (with_header("{} {}"), "header_invalid"),
        (with_header('{"a":{"dtype":"F32","shape":[2],"data_offsets":[0,8]},}'), "header_invalid"),
        (with_header('{"a" {}}'), "header_invalid"),
        (with_header("{a: {}}"), "header_invalid"),
        (with_header('{"__metadata__":{},"__metadata__":{}}'), "header_invalid"),
        (with_header('{"__metadata__":{"a":"b","a":"b"}}'), "header_invalid"),
        (with_header('{"__metadata__":{"a":"b",}}'), "header_invalid"),
        (with_header('{"__metadata__":{"a":"\\q"}}'), "header_invalid"),
        (with_header({"__metadata__": {"a": "b" * 300_000}}), "header_invalid"),
        (
            with_header('{"a":{"dtype":"F32","dtype":"F32","shape":[2],"data_offsets":[0,8]}}', 8),
            "header_invalid",
        ),
        (
            with_header({str(i): entry(shape=[0], data_offsets=[0, 0]) for i in range(5000)}),
            "too_many_tensors",
        ),
    ],
)
def test_a_lie_is_named(data: bytes, code: str) -> None:
    assert code_of(data) == code


def test_a_header_may_be_laid_out_as_json_may_be() -> None:
    text = """ {
        "__metadata__" : { "format" : "pt", "note" : "braces } and \\" quotes {" } ,
        "a\\u0062" : { "shape":[2] , "data_offsets":[0,8], "dtype":"F32" }
    }   """
    header = parse(with_header(text.strip() + "   ", 8))
    assert {name: info.shape for name, info in header.tensors.items()} == {"ab": (2,)}
    assert parse(with_header("{ }")).tensors == {}


def assert_costs_little(data: bytes, code: str) -> None:
    """What is kept beside the file's own bytes: JSON can be 25 times as large in memory."""
    file = BytesIO(data)
    tracemalloc.start()
    start_s = time.process_time()
    try:
        with pytest.raises(AdapterFaultError) as caught:
            read_header(file, len(data))
        taken_s = time.process_time() - start_s
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert caught.value.faults[0].code == code
    assert peak < len(data) + 16 * 2**20
    assert taken_s < 2


@pytest.mark.parametrize(
    ("opening", "part", "closing"),
    [
        ('{"a":[', "[],", "0]}"),
        ('{"a":{"dtype":[', "{},", "0]}}"),
        ('{"', "a", '":{}}'),
        ('{"', "\\u0041", '":{}}'),
        ('{"__metadata__":{', '"a":"b",', '"c":"d"}}'),
        ('{"__metadata__":{"a":"', "a", '"}}'),
        ("{", " ", "0}"),
    ],
    ids=["lists", "entry", "name", "escapes", "pairs", "text", "spaces"],
)
def test_a_header_of_the_largest_size_costs_little(opening: str, part: str, closing: str) -> None:
    num_parts = (MAX_HEADER_BYTES - len(opening) - len(closing)) // len(part)
    assert_costs_little(with_header(opening + part * num_parts + closing), "header_invalid")


def test_as_many_tensors_as_fit_a_header_cost_little() -> None:
    entries = ",".join(
        f'"{i}":{{"dtype":"F32","shape":[0],"data_offsets":[0,0]}}' for i in range(250_000)
    )
    assert_costs_little(with_header("{" + entries + "}"), "too_many_tensors")


def test_other_formats_renamed_are_named() -> None:
    archive = BytesIO()
    with zipfile.ZipFile(archive, "w") as file:
        file.writestr("archive/data.pkl", pickle.dumps({}))
    array = BytesIO()
    np.save(array, np.ones(3))
    for data, word in [
        (archive.getvalue(), "zip archive"),
        (pickle.dumps({"a": [1] * 100}), "pickle"),
        (array.getvalue(), "NumPy"),
        (b"GGUF" + bytes(100), "GGUF"),
    ]:
        with pytest.raises(AdapterFaultError, match=word) as caught:
            parse(data)
        assert caught.value.faults[0].code == "not_safetensors"


def test_a_huge_claim_allocates_nothing(tmp_path: Path) -> None:
    path = tmp_path / "sparse.safetensors"
    with path.open("wb") as file:
        file.write(struct.pack("<Q", 2**40))
        file.truncate(2**41)
    tracemalloc.start()
    try:
        with path.open("rb") as file, pytest.raises(AdapterFaultError):
            read_header(file, path.stat().st_size)
        assert tracemalloc.get_traced_memory()[1] < 2**20
    finally:
        tracemalloc.stop()


@given(
    edits=st.lists(st.tuples(st.integers(0, len(GOOD) - 1), st.integers(0, 255)), max_size=6),
    cut=st.integers(0, len(GOOD)),
)
@settings(max_examples=400, deadline=2000)
def test_mutated_files_are_read_or_refused(edits: list[tuple[int, int]], cut: int) -> None:
    data = bytearray(GOOD)
    for position, value in edits:
        data[position] = value
    for mutated in (bytes(data), bytes(data[:cut])):
        try:
            header = parse(mutated)
        except AdapterFaultError as error:
            json.dumps([fault.to_dict() for fault in error.faults])
        else:
            assert sum(info.num_bytes for info in header.tensors.values()) <= len(mutated)
