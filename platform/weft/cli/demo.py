"""`weft demo`: two tenants, their adapters, one base, one batch, on a fresh platform."""

from __future__ import annotations

import json
import signal
import tempfile
import threading
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.table import Table

from weft.cli.output import JsonOption, err, fail, out, print_json
from weft.cli.progress import progress_bars
from weft.settings import ServerSettings

if TYPE_CHECKING:
    from weft.demo.stage import Answer, Tenant

_D = ServerSettings(base_dir=Path("."))


def demo(
    serve: Annotated[bool, typer.Option("--serve", help="Stay up until Ctrl-C.")] = False,
    port: Annotated[
        int | None, typer.Option(help=f"Default: a free one, or {_D.port} with --serve.")
    ] = None,
    as_json: JsonOption = False,
) -> None:
    """Show the product at work: a mixed batch for two tenants over HTTP."""
    from weft.demo.stage import DemoError

    chosen = port if port is not None else (_D.port if serve else 0)
    say = _nothing if as_json else out.print
    try:
        with ExitStack() as stack:
            result = _perform(stack, chosen, say)
            if as_json:
                print_json(result)
            if serve:
                _wait_for_signal()
    except (DemoError, OSError, RuntimeError, ValueError) as error:
        raise fail(str(error)) from error


def _nothing(*_: object, **__: object) -> None:
    """With --json only the result is printed."""


def _perform(stack: ExitStack, port: int, say: Callable[..., None]) -> dict[str, object]:
    from weft.demo import stage

    folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="weft-demo-")))
    with progress_bars() as report:
        opened = stage.open_stage(folder, port, report)
        url, operator_key = stack.enter_context(opened)
    say(f"\n[bold]1. The platform is up[/bold] at {url}, its data in a fresh temporary folder.")
    say("\n[bold]2. Two tenants upload their adapters[/bold] over HTTP, with their own keys.\n")
    tenants = {name: stage.create_tenant(url, operator_key, name) for name in stage.TENANTS}
    uploads = _upload_all(url, tenants, say)
    say("\n[bold]3. One mixed batch:[/bold] all requests at once, a different adapter_id each.\n")
    answers = stage.mixed_batch(url, _asks(tenants))
    say(_answers_table(answers))
    wrong = [a for a in answers if not _is_right(a)]
    if wrong:
        raise stage.DemoError(f"{wrong[0].ask.adapter} answered {wrong[0].text!r}")
    say("\n[bold]4. No tenant reaches another's adapter:[/bold] it gets the answer for none.\n")
    denied = _ask_across(url, tenants, say)
    say("\n[bold]5. Each tenant's usage[/bold], counted by the engine.\n")
    usage = {name: stage.read_usage(url, tenant) for name, tenant in tenants.items()}
    say(_usage_table(usage))
    _say_how_to_call(url, tenants["acme"], say)
    return {
        "url": url,
        "keys": {name: tenant.key for name, tenant in tenants.items()},
        "uploads": uploads,
        "answers": [_answer_row(answer) for answer in answers],
        "denied": denied,
        "usage": usage,
    }


def _upload_all(
    url: str, tenants: dict[str, Tenant], say: Callable[..., None]
) -> list[dict[str, Any]]:
    from weft.demo import stage

    table = Table("tenant", "adapter", "version", "ranks", "experts", "digest")
    versions = []
    for name, tenant in tenants.items():
        for adapter in stage.TENANTS[name]:
            version = stage.upload(url, tenant, adapter)
            report = version["report"]
            ranks = ", ".join(map(str, report["ranks"]))
            experts = "yes" if report["uses_experts"] else "no"
            table.add_row(
                name, adapter, version["model"], ranks, experts, version["digest"][:19] + "..."
            )
            versions.append(version)
    say(table)
    return versions


def _asks(tenants: dict[str, Tenant]) -> list[Any]:
    from weft.demo import stage

    acme, globex = tenants["acme"], tenants["globex"]
    return [
        stage.Ask(acme, None, stage.WORDS),
        stage.Ask(acme, "shout", stage.WORDS),
        stage.Ask(globex, "mirror", stage.WORDS),
        stage.Ask(globex, "sorter", stage.WORDS),
        stage.Ask(globex, "initials", stage.WORDS),
        stage.Ask(acme, "extract", stage.PERSON),
    ]


def _is_right(answer: Answer) -> bool:
    """Judged by the skill's own rule; the base has no skill to get right."""
    from weft.demo.skills import SKILLS

    adapter = answer.ask.adapter
    return adapter is None or SKILLS[adapter].is_correct(answer.ask.prompt, answer.text)


def _answer_row(answer: Answer) -> dict[str, object]:
    return {
        "tenant": answer.ask.tenant.name,
        "adapter": answer.ask.adapter,
        "prompt": answer.ask.prompt,
        "answer": answer.text,
        "model": answer.model,
        "digest": answer.digest,
        "tokens": answer.num_tokens,
        "ttft_s": answer.ttft_s,
        "tokens_per_s": answer.tokens_per_s,
    }


def _answers_table(answers: list[Answer]) -> Table:
    table = Table("tenant", "adapter_id", "prompt", "answer", "first token", "tokens/s")
    for answer in answers:
        table.add_row(
            answer.ask.tenant.name,
            answer.ask.adapter or "[dim](base)[/dim]",
            answer.ask.prompt,
            f"[bold]{answer.text}[/bold]",
            f"{answer.ttft_s * 1000:.0f} ms",
            f"{answer.tokens_per_s:.0f}",
        )
    return table


def _ask_across(
    url: str, tenants: dict[str, Tenant], say: Callable[..., None]
) -> list[dict[str, object]]:
    from weft.demo import stage

    table = Table("tenant", "asks for", "status", "error")
    seen: list[dict[str, object]] = []
    for adapter in ("shout", "no-such-adapter"):
        status, error = stage.ask_anyway(url, tenants["globex"], adapter)
        if status != 404:
            raise stage.DemoError(f"globex asked for {adapter} and got {status}")
        table.add_row("globex", adapter, str(status), error["message"])
        seen.append({"tenant": "globex", "adapter": adapter, "status": status, "error": error})
    say(table)
    return seen


def _usage_table(usage: dict[str, list[dict[str, Any]]]) -> Table:
    table = Table("tenant", "model", "requests", "tokens in", "tokens out")
    for tenant, rows in usage.items():
        for row in rows:
            table.add_row(
                tenant,
                row["model"],
                str(row["num_model_requests"]),
                str(row["input_tokens"]),
                str(row["output_tokens"]),
            )
    return table


def _say_how_to_call(url: str, tenant: Tenant, say: Callable[..., None]) -> None:
    from weft.demo import stage

    say(f"\n[bold]6. Call it yourself[/bold] (`make serve` keeps it up): {url}/v1\n")
    body = {"model": "shout", "messages": [{"role": "user", "content": stage.WORDS}]}
    curl = (
        f"curl {url}/v1/chat/completions -H 'Authorization: Bearer {tenant.key}' \\\n"
        "  -H 'Content-Type: application/json' \\\n"
        f"  -d '{json.dumps(body)}'"
    )
    python = (
        "from openai import OpenAI\n"
        f'client = OpenAI(base_url="{url}/v1", api_key="{tenant.key}")\n'
        f'messages = [{{"role": "user", "content": "{stage.WORDS}"}}]\n'
        'print(client.chat.completions.create(model="shout", messages=messages)'
        ".choices[0].message.content)"
    )
    for lines in (curl, python):
        say(lines + "\n", markup=False, highlight=False, soft_wrap=True)


def _wait_for_signal() -> None:
    stop = threading.Event()
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, lambda *_: stop.set())
    err.print("Serving until Ctrl-C.")
    stop.wait()
