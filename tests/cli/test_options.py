"""The options of `weft serve` are the settings."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest
import typer
from typer.testing import CliRunner

from weft.cli.options import from_environment, takes_settings
from weft.settings import MIB, ServerSettings, Settings, setting


def _settings(*arguments: str) -> ServerSettings:
    """What a command gets that is called with `arguments`."""
    seen: list[ServerSettings] = []
    app = typer.Typer()
    app.command()(takes_settings(seen.append))
    result = CliRunner().invoke(app, ["--base", "model", *arguments])
    assert result.exit_code == 0, result.output
    return seen[0]


def test_without_options_every_setting_has_its_default() -> None:
    assert _settings() == ServerSettings(base_dir=Path("model"))


def test_sizes_are_given_in_mib_and_retention_in_days() -> None:
    settings = _settings("--kv-mib", "64", "--max-upload-mib", "2", "--retention-days", "1.5")
    assert settings.kv_bytes == 64 * MIB
    assert settings.max_upload_bytes == 2 * MIB
    assert settings.version_retention_s == 1.5 * 24 * 3600


def test_switches_have_an_off_side() -> None:
    settings = _settings("--no-prefix-cache", "--share-base-prefix", "--async-scheduling")
    assert not settings.prefix_cache
    assert settings.share_base_prefix
    assert settings.async_scheduling
    assert _settings("--no-async-scheduling").async_scheduling is False


def test_lists_replace_their_defaults() -> None:
    settings = _settings("--import-host", "a.example", "--import-host", "b.example")
    assert settings.import_hosts == ("a.example", "b.example")
    assert settings.import_buckets == ()


def test_the_data_folder_may_be_named_by_a_variable(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WEFT_DATA", "elsewhere")
    assert _settings().data_dir == Path("elsewhere")
    assert _settings("--data", "here").data_dir == Path("here")


def test_a_setting_without_help_has_no_flag() -> None:
    app = typer.Typer()
    app.command()(takes_settings(lambda settings: None))
    result = CliRunner().invoke(app, ["--base", "model", "--max-body-bytes", "1"])
    assert result.exit_code == 2


def test_every_setting_says_its_option() -> None:
    without = [f.name for f in dataclasses.fields(ServerSettings) if "option" not in f.metadata]
    assert not without


def test_what_may_hold_a_password_is_read_from_a_variable_only() -> None:
    for field in dataclasses.fields(ServerSettings):
        option = field.metadata["option"]
        if option.environment:
            assert not field.repr
            assert from_environment({option.environment: "x"}) == {field.name: "x"}
    assert from_environment({"PATH": "/bin"}) == {}


def test_a_bound_is_checked_and_named() -> None:
    @dataclasses.dataclass(frozen=True, kw_only=True)
    class Sizes(Settings):
        share: float = setting(0.5, above=0)
        count: int | None = setting(None, at_least=0)
        kind: str = setting("a", choices=("a", "b"))
        secret: str = setting("", "A password.", environment="SECRET")

    Sizes(share=1e-9, count=0, kind="b")
    assert "hunter2" not in repr(Sizes(secret="hunter2"))
    with pytest.raises(ValueError, match="share must be above 0, not nan"):
        Sizes(share=float("nan"))
    with pytest.raises(ValueError, match="count must be at least 0, not -1"):
        Sizes(count=-1)
    with pytest.raises(ValueError, match="kind must be one of a, b, not 'c'"):
        Sizes(kind="c")


def test_several_workers_need_stores_that_they_share() -> None:
    postgres, redis = "postgresql://weft@db/weft", "redis://cache"
    base = Path("model")
    with pytest.raises(ValueError, match="several workers need a PostgreSQL database"):
        ServerSettings(base_dir=base, num_workers=2, redis_url=redis)
    with pytest.raises(ValueError, match="SQLite is written by one process"):
        ServerSettings(base_dir=base, num_workers=2, redis_url=redis, database_url="sqlite:///a")
    with pytest.raises(ValueError, match="several workers need Redis"):
        ServerSettings(base_dir=base, num_workers=2, database_url=postgres)
    several = ServerSettings(
        base_dir=base, num_workers=2, database_url=postgres, redis_url=redis, port=80
    )
    assert several.probes_at == ("127.0.0.1", 81)
    assert ServerSettings(base_dir=base).probes_at is None
    assert ServerSettings(base_dir=base, probe_port=9000).probes_at == ("127.0.0.1", 9000)
