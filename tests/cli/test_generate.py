"""`weft generate` against transformers + PEFT, token for token, on mixed batches."""

from __future__ import annotations

import json
import random
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from typer.testing import CliRunner

from weft.cli import app
from weft.demo import ADAPTERS_DIR, BASE_DIR
from weft.demo.skills import SKILLS
from weft.tokenizer import BaseTokenizer

if TYPE_CHECKING:
    from tests.bench import Bench
    from tests.oracle import NearTies, Oracle

pytestmark = pytest.mark.slow

NUM_TOKENS = 64


def run_generate(
    oracle: Oracle, folder: Path, lines: list[dict[str, Any]], *options: str
) -> list[dict[str, Any]]:
    """Run the command on a requests file; the result lines."""
    requests, out = folder / "in.jsonl", folder / "out.jsonl"
    requests.write_text("".join(json.dumps(line) + "\n" for line in lines))
    command = ["generate", "--base", str(oracle.base_dir), "--requests", str(requests)]
    command += ["--out", str(out), "--dtype", "float32", "--json", *options]
    for name, adapter in oracle.adapter_dirs.items():
        command += ["--adapter", f"{name}={adapter}"]
    result = CliRunner().invoke(app, command)
    assert result.exit_code == 0, result.output
    return [json.loads(line) for line in out.read_text().splitlines()]


def assert_oracles_tokens(
    oracle: Oracle, near_ties: NearTies, folder: Path, prompts: list[list[int]]
) -> None:
    names = [None, *oracle.adapter_dirs]
    lines = [
        {
            "id": str(i),
            "prompt_token_ids": prompt,
            "adapter": names[i % len(names)],
            "max_tokens": NUM_TOKENS,
            "temperature": 0,
            "ignore_eos": True,
        }
        for i, prompt in enumerate(prompts)
    ]
    results = run_generate(oracle, folder, lines)
    assert [result["id"] for result in results] == [line["id"] for line in lines]
    for result, prompt in zip(results, prompts, strict=True):
        adapter = result["adapter"]
        want = oracle.greedy(adapter, prompt, NUM_TOKENS)
        near_ties.assert_equal_tokens(oracle, adapter, prompt, result["token_ids"], want)
        usage = result["usage"]
        assert (usage["prompt_tokens"], usage["completion_tokens"]) == (len(prompt), NUM_TOKENS)
    near_ties.assert_rare()


def test_random_models_give_the_oracles_tokens(
    bench: Bench, near_ties: NearTies, tmp_path: Path
) -> None:
    rng = random.Random(1)
    prompts = [[rng.randrange(256) for _ in range(rng.choice([2, 9, 33]))] for _ in range(12)]
    assert_oracles_tokens(bench.oracle, near_ties, tmp_path, prompts)


def test_the_demo_base_and_its_adapters_give_the_oracles_tokens(
    demo_oracle: Oracle, near_ties: NearTies, tmp_path: Path
) -> None:
    rng = random.Random(2)
    tokenizer = BaseTokenizer.from_dir(BASE_DIR)
    names = [None, *demo_oracle.adapter_dirs]
    prompts = []
    for i in range(12):
        skill = SKILLS[names[i % len(names)] or "shout"]
        content = skill.heldout_example(rng).prompt
        prompts.append(tokenizer.encode_chat([{"role": "user", "content": content}]))
    assert_oracles_tokens(demo_oracle, near_ties, tmp_path, prompts)


def test_the_same_adapter_is_right_by_its_skill(demo_oracle: Oracle, tmp_path: Path) -> None:
    rng = random.Random(3)
    lines, examples = [], []
    for name in demo_oracle.adapter_dirs:
        for i in range(8):
            example = SKILLS[name].heldout_example(rng)
            examples.append((name, example))
            messages = [{"role": "user", "content": example.prompt}]
            lines.append(
                {"id": f"{name}-{i}", "messages": messages, "adapter": name, "temperature": 0}
            )
    results = run_generate(demo_oracle, tmp_path, lines)
    right = [
        SKILLS[name].is_correct(example.prompt, result["text"])
        for (name, example), result in zip(examples, results, strict=True)
    ]
    assert sum(right) >= 0.9 * len(right)


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ({"id": "a", "prompt": "x", "adapter": "nobody"}, "nobody"),
        ({"id": "a", "prompt": "x", "temprature": 0}, "temprature"),
        ({"id": "a"}, "exactly one of prompt"),
        ({"id": "a", "prompt": "x", "max_tokens": 0}, "max_tokens"),
        ({"id": "a", "prompt": "x", "max_tokens": 10**6}, "context length"),
        ({"id": "a", "prompt_token_ids": [10**6]}, "vocabulary"),
        ({"id": "a", "prompt": "x", "max_tokens": True}, "max_tokens"),
        ({"id": "a", "prompt": "x", "stop": [1]}, "stop"),
        ({"id": "a", "prompt": "x", "temperature": 3}, "temperature must be"),
        ({"id": "a", "prompt": "x", "n": 0}, "n must be"),
        ({"id": "a", "prompt": "x", "min_tokens": 200}, "min_tokens must be"),
        ({"id": "a", "prompt": "x", "logit_bias": {"264": 1}}, "Token id 264 is outside"),
        ({"id": "a", "prompt": "x", "guided_regex": "("}, "not closed"),
        ({"id": "a", "prompt": "x", "guided_regex": "a", "guided_json": {}}, "send one of them"),
        ({"id": "a", "prompt": "x", "response_format": {"type": "xml"}}, "response_format"),
        ({"id": "a", "messages": [{"role": "user"}]}, "content"),
        ({"id": "good", "prompt": "x"}, "twice"),
    ],
)
def test_a_bad_request_line_is_refused_with_its_number_and_nothing_runs(
    demo_oracle: Oracle, tmp_path: Path, line: dict[str, Any], message: str
) -> None:
    requests, out = tmp_path / "in.jsonl", tmp_path / "out.jsonl"
    good = {"id": "good", "prompt": "x", "max_tokens": 1}
    requests.write_text(json.dumps(good) + "\n" + json.dumps(line) + "\n")
    command = ["generate", "--base", str(BASE_DIR), "--requests", str(requests), "--out", str(out)]
    result = CliRunner().invoke(app, command)
    assert result.exit_code == 1
    flat = " ".join(result.output.split())
    assert "line 2" in flat
    assert message in flat
    assert not out.exists()


def test_the_apis_parameters_hold_offline(demo_oracle: Oracle, tmp_path: Path) -> None:
    schema = {"type": "object", "properties": {"ok": {"type": "boolean"}}, "required": ["ok"]}
    base = {"prompt": "Say: ", "temperature": 1.2, "seed": 1}
    lines = [
        {"id": "several", **base, "n": 3, "max_tokens": 6, "ignore_eos": True, "logprobs": 2},
        {"id": "json", **base, "guided_json": schema, "adapter": "extract"},
        {"id": "biased", **base, "logit_bias": {"65": 100}, "min_tokens": 4, "max_tokens": 4},
        {"id": "stopped", **base, "logit_bias": {"65": 100}, "stop_token_ids": [65]},
    ]
    several, grammar, biased, stopped = run_generate(demo_oracle, tmp_path, lines)
    choices = several["choices"]
    assert [choice["index"] for choice in choices] == [0, 1, 2]
    assert len({choice["text"] for choice in choices}) > 1
    assert several["usage"]["completion_tokens"] == 18
    for choice in choices:
        assert [e["token_id"] for e in choice["logprobs"]] == choice["token_ids"]
        assert all(len(e["top_logprobs"]) == 2 for e in choice["logprobs"])
    assert isinstance(json.loads(grammar["text"])["ok"], bool)
    assert (biased["text"], biased["finish_reason"]) == ("AAAA", "length")
    assert (stopped["token_ids"], stopped["finish_reason"]) == ([65], "stop")


def test_a_refused_adapter_names_its_faults(tmp_path: Path) -> None:
    folder = tmp_path / "broken"
    folder.mkdir()
    for name in ("adapter_config.json", "adapter_model.safetensors"):
        data = (ADAPTERS_DIR / "shout" / name).read_bytes()
        (folder / name).write_bytes(data if name.endswith("json") else data[:-4])
    (tmp_path / "in.jsonl").write_text('{"id": "a", "prompt": "x", "adapter": "b"}\n')
    command = ["generate", "--base", str(BASE_DIR), "--requests", str(tmp_path / "in.jsonl")]
    command += ["--out", str(tmp_path / "out.jsonl"), "--adapter", f"b={folder}"]
    result = CliRunner().invoke(app, command)
    assert result.exit_code == 1
    assert "refused" in result.output
