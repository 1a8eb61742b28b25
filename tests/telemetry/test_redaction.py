"""What looks like a secret is taken out, and nothing else."""

from __future__ import annotations

import pytest

from weft.telemetry.redaction import REDACTED, printable, redact_text, redacted
from weft.tenancy.keys import create_key


@pytest.mark.parametrize(
    "secret",
    [
        pytest.param(str(create_key("live")), id="project key"),
        pytest.param(str(create_key("admin")), id="admin key"),
        "hf_" + "aB3" * 11,
        "sk-proj-" + "x9" * 20,
        "whsec_" + "A1" * 12,
        "AKIA" + "Z" * 16,
        "eyJhbGciOiJub25l.eyJzdWIiOiJhYmMi.c2lnbmF0dXJl",
        "Bearer abcdefgh12345678",
    ],
)
def test_a_secret_is_taken_out_wherever_it_stands(secret: str) -> None:
    text = redact_text(f"before {secret}, after")
    assert text == f"before {REDACTED}, after"


def test_what_is_behind_a_presigned_url_is_taken_out() -> None:
    url = "https://s3.example.com/b/k?X-Amz-Signature=abc123&x=1"
    assert redact_text(url) == f"https://s3.example.com/b/k?{REDACTED}&x=1"
    assert redact_text("postgresql://weft:pw@db/x") == f"postgresql://{REDACTED}@db/x"


@pytest.mark.parametrize(
    "name", ["password", "client_secret", "token", "X-Api-Key".replace("-", "_"), "set-cookie"]
)
def test_what_is_named_like_a_secret_is_taken_out(name: str) -> None:
    assert redacted({name: ["x"]}) == {name: REDACTED}


def test_other_things_stay() -> None:
    plain = {
        "max_tokens": 12,
        "token": None,
        "tokens": ["a"],
        "name": "weft_live",
        "digest": "sha256:" + "ab" * 32,
        "id": "req_0193ffffffffffffffff",
        "list": [1, 2.5, True],
    }
    assert redacted(plain) == plain


def test_depth_text_and_items_are_bounded() -> None:
    deep: object = "x"
    for _ in range(50):
        deep = [deep]
    assert str(redacted(deep)).count("[") < 10
    long = redacted("y" * 10_000_000)
    assert isinstance(long, str)
    assert len(long) < 2000
    many = redacted(list(range(10_000)))
    assert isinstance(many, list)
    assert len(many) < 1000
    assert redacted(b"raw") == "[bytes]"


def test_control_characters_do_not_reach_a_line() -> None:
    assert printable("a\r\nb\x1b[31m\ud800é", 9) == "a??b?[31m"
