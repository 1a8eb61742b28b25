"""Renders chat templates of strangers, in a process of its own: `python -m` this module.

Jinja's sandbox keeps a template from the server's objects, but not from its time and memory: this
process is bounded in memory, and ended by its parent when it takes too long (`templates`). Each
line of standard input is a job, each line of standard output its outcome.
"""

from __future__ import annotations

import json
import resource
import sys
from functools import lru_cache

import jinja2

from weft.tokenizer import compile_template, render_template

_MAX_MEMORY_BYTES = 1 << 30
MAX_TEXT_CHARS = 16 * 2**20


@lru_cache(maxsize=64)
def _compiled(source: str) -> jinja2.Template:
    return compile_template(source)


def render(source: str, variables: dict[str, object]) -> dict[str, str]:
    try:
        text = render_template(_compiled(source), variables)
    except MemoryError:
        return {"refused": "The chat template needs too much memory."}
    except Exception as error:  # a template can raise whatever Python's operators do
        reason = str(error)[:500]
        if not isinstance(error, ValueError):
            reason = f"The chat template fails: {type(error).__name__}: {reason}"
        return {"refused": reason}
    if len(text) > MAX_TEXT_CHARS:
        return {"refused": "The chat template's text is too long."}
    return {"text": text}


def main() -> None:
    resource.setrlimit(resource.RLIMIT_AS, (_MAX_MEMORY_BYTES, _MAX_MEMORY_BYTES))
    for line in sys.stdin:
        job = json.loads(line)
        try:
            answer = json.dumps(render(job["template"], job["variables"]))
        except MemoryError:
            answer = json.dumps({"refused": "The chat template needs too much memory."})
        sys.stdout.write(answer + "\n")
        sys.stdout.flush()


if __name__ == "__main__":
    main()
