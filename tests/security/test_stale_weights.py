"""Attack class 40: the known ways in which servers answered with an adapter's old weights, another
adapter's, or another tenant's. What is right is what PEFT says of each adapter by itself."""

from __future__ import annotations

import json
import random
import shutil
import time
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING, Any

import boto3
import httpx2
import pytest
from benchmarks.chaos import s3_server
from tests.gateway.site import Site

from weft.app import build_engine, create_app
from weft.demo import ADAPTERS_DIR, BASE_DIR, BASE_NAME
from weft.messages import EngineRequest, SamplingParams
from weft.server.http import background_server
from weft.settings import ServerSettings
from weft.tokenizer import BaseTokenizer

if TYPE_CHECKING:
    from tests.bench import Bench
    from tests.oracle import NearTies, Oracle

    from weft.engine.build import BuiltEngine

pytestmark = pytest.mark.slow

PROMPT = "wolf apple tiger river stone cloud house green table paper"
KERNELS = ("native", "torch")
BUCKETS = ("one-bucket", "other-bucket")


@pytest.fixture(scope="module")
def s3() -> Iterator[str]:
    """The address of an S3 server with two buckets."""
    with pytest.MonkeyPatch.context() as patch, s3_server() as url:
        patch.setenv("AWS_ACCESS_KEY_ID", "test")
        patch.setenv("AWS_SECRET_ACCESS_KEY", "test")
        patch.setenv("AWS_DEFAULT_REGION", "us-east-1")
        for bucket in BUCKETS:
            boto3.client("s3", endpoint_url=url).create_bucket(Bucket=bucket)
        yield url


@pytest.fixture(scope="module")
def live(tmp_path_factory: pytest.TempPathFactory, migrated: Path, s3: str) -> Iterator[Site]:
    """The demo base behind the API, with room on the device for its largest adapter alone."""
    root = tmp_path_factory.mktemp("live")
    (root / "data").mkdir()
    shutil.copy(migrated, root / "data" / "weft.db")
    settings = ServerSettings(
        base_dir=BASE_DIR, base_name=BASE_NAME, data_dir=root / "data", port=0, dtype="float32",
        adapter_bytes=1_300_000, host_adapter_bytes=1_300_000, num_threads=1,
        s3_endpoint_url=s3, import_buckets=BUCKETS,
    )  # fmt: skip
    engine: Any = build_engine(settings)
    app = create_app(settings, engine, BaseTokenizer.from_dir(BASE_DIR))
    with background_server(app, settings) as url:
        operator_key = (settings.data_dir / "operator_key").read_text().strip()
        http = httpx2.Client(base_url=url, timeout=60.0)
        running = Site(url, app, engine, settings, operator_key, http)
        yield running
        running.close()
    engine.close()


@pytest.fixture(scope="module")
def golden(demo_oracle: Oracle) -> Callable[[str], str]:
    """The answer to the prompt that PEFT gives with one of the demo's adapters."""
    tokenizer = BaseTokenizer.from_dir(BASE_DIR)
    prompt = tokenizer.encode_chat([{"role": "user", "content": PROMPT}])

    def answer(adapter: str) -> str:
        tokens = demo_oracle.greedy(adapter, prompt, 80)
        end = next(i for i, t in enumerate(tokens) if t in tokenizer.eos_token_ids)
        return tokenizer.decode(tokens[:end])

    return answer


def files_of(adapter: str) -> dict[str, bytes]:
    names = ("adapter_config.json", "adapter_model.safetensors")
    return {name: (ADAPTERS_DIR / adapter / name).read_bytes() for name in names}


def create(live: Site, key: str, name: str) -> None:
    body = {"name": name, "base_model": BASE_NAME}
    live.call(key, "POST", "/v1/adapters", json=body).raise_for_status()


def upload(live: Site, key: str, name: str, adapter: str) -> str:
    """The digest."""
    answer = live.upload(key, name, files_of(adapter))
    assert answer.status_code == 201, answer.text
    return str(answer.json()["digest"])


def body_of(model: str, **more: object) -> dict[str, object]:
    message = {"role": "user", "content": PROMPT}
    return {"model": model, "messages": [message], "temperature": 0, "max_tokens": 80, **more}


def ask(live: Site, key: str, model: str) -> tuple[str, int, str]:
    """The answer, how many tokens of the prompt came from a cache, and the digest."""
    response = live.call(key, "POST", "/v1/chat/completions", json=body_of(model))
    assert response.status_code == 200, response.text
    answer = response.json()
    cached = answer["usage"]["prompt_tokens_details"]["cached_tokens"]
    content = answer["choices"][0]["message"]["content"]
    return content, cached, response.headers["x-weft-adapter-digest"]


def streamed(live: Site, key: str, model: str, on_first: Callable[[], None]) -> tuple[str, int]:
    """The whole answer, and how many pieces of it came after `on_first` had returned."""
    headers = {"authorization": f"Bearer {key}"}
    pieces: list[str] = []
    num_before = 0
    with live.http.stream(
        "POST", "/v1/chat/completions", json=body_of(model, stream=True), headers=headers
    ) as response:
        for line in response.iter_lines():
            if not line.startswith("data: {"):
                continue
            delta = json.loads(line.removeprefix("data: "))["choices"][0]["delta"]
            if not delta.get("content"):
                continue
            if not pieces:
                on_first()
                num_before = 1
            pieces.append(delta["content"])
    return "".join(pieces), len(pieces) - num_before


def test_40_the_same_name_uploaded_again_has_neither_old_weights_nor_old_keys(
    live: Site, golden: Callable[[str], str]
) -> None:
    key = live.tenant("again")
    digests = []
    for adapter in ("shout", "mirror", "shout"):
        create(live, key, "bot")
        digests.append(upload(live, key, "bot", adapter))
        first, cached, digest = ask(live, key, "bot")
        assert (first, digest) == (golden(adapter), digests[-1])
        assert cached == 0 or digest in digests[:-1], "another adapter's keys were used"
        second, cached, _ = ask(live, key, "bot")
        assert second == first
        assert cached > 0, "the cache is to be at work, or it proves nothing"
        live.call(key, "DELETE", "/v1/adapters/bot").raise_for_status()
    assert digests[0] == digests[2] != digests[1]


def test_40_a_stream_keeps_its_version_when_the_alias_moves(
    live: Site, golden: Callable[[str], str]
) -> None:
    key = live.tenant("mover")
    create(live, key, "bot")
    upload(live, key, "bot", "shout")
    upload(live, key, "bot", "mirror")
    alias = "/v1/adapters/bot/aliases/prod"
    live.call(key, "PUT", alias, json={"version": 1}).raise_for_status()

    def move() -> None:
        moved = live.call(key, "PUT", alias, json={"version": 2, "expected_version": 1})
        assert moved.status_code == 200, moved.text
        assert ask(live, key, "bot@prod")[0] == golden("mirror")

    answer, num_after = streamed(live, key, "bot@prod", move)
    assert answer == golden("shout")
    assert num_after > 0, "the alias was to move while the answer was under way"
    assert ask(live, key, "bot@prod")[0] == golden("mirror")


def test_40_a_stream_is_untouched_by_what_is_loaded_and_deleted_beside_it(
    live: Site, golden: Callable[[str], str]
) -> None:
    key, other = live.tenant("streamer"), live.tenant("loader")
    create(live, key, "bot")
    upload(live, key, "bot", "mirror")

    def load_others() -> None:
        for number, adapter in enumerate(("shout", "initials", "extract", "shout")):
            create(live, other, f"bot{number}")
            upload(live, other, f"bot{number}", adapter)
            assert ask(live, other, f"bot{number}")[0] == golden(adapter)
            live.call(other, "DELETE", f"/v1/adapters/bot{number}").raise_for_status()
        live.call(key, "DELETE", "/v1/adapters/bot").raise_for_status()

    answer, _ = streamed(live, key, "bot", load_others)
    assert answer == golden("mirror")


def test_40_the_same_name_of_two_tenants_is_two_adapters_in_one_batch(
    live: Site, golden: Callable[[str], str]
) -> None:
    wanted = {live.tenant("left"): "shout", live.tenant("right"): "mirror"}
    for key, adapter in wanted.items():
        create(live, key, "bot")
        upload(live, key, "bot", adapter)
    jobs = [key for _ in range(6) for key in wanted]
    with ThreadPoolExecutor(len(jobs)) as pool:
        answers = list(pool.map(lambda key: ask(live, key, "bot"), jobs))
    for key, (answer, _, _) in zip(jobs, answers, strict=True):
        assert answer == golden(wanted[key])
    assert len({digest for _, _, digest in answers}) == 2


def test_40_the_same_key_of_two_buckets_is_two_adapters(
    live: Site, s3: str, golden: Callable[[str], str]
) -> None:
    """And the same key of one bucket, overwritten, is another version."""
    client = boto3.client("s3", endpoint_url=s3)

    def put(bucket: str, adapter: str) -> None:
        for name, data in files_of(adapter).items():
            client.put_object(Bucket=bucket, Key=f"team/bot/{name}", Body=data)

    wanted = dict(zip(BUCKETS, ("shout", "mirror"), strict=True))
    keys = {bucket: live.tenant(bucket) for bucket in BUCKETS}
    for bucket, adapter in wanted.items():
        put(bucket, adapter)
        create(live, keys[bucket], "bot")
        import_from(live, keys[bucket], f"s3://{bucket}/team/bot", 1)
    for _ in range(2):
        for bucket, adapter in wanted.items():
            assert ask(live, keys[bucket], "bot")[0] == golden(adapter)
    put(BUCKETS[0], "initials")
    import_from(live, keys[BUCKETS[0]], f"s3://{BUCKETS[0]}/team/bot", 2)
    assert ask(live, keys[BUCKETS[0]], "bot")[0] == golden("initials")
    assert ask(live, keys[BUCKETS[0]], "bot@v1")[0] == golden("shout")


def import_from(live: Site, key: str, uri: str, number: int) -> None:
    path = "/v1/adapters/bot/versions"
    answer = live.call(key, "POST", path, json={"source": {"type": "s3", "uri": uri}})
    assert answer.status_code == 202, answer.text
    end_s = time.monotonic() + 30
    while (version := live.call(key, "GET", f"{path}/{number}").json())["state"] != "ready":
        assert version["state"] in ("uploading", "validating"), version
        assert time.monotonic() < end_s, version
        time.sleep(0.02)


def test_35_bytes_swapped_in_the_store_are_never_served(live: Site) -> None:
    """Between the upload and the load; the server says so, and goes on."""
    key = live.tenant("swapped")
    create(live, key, "bot")
    digest = upload(live, key, "bot", "extract")
    # what lies there now is an adapter, too, but another one
    folder = live.settings.adapters_dir / digest.removeprefix("sha256:")
    engine: Any = live.engine
    for name, data in files_of("initials").items():
        (folder / name).write_bytes(data)
    evict(live, digest)
    answer = live.call(key, "POST", "/v1/chat/completions", json=body_of("bot"))
    assert answer.status_code >= 500, answer.text
    assert "choices" not in answer.json(), answer.text
    assert engine.is_ready


def evict(live: Site, digest: str) -> None:
    """By use of the largest adapter, which leaves room for no other on the device or the host."""
    key = live.tenant(f"evictor-{digest[-6:]}")
    create(live, key, "large")
    upload(live, key, "large", "sorter")
    ask(live, key, "large")
    engine: Any = live.engine
    states = engine.snapshot().adapter_states
    assert states.get(digest, "absent") == "absent", states


@pytest.mark.parametrize("kernels", KERNELS)
def test_40_evicted_adapters_come_back_to_other_pages_as_they_were(
    dense: Bench, near_ties: NearTies, kernels: str
) -> None:
    """Also: what an adapter does not touch shows nothing of the one whose pages it has now."""
    built, digests = dense.build(adapter_bytes=720_000, host_adapter_bytes=1, kernels=kernels)
    rng = random.Random(0)
    seen: dict[str, list[set[int]]] = {name: [] for name in digests}
    names: list[str | None] = [None, *digests]
    try:
        for number in range(24):
            name = rng.choice(names) if number else "all-linear"
            prompt = [rng.randrange(256) for _ in range(9)]
            want = dense.oracle.greedy(name, prompt, 6)
            got = answer_of(built, digests, name, prompt, len(want))
            near_ties.assert_equal_tokens(dense.oracle, name, prompt, got, want)
            if name is not None:
                places = offsets_of(built, digests[name])
                if not seen[name] or seen[name][-1] != places:
                    seen[name].append(places)
    finally:
        built.tiers.integrity()
        built.tiers.close()
    near_ties.assert_rare()
    assert any(len(places) > 1 for places in seen.values()), "nothing came back to other pages"
    # `small` has nothing on the MLP and `mlp` nothing on attention: both took over pages
    others = set().union(*(p for name in ("all-linear", "wide", "patterns") for p in seen[name]))
    assert any(places & others for name in ("small", "mlp") for places in seen[name])


def answer_of(
    built: BuiltEngine, digests: Mapping[str, str], name: str | None, prompt: list[int], num: int
) -> list[int]:
    from weft.engine.offline import run_requests

    sampling = SamplingParams(num, temperature=0, ignore_eos=True)
    digest = None if name is None else digests[name]
    request = EngineRequest("r", "tenant", tuple(prompt), sampling, digest)
    completion = run_requests(built, [request])["r"]
    assert completion.error is None, completion.error
    return completion.token_ids


def offsets_of(built: BuiltEngine, digest: str) -> set[int]:
    """Where the adapter's runs begin, in elements of the arena."""
    pooled = built.pool.get(digest)
    assert pooled is not None, "it has just answered"
    return {run.offset for site in pooled.sites.values() for run in site.runs}
