"""Settings that would open the server to attack: refused, or told to whoever starts it."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from tests.gateway.site import Site

from weft.settings import ServerSettings
from weft.settings.dangers import find_dangers
from weft.tenancy.secret_files import read_or_create_secrets

SINK = "meter=http://meter.example/events"


@pytest.mark.parametrize(
    ("wrong", "named"),
    [
        ({"allowed_hosts": ("*",)}, "allowed_hosts"),
        ({"allowed_hosts": ("*.com",)}, "allowed_hosts"),
        ({"allowed_hosts": ("weft.example:8000",)}, "allowed_hosts"),
        ({"import_hosts": ("*",)}, "import_hosts"),
        ({"import_hosts": ("*.com",)}, "import_hosts"),
        ({"import_hosts": ("https://hub.example",)}, "import_hosts"),
        ({"import_networks": ("0.0.0.0/0",)}, "metadata"),
        ({"import_networks": ("::/0",)}, "metadata"),
        ({"import_networks": ("169.254.169.254/32",)}, "metadata"),
        ({"usage_sinks": (SINK,), "usage_sink_token": "token-7f3a"}, "in the clear"),
        ({"public_url": "http://weft.example.com"}, "public_url"),
        ({"otlp_endpoint": "http://user:token-7f3a@collector"}, "otlp_endpoint"),
    ],
)
def test_51_what_is_never_right_is_refused(wrong: dict[str, Any], named: str) -> None:
    with pytest.raises(ValueError, match=named) as caught:
        ServerSettings(base_dir=Path("base"), **wrong)
    assert "token-7f3a" not in str(caught.value)


@pytest.mark.parametrize(
    ("chosen", "told"),
    [
        ({"host": "0.0.0.0"}, ["no TLS", "--allowed-host", "--probe-port"]),
        ({"host": "::", "allowed_hosts": ("w.example",), "probe_port": 9000}, ["no TLS"]),
        ({"probe_port": 9000, "probe_host": "0.0.0.0"}, ["--probe-host"]),
        ({"database_url": "postgresql://weft:secret-7f3a@db.example/weft"}, ["sslmode"]),
        ({"database_url": "postgresql://db.example/weft?sslmode=verify-full"}, []),
        ({"database_url": "postgresql://weft@127.0.0.1/weft"}, []),
        ({"redis_url": "redis://:secret-7f3a@redis.example/0"}, ["rediss://"]),
        ({"redis_url": "rediss://:secret-7f3a@redis.example/0"}, []),
        ({"s3_endpoint_url": "http://s3.example"}, ["--s3-endpoint"]),
        ({"fail_open_limits": True}, ["--fail-open-limits"]),
        ({"share_base_prefix": True}, ["--share-base-prefix"]),
        ({}, []),
    ],
)
def test_51_what_is_dangerous_is_said(
    chosen: dict[str, Any], told: list[str], tmp_path: Path
) -> None:
    settings = ServerSettings(base_dir=Path("base"), data_dir=tmp_path / "data", **chosen)
    found = find_dangers(settings)
    assert len(found) == len(told)
    for sentence, word in zip(found, told, strict=True):
        assert word in sentence
        assert "secret-7f3a" not in sentence


def test_51_the_data_folder_is_its_owners_alone(tmp_path: Path) -> None:
    settings = ServerSettings(base_dir=Path("base"), data_dir=tmp_path / "new" / "data")
    assert find_dangers(settings) == []
    read_or_create_secrets(settings.data_dir, {})
    assert settings.data_dir.stat().st_mode & 0o777 == 0o700
    assert find_dangers(settings) == []
    settings.data_dir.chmod(0o755)
    (told,) = find_dangers(settings)
    assert f"chmod 700 {settings.data_dir}" in told


def test_51_nothing_is_there_for_developers_or_other_origins(site: Site, mallory: str) -> None:
    assert site.app.debug is False
    for path in ("/docs", "/redoc", "/docs/oauth2-redirect"):
        assert site.http.get(path).status_code == 404
    elsewhere = {"origin": "https://evil.example", "access-control-request-method": "POST"}
    answers = [
        site.http.request("OPTIONS", "/v1/models", headers=elsewhere),
        site.call(mallory, "GET", "/v1/models", headers=elsewhere),
        site.http.get("/auth/v1/session", headers=elsewhere),
    ]
    for answer in answers:
        allowed = [name for name in answer.headers if name.startswith("access-control-")]
        assert allowed == [], "no other origin's page may read what is answered"


@pytest.mark.verify
def test_51_checks_hold_where_assertions_are_off() -> None:
    """All attacks again, under `python -O`: pytest's own assertions are none of Python's."""
    ran = subprocess.run(
        [
            sys.executable, "-O", "-m", "pytest", "-q", "-x", "-p", "no:cacheprovider",
            "-W", "ignore::pytest.PytestConfigWarning", str(Path(__file__).parent),
        ],
        env={**os.environ, "PYTHONDONTWRITEBYTECODE": "1"}, capture_output=True, text=True,
    )  # fmt: skip
    assert ran.returncode == 0, ran.stdout[-3000:]
