"""Attack class 31: an adapter_config.json written to hurt who reads it. See README.md."""

from __future__ import annotations

import json
import os
import sys
import time
import tracemalloc
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from safetensors.numpy import save
from tests.gateway.site import Site

from weft_adapters.config import parse_config
from weft_adapters.faults import AdapterFaultError
from weft_adapters.sites import BaseSpec
from weft_adapters.validation import validate

Refused = Callable[..., list[dict[str, Any]]]
LORA = {"peft_type": "LORA", "r": 4, "lora_alpha": 8}
# each takes Python's `re` years on the name of a module, or all memory
CATASTROPHIC = (
    "(a+)+$", "(.*)*x", "(.*.*)*=.*", "((((.*)*)*)*)*x", "(a|a)*$", "(.+)+\\1", "(?=(.*)+)x",
    ".*" * 200, "(" * 5000 + ")" * 5000, "a{1,100000}{1,100000}", "[a-z" * 400, "\\",
    "(?P<n>a)(?P=n)*", "^(([a-z])+.)+[A-Z]([a-z])+$",
)  # fmt: skip


def with_keys(**keys: object) -> bytes:
    return json.dumps({**LORA, **keys}).encode()


def codes(faults: list[dict[str, Any]]) -> set[str]:
    return {fault["code"] for fault in faults}


@pytest.mark.parametrize(
    "text",
    [
        b"",
        b"null",
        b"[]",
        b'"LORA"',
        b"{",
        with_keys() + b"{}",
        b'{"peft_type": "LORA", "r": 4, "r": 8, "lora_alpha": 8}',
        b'{"peft_type": "LORA", "r": 4, "lora_alpha": NaN}',
        b'{"peft_type": "LORA", "r": 4, "lora_alpha": -Infinity}',
        b'{"peft_type": "LORA", "r": 4, "lora_alpha": ' + b"9" * 100_000 + b"}",
        b'{"peft_type": "LORA", "eva_config": ' + b"[" * 10_000 + b"]" * 10_000 + b"}",
        b'{"peft_type": "LORA", "eva_config": ' + b'{"a":' * 10_000 + b"0" + b"}" * 10_001,
        b'{"peft_type": "LORA", "eva_config": [' + b"[]," * 200_000 + b"0]}",
        b'{"peft_type": "LO\\ud800RA"}',
        with_keys().decode().encode("utf-16"),
        b"\xff\xfe{}",
    ],
    ids=range(16),
)
def test_31_text_that_is_no_honest_json_is_refused(assert_refused: Refused, text: bytes) -> None:
    assert codes(assert_refused(config=text)) == {"invalid_json"}


def test_31_a_config_beyond_its_cap_is_cut_off(site: Site, mallory: str, lora: Any) -> None:
    files = lora() | {"adapter_config.json": b" " * 2**20 + with_keys()}
    assert site.upload(mallory, "bot", files).status_code == 413
    with pytest.raises(AdapterFaultError, match="over 1048576 bytes"):
        parse_config(b" " * 100 * 2**20)


@pytest.mark.parametrize("size", [40_000, 60_000, 180_000])
def test_31_a_config_of_many_small_values_costs_little_memory(size: int) -> None:
    tracemalloc.start()
    try:
        text = b'{"eva_config": [' + b"{}," * size + b"0]}"
        tracemalloc.reset_peak()
        with pytest.raises(AdapterFaultError):
            parse_config(text)
        assert tracemalloc.get_traced_memory()[1] < len(text) + 16 * 2**20
    finally:
        tracemalloc.stop()


@pytest.mark.parametrize("pattern", CATASTROPHIC, ids=range(len(CATASTROPHIC)))
@pytest.mark.parametrize(
    "keys",
    [
        lambda pattern: {"target_modules": pattern},
        lambda pattern: {"exclude_modules": pattern},
        lambda pattern: {"layers_pattern": pattern, "layers_to_transform": [0]},
        lambda pattern: {"target_modules": [pattern]},
        lambda pattern: {"rank_pattern": {pattern: 4}},
        lambda pattern: {"alpha_pattern": {pattern: 8}},
    ],
    ids=["target", "exclude", "layers", "list", "rank", "alpha"],
)
def test_31_no_regular_expression_holds_the_server_up(
    spec: BaseSpec, factors: dict[str, Any], tmp_path: Path, pattern: str, keys: Any
) -> None:
    """Judged within the time of any other adapter, whether refused or served."""
    path = tmp_path / "adapter.safetensors"
    path.write_bytes(save(factors))
    start_s = time.process_time()
    report = validate(with_keys(**keys(pattern)), path, spec, max_rank=16)
    assert time.process_time() - start_s < 1
    assert report.ok == (not report.faults)


# what a config names is never opened or imported: the adapter is served, or refused for its key
NAMES = (
    ("base_model_name_or_path", "/etc/passwd"),
    ("base_model_name_or_path", "../../../../proc/self/environ"),
    ("base_model_name_or_path", "file:///etc/passwd"),
    ("base_model_name_or_path", "http://169.254.169.254/latest/meta-data"),
    ("base_model_name_or_path", "\\\\attacker\\share"),
    ("revision", "refs/../../etc"),
    ("auto_mapping", {"base_model_class": "os.system", "parent_library": "antigravity"}),
    ("megatron_core", "antigravity"),
    ("megatron_config", {"a": "antigravity"}),
    ("loftq_config", {"path": "/etc/passwd"}),
)


@pytest.mark.parametrize(("key", "value"), NAMES, ids=lambda value: str(value)[:30])
def test_31_no_path_is_opened_and_no_module_imported(
    spec: BaseSpec, factors: dict[str, Any], tmp_path: Path, key: str, value: object
) -> None:
    path = tmp_path / "adapter.safetensors"
    path.write_bytes(save(factors))
    events: list[str] = []
    with audited(events, of=path):
        validate(with_keys(**{key: value}), path, spec, max_rank=16, declared_base="tiny")
    assert events == []
    assert "antigravity" not in sys.modules


_listeners: list[tuple[list[str], str]] = []


def _listen(event: str, arguments: tuple[Any, ...]) -> None:
    """An audit hook cannot be taken away again, so it listens only where somebody asks."""
    for events, known in _listeners:
        if event == "open" and os.fspath(arguments[0]) != known:
            events.append(f"open {arguments[0]}")
        elif event.startswith(("socket.", "subprocess.", "os.system", "import", "exec")):
            events.append(f"{event} {arguments}")


class audited:
    """Every file opened but `of`, every socket, process and import within the block."""

    _is_installed = False

    def __init__(self, events: list[str], *, of: Path) -> None:
        self._listener = (events, os.fspath(of))

    def __enter__(self) -> None:
        if not audited._is_installed:
            sys.addaudithook(_listen)
            audited._is_installed = True
        _listeners.append(self._listener)

    def __exit__(self, *_: object) -> None:
        _listeners.remove(self._listener)


def test_31_the_audit_sees_what_it_is_there_to_see(tmp_path: Path) -> None:
    events: list[str] = []
    (tmp_path / "known").write_text("")
    with audited(events, of=tmp_path / "known"):
        (tmp_path / "known").read_text()
        Path("/etc/hostname").read_bytes()
    assert events == ["open /etc/hostname"]


def test_31_anothers_base_name_is_only_a_warning(
    spec: BaseSpec, factors: dict[str, Any], tmp_path: Path
) -> None:
    path = tmp_path / "adapter.safetensors"
    path.write_bytes(save(factors))
    config = with_keys(base_model_name_or_path="/etc/\x1b[31mpasswd\u202e")
    report = validate(config, path, spec, max_rank=16, declared_base="tiny")
    assert report.ok
    assert report.warnings[0].isprintable()
