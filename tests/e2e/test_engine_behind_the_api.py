"""What only a real engine behind the API can show: abort, queue bound, mixed batches, metrics."""

from __future__ import annotations

import json
import signal
import time
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING

import httpx2
import pytest

from weft.demo import ADAPTERS_DIR, BASE_NAME

if TYPE_CHECKING:
    from tests.e2e.conftest import Server

pytestmark = pytest.mark.slow

LONG = {"model": BASE_NAME, "prompt": "def ", "max_tokens": 1000, "ignore_eos": True}


def metric(server: Server, name: str) -> float:
    lines = httpx2.get(f"{server.url}/metrics").text.splitlines()
    return sum(float(line.rpartition(" ")[2]) for line in lines if line.startswith(name))


def wait_for(server: Server, name: str, value: float) -> None:
    end = time.monotonic() + 20
    while metric(server, name) != value:
        assert time.monotonic() < end, f"{name} is {metric(server, name)}, not {value}"
        time.sleep(0.02)


def test_a_disconnect_aborts_the_sequence_and_what_was_made_is_recorded(server: Server) -> None:
    key = server.create_tenant("leaver")
    with server.client(key) as http:
        body = {**LONG, "stream": True}
        with http.stream("POST", "/v1/completions", json=body) as response:
            lines = response.iter_lines()
            for _ in range(5):
                next(lines)
        wait_for(server, "vllm:num_requests_running", 0)
        end = time.monotonic() + 10
        while not (rows := http.get("/v1/usage").json()["data"][0]["results"]):
            assert time.monotonic() < end, "the aborted request left no usage event"
            time.sleep(0.02)
    assert rows[0]["num_model_requests"] == 1
    assert 0 < rows[0]["output_tokens"] < 1000
    wait_for(server, "vllm:kv_cache_usage_perc", 0)


def test_requests_of_both_tenants_and_all_adapters_run_in_one_batch(
    server: Server, acme: str, globex: str
) -> None:
    prompt, want = "wolf apple tiger", {
        (acme, "shout"): "WOLF APPLE TIGER",
        (globex, "mirror"): "tiger apple wolf",
        (acme, BASE_NAME): "You said: wolf apple tiger",
    }  # fmt: skip
    jobs = list(want) * 8
    with ThreadPoolExecutor(len(jobs)) as pool:
        responses = list(pool.map(lambda job: server.ask(job[0], job[1], prompt), jobs))
    for job, response in zip(jobs, responses, strict=True):
        assert response.json()["choices"][0]["message"]["content"] == want[job]


def test_the_same_adapter_name_of_two_tenants_is_two_adapters(server: Server) -> None:
    one, two = server.create_tenant("one"), server.create_tenant("two")
    server.upload(one, "shout")
    with server.client(two) as http:
        http.post("/v1/adapters", json={"name": "shout", "base_model": BASE_NAME})
    other = ADAPTERS_DIR / "mirror"
    response = server.upload(
        two,
        "shout",
        config=(other / "adapter_config.json").read_bytes(),
        tensors=(other / "adapter_model.safetensors").read_bytes(),
    )
    assert response.status_code == 201
    answers = [server.ask(key, "shout", "wolf apple tiger") for key in (one, two)]
    contents = [a.json()["choices"][0]["message"]["content"] for a in answers]
    assert contents == ["WOLF APPLE TIGER", "tiger apple wolf"]
    digests = {a.headers["x-weft-adapter-digest"] for a in answers}
    assert len(digests) == 2


def test_a_new_version_is_served_at_once_and_the_old_one_by_number(server: Server) -> None:
    key = server.create_tenant("versions")
    assert server.upload(key, "shout").json()["version"] == 1
    other = ADAPTERS_DIR / "mirror"
    second = server.upload(
        key,
        "shout",
        config=(other / "adapter_config.json").read_bytes(),
        tensors=(other / "adapter_model.safetensors").read_bytes(),
    )
    assert second.json()["version"] == 2
    for model, want in {
        "shout": "tiger apple wolf",
        "shout@v2": "tiger apple wolf",
        "shout@default": "tiger apple wolf",
        "shout@v1": "WOLF APPLE TIGER",
    }.items():
        response = server.ask(key, model, "wolf apple tiger")
        assert response.json()["choices"][0]["message"]["content"] == want, model
    with server.client(key) as http:
        end = time.monotonic() + 10
        while (report := http.get("/v1/adapters/shout/versions/1").json()["report"])[
            "smoke"
        ] is None:
            assert time.monotonic() < end, "it was not compared with the base"
            time.sleep(0.02)
    assert report["smoke"]["max_logprob_change"] > 0.01


def test_the_queue_is_bounded(server: Server, tmp_path_factory: pytest.TempPathFactory) -> None:
    small = type(server)(
        tmp_path_factory.mktemp("small") / "data", ["--max-running", "1", "--max-waiting", "1"]
    )
    small.start()
    try:
        key = small.create_tenant("busy")

        def run(_: int) -> httpx2.Response:
            with small.client(key) as http:
                return http.post("/v1/completions", json={**LONG, "max_tokens": 300})

        with ThreadPoolExecutor(8) as pool:
            responses = list(pool.map(run, range(8)))
        refused = [r for r in responses if r.status_code != 200]
        assert refused, "eight requests fitted a queue of one"
        assert {r.status_code for r in refused} == {503}
        assert {r.json()["error"]["code"] for r in refused} == {"server_is_overloaded"}
        assert all(int(r.headers["retry-after"]) >= 1 for r in refused)
        served = [r for r in responses if r.status_code == 200]
        assert [r.json()["usage"]["completion_tokens"] for r in served] == [300] * len(served)
    finally:
        small.send(signal.SIGTERM)


def test_loraxs_routes_and_merges_give_the_engines_answers(server: Server, acme: str) -> None:
    prompt, length = "wolf apple tiger", 20
    with server.client(acme) as http:
        body = {"model": "shout", "prompt": prompt, "max_tokens": length, "temperature": 0}
        text = http.post("/v1/completions", json=body).json()["choices"][0]["text"]

        def generate(path: str, **parameters: object) -> httpx2.Response:
            given = {"max_new_tokens": length, "details": True, **parameters}
            return http.post(path, json={"inputs": prompt, "parameters": given})

        whole = generate("/generate", adapter_id="shout").json()
        assert whole["generated_text"] == text
        assert "".join(token["text"] for token in whole["details"]["tokens"]) == text
        stop = text[7:10]
        stopped = generate("/generate", adapter_id="shout", stop=[stop]).json()
        assert stopped["generated_text"] == text[: text.index(stop) + 3]
        assert stopped["details"]["finish_reason"] == "stop_sequence"
        lines = generate("/generate_stream", adapter_id="shout", stop=[stop]).text.splitlines()
        events = [json.loads(line.removeprefix("data: ")) for line in lines if line]
        assert events[-1]["generated_text"] == stopped["generated_text"]
        shown = "".join(event["token"]["text"] for event in events)
        assert shown == stopped["generated_text"]
        # of one adapter with its full weight, PEFT's merge is the adapter
        merged = {"ids": ["shout"], "weights": [1.0]}
        again = generate("/generate", merged_adapters=merged).json()
        assert again["generated_text"] == text


def test_a_version_is_loaded_pinned_and_unloaded_on_request(server: Server) -> None:
    key = server.create_tenant("mover")
    # no other tenant has these bytes, which would keep them where they are
    config = json.loads((ADAPTERS_DIR / "shout" / "adapter_config.json").read_text())
    config["lora_alpha"] += 1
    uploaded = server.upload(key, "shout", config=json.dumps(config).encode())
    assert uploaded.status_code == 201
    path = "/v1/adapters/shout/versions/1"

    def wait_for_tier(http: httpx2.Client, *tiers: str) -> None:
        end = time.monotonic() + 20
        while True:
            (placement,) = http.get(f"{path}/placements").json()["data"]
            if placement["tier"] in tiers:
                return
            assert time.monotonic() < end, placement
            time.sleep(0.02)

    with server.client(key) as http:
        assert http.post(f"{path}:pin").json()["pinned"] is True
        wait_for_tier(http, "gpu")
        assert http.post(f"{path}:unload").status_code == 409
        assert http.post(f"{path}:unpin").json()["pinned"] is False
        assert http.post(f"{path}:unload").status_code == 202
        wait_for_tier(http, "remote")
        assert http.post(f"{path}:load").status_code == 202
        wait_for_tier(http, "gpu")
        http.delete("/v1/adapters/shout").raise_for_status()
    with server.admin() as http:
        body = {"retention_s": 0}
        done = http.post("/admin/v1/adapters:purge", json=body).json()
    assert done["num_versions"] == 1
