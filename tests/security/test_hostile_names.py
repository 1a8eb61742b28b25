"""Attack class 33: names that mean something to a path, a terminal or a hurried eye."""

from __future__ import annotations

from collections.abc import Callable
from urllib.parse import quote

from tests.gateway.site import Site

NAMES = (
    "..", ".", "...", "a/../b", "../a", "/etc/passwd", "a\\b", "%2e%2e", "a%2fb", "CON", "nul.txt:",
    "a" * 300, "a" * 64, "", " ", "a b", "a\tb", "a\r\nx-evil: 1", "a\0b", "\u202ebot", "b\u043et",
    "\uff42\uff4f\uff54", "bot\u200b", "b\u00f6t", "Bot", "-rf", "~root", "$(id)", "`id`", "'--",
    '"', "<script>", "{{7*7}}", "a..b", "bot@v1", "bot:x", "*", "?", "\U0001f916",
)  # fmt: skip


def test_33_names_outside_the_plain_alphabet_are_refused(site: Site, mallory: str) -> None:
    for name in NAMES:
        body = {"name": name, "base_model": "tiny"}
        answer = site.call(mallory, "POST", "/v1/adapters", json=body)
        assert answer.status_code == 400, name
        assert answer.json()["error"]["param"] == "name", name
    listed = site.call(mallory, "GET", "/v1/adapters").json()["data"]
    assert [row["name"] for row in listed] == ["bot"]


def test_33_aliases_and_model_names_are_held_to_the_same_alphabet(
    site: Site, lora: Callable[..., dict[str, bytes]]
) -> None:
    key = site.tenant("pointers")
    site.create_adapter(key, "bot")
    assert site.upload(key, "bot", lora()).status_code == 201
    for name in NAMES:
        path = f"/v1/adapters/bot/aliases/{quote(name, safe='')}"
        answer = site.call(key, "PUT", path, json={"version": 1})
        # where the path is another one by then, there is no such route
        assert answer.status_code in (400, 404, 405), name
        body = {"model": f"bot@{name}", "prompt": "x", "max_tokens": 1}
        if name:
            answer = site.call(key, "POST", "/v1/completions", json=body)
            assert answer.status_code in (400, 404), name
    (alias,) = site.call(key, "GET", "/v1/adapters/bot/aliases").json()["data"]
    assert alias["id"] == "default"
    good = site.call(key, "PUT", "/v1/adapters/bot/aliases/prod-1.x", json={"version": 1})
    assert good.status_code == 200


def test_33_a_name_in_a_path_leads_where_the_plain_path_leads(site: Site, mallory: str) -> None:
    for name in ("..%2f..%2fadmin%2fv1%2ftenants", "%2e%2e/%2e%2e/metrics", "bot%00", "b%6ft2"):
        answer = site.call(mallory, "GET", f"/v1/adapters/{name}")
        assert answer.status_code in (400, 403, 404), (name, answer.text)
    plain = site.call(mallory, "GET", "/v1/adapters/bot/versions")
    encoded = site.call(mallory, "GET", "/v1/adapters/b%6ft%2fversions")
    assert (plain.status_code, plain.content) == (encoded.status_code, encoded.content)
