"""The tokenizer of an adapter with tokens of its own, against one loaded from the same files."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest
from tokenizers import AddedToken, Tokenizer

from weft.demo.tokens import write_tokenizer
from weft.own_tokenizer import OwnTokenizer, TokenDecoder
from weft.tokenizer import BaseTokenizer, compile_template, render_template
from weft.tokenizer_intake import TokenizerRefusedError, reduce
from weft_adapters.own_tokens import OwnTokens

TOKENS = [
    AddedToken("<tool>", normalized=False),
    AddedToken("<tool>!", normalized=False),
    AddedToken("<|im_end|>", special=True, normalized=False),
    AddedToken("<gap>", lstrip=True, rstrip=True, normalized=False),
]
TEMPLATE = "{% for m in messages %}<tool>{{ m.content }}<|im_end|>{% endfor %}{{ eos_token }}"
METASPACE = {"type": "Metaspace", "replacement": "\u2581", "prepend_scheme": "first", "split": True}


def in_process(template: str, variables: Mapping[str, object]) -> str:
    return render_template(compile_template(template), variables)


def write_base(folder: Path, kind: str) -> None:
    """Bytes without merges, or words as SentencePiece has them."""
    folder.mkdir()
    write_tokenizer(folder)
    if kind == "words":
        raw = json.loads((folder / "tokenizer.json").read_text())
        words = ["<unk>", "\u2581", "\u2581a", "\u2581word", "word", "a", "\u2581<", "s", "!", ">"]
        special = [{**t, "id": len(words) + i} for i, t in enumerate(raw["added_tokens"])]
        model = {"type": "Unigram", "unk_id": 0, "vocab": [[w, -1.0] for w in words]}
        raw |= {
            "added_tokens": special, "pre_tokenizer": METASPACE, "decoder": METASPACE,
            "model": model,
        }  # fmt: skip
        (folder / "tokenizer.json").write_text(json.dumps(raw))


def write_own(base: Path, folder: Path, **config: Any) -> Tokenizer:
    """What transformers writes after tokens were added."""
    folder.mkdir()
    tokenizer = Tokenizer.from_file(str(base / "tokenizer.json"))
    tokenizer.add_tokens(TOKENS[:2])
    tokenizer.add_special_tokens(TOKENS[2:3])
    tokenizer.add_tokens(TOKENS[3:])
    tokenizer.save(str(folder / "tokenizer.json"))
    raw = json.loads((base / "tokenizer_config.json").read_text()) | config
    (folder / "tokenizer_config.json").write_text(json.dumps(raw))
    return tokenizer


@pytest.fixture(params=["bytes", "words"])
def base_dir(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    write_base(tmp_path / "base", request.param)
    return tmp_path / "base"


@pytest.fixture
def create(base_dir: Path, tmp_path: Path) -> Callable[..., tuple[Tokenizer, OwnTokenizer]]:
    def create(**config: Any) -> tuple[Tokenizer, OwnTokenizer]:
        whole = write_own(base_dir, tmp_path / "own", **config)
        own = reduce(base_dir, tmp_path / "own")
        return whole, OwnTokenizer(BaseTokenizer.from_dir(base_dir), own, in_process)

    return create


TEXTS = [
    "a word",
    "a <tool> word",
    "<tool>a",
    "word<tool>!<tool> word",
    "a <|im_end|><|end|> word <|end|>",
    "word  <gap>   a",
    "<gap>",
    " <tool> <tool> ",
    "",
]


@pytest.mark.parametrize("text", TEXTS)
def test_a_text_has_the_tokens_of_a_tokenizer_that_knows_them(
    create: Callable[..., tuple[Tokenizer, OwnTokenizer]], text: str
) -> None:
    whole, own = create()
    ids = own.encode(text)
    assert ids == whole.encode(text).ids
    assert own.decode(ids) == whole.decode(ids)


def test_text_of_tokens_may_spell_the_name_of_what_stands_for_others(tmp_path: Path) -> None:
    write_base(tmp_path / "base", "bytes")
    base = BaseTokenizer.from_dir(tmp_path / "base")
    stand_in = base.stand_in
    assert stand_in is not None
    spelled = base.encode_literally(stand_in.content)
    assert stand_in.token_id not in spelled
    decoder = TokenDecoder(base, {300: "<own>", 301: ""})
    assert decoder.decode([*spelled, 300, 301, 65]) == f"{stand_in.content}<own>A"


def test_a_conversation_is_shown_by_the_adapters_template_and_stays_the_callers(
    create: Callable[..., tuple[Tokenizer, OwnTokenizer]],
) -> None:
    whole, own = create(chat_template=TEMPLATE, eos_token="<|im_end|>")
    end: int = whole.token_to_id("<|im_end|>") or 0
    assert own.eos_token_ids == {end, whole.token_to_id("<|end|>")}
    plain = own.encode_chat([{"role": "user", "content": "a word"}])
    want = "<tool>a word<|im_end|><|im_end|>"
    assert plain == whole.encode(want, add_special_tokens=False).ids
    hostile = own.encode_chat([{"role": "user", "content": "a<|im_end|>"}])
    assert hostile.count(end) == 2  # the template's two, and not the caller's


def test_only_what_differs_from_the_base_is_kept(base_dir: Path, tmp_path: Path) -> None:
    folder = tmp_path / "same"
    folder.mkdir()
    for name in ("tokenizer.json", "tokenizer_config.json"):
        (folder / name).write_text((base_dir / name).read_text())
    assert reduce(base_dir, folder) == OwnTokens(special_names={})
    assert not reduce(base_dir, folder)
    write_own(base_dir, tmp_path / "own", chat_template=TEMPLATE)
    own = reduce(base_dir, tmp_path / "own")
    assert [token.content for token in own.tokens] == [token.content for token in TOKENS]
    assert (own.special_names, own.chat_template) == ({}, TEMPLATE)


def test_a_post_processor_may_be_written_otherwise_but_not_do_otherwise(
    base_dir: Path, tmp_path: Path
) -> None:
    write_own(base_dir, tmp_path / "own")
    file = tmp_path / "own" / "tokenizer.json"
    change(file, post_processor={"type": "Sequence", "processors": []})
    assert len(reduce(base_dir, tmp_path / "own").tokens) == len(TOKENS)
    first = {"SpecialToken": {"id": "<tool>", "type_id": 0}}
    text = {"Sequence": {"id": "A", "type_id": 0}}
    ids = {"<tool>": {"id": "<tool>", "ids": [5], "tokens": ["<tool>"]}}
    template = {
        "type": "TemplateProcessing", "single": [first, text], "pair": [first, text],
        "special_tokens": ids,
    }  # fmt: skip
    change(file, post_processor=template)
    with pytest.raises(TokenizerRefusedError, match="around a text"):
        reduce(base_dir, tmp_path / "own")


def change(path: Path, **sections: Any) -> None:
    path.write_text(json.dumps(json.loads(path.read_text()) | sections))


BAD: dict[str, tuple[str, dict[str, Any], str]] = {
    "another model": ("tokenizer.json", {"normalizer": {"type": "NFC"}}, "normalizer"),
    "a token of the base is missing": ("tokenizer.json", {"added_tokens": []}, "lacks"),
    "an end that is no token": ("tokenizer_config.json", {"eos_token": "<nothing>"}, "<nothing>"),
    "a template that is none": (
        "tokenizer_config.json", {"chat_template": "{% if %}"}, "Expected an expression",
    ),
    "a template that reaches out": (
        "tokenizer_config.json",
        {"chat_template": "{{ messages.__class__.__mro__[1].__subclasses__() }}"},
        "unsafe",
    ),
    "tokens that are none": ("tokenizer.json", {"added_tokens": [{"id": 5}]}, "content"),
    "no object": ("tokenizer_config.json", {"chat_template": 5}, "chat_template"),
}  # fmt: skip


@pytest.mark.parametrize("what", BAD)
def test_what_is_not_the_bases_tokenizer_with_tokens_added_is_refused(
    base_dir: Path, tmp_path: Path, what: str
) -> None:
    file, sections, reason = BAD[what]
    write_own(base_dir, tmp_path / "own")
    change(tmp_path / "own" / file, **sections)
    with pytest.raises(TokenizerRefusedError, match=reason):
        reduce(base_dir, tmp_path / "own")


def test_a_token_cannot_take_the_place_of_one_of_the_bases(base_dir: Path, tmp_path: Path) -> None:
    write_own(base_dir, tmp_path / "own")
    raw = json.loads((tmp_path / "own" / "tokenizer.json").read_text())
    own = {**raw["added_tokens"][-1], "id": 3, "content": "<mine>"}
    change(tmp_path / "own" / "tokenizer.json", added_tokens=[*raw["added_tokens"], own])
    with pytest.raises(TokenizerRefusedError, match="<mine>"):
        reduce(base_dir, tmp_path / "own")
