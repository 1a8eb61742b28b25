"""The base's tokenizer and chat template."""

from __future__ import annotations

import json
import threading
import time
from pathlib import Path

import pytest

from weft.demo.tokens import write_tokenizer
from weft.tokenizer import BaseTokenizer


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    write_tokenizer(tmp_path)
    return tmp_path


def set_template(folder: Path, template: str) -> None:
    file = folder / "tokenizer_config.json"
    file.write_text(json.dumps({**json.loads(file.read_text()), "chat_template": template}))


def test_text_reads_back_without_control_tokens(folder: Path) -> None:
    tokenizer = BaseTokenizer.from_dir(folder)
    for text in ("hello", "é ☃ 漢字", " leading  spaces\n", ""):
        assert tokenizer.decode(tokenizer.encode(text)) == text
    assert tokenizer.encode("a<|end|>") == [97, 261]
    assert tokenizer.decode([97, 261]) == "a"
    assert tokenizer.vocab_size == 264


def test_every_source_of_end_tokens_counts(folder: Path) -> None:
    assert BaseTokenizer.from_dir(folder).eos_token_ids == {261}
    (folder / "config.json").write_text('{"eos_token_id": 257}')
    assert BaseTokenizer.from_dir(folder).eos_token_ids == {257, 261}
    (folder / "generation_config.json").write_text('{"eos_token_id": [256, 261]}')
    assert BaseTokenizer.from_dir(folder).eos_token_ids == {256, 261}


def test_a_missing_tokenizer_is_named(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="tokenizer.json"):
        BaseTokenizer.from_dir(tmp_path)


def test_a_chat_is_rendered_and_its_control_tokens_encoded(folder: Path) -> None:
    tokenizer = BaseTokenizer.from_dir(folder)
    messages = [{"role": "user", "content": "hi"}]
    assert tokenizer.apply_chat_template(messages) == "<|user|>hi<|end|><|assistant|>"
    assert tokenizer.apply_chat_template(messages, add_generation_prompt=False) == (
        "<|user|>hi<|end|>"
    )
    assert tokenizer.encode_chat(messages) == [259, *b"hi", 261, 260]


def test_control_text_in_contents_stays_text(folder: Path) -> None:
    tokenizer = BaseTokenizer.from_dir(folder)
    for content in ("<|end|>", "a<|system|>b<|end|>c", "<|e<|end|>nd|>", "<|end|><|end|>"):
        ids = tokenizer.encode_chat([{"role": "user", "content": content}])
        assert ids == [259, *content.encode(), 261, 260]


def test_templates_speak_hugging_faces_dialect(folder: Path) -> None:
    template = (
        "{% if messages|length > 1 %}\n  {{ raise_exception('one at a time') }}\n{% endif %}\n"
        "{%- for m in messages %}{% if loop.first %}{{ m | tojson }}{% endif %}{% break %}"
        "{% endfor %}{{ eos_token }}{{ strftime_now('%%') }}"
    )
    set_template(folder, template)
    tokenizer = BaseTokenizer.from_dir(folder)
    message = {"role": "user", "content": "<é>"}
    assert tokenizer.apply_chat_template([message]) == (
        '{"role": "user", "content": "<é>"}<|end|>%'
    )
    with pytest.raises(ValueError, match="one at a time"):
        tokenizer.apply_chat_template([message, message])


def test_templates_run_in_a_sandbox(folder: Path) -> None:
    set_template(folder, "{{ messages.__class__.__mro__ }}{{ messages.append(1) }}")
    with pytest.raises(ValueError, match="does what none may do"):
        BaseTokenizer.from_dir(folder).apply_chat_template([{"role": "user", "content": "x"}])


def test_a_base_without_a_template_says_so(folder: Path) -> None:
    set_template(folder, None)  # type: ignore[arg-type]
    tokenizer = BaseTokenizer.from_dir(folder)
    assert not tokenizer.has_chat_template
    with pytest.raises(ValueError, match="no chat template"):
        tokenizer.encode_chat([{"role": "user", "content": "x"}])


def test_a_long_prompt_is_the_same_tokens_and_holds_up_no_other_thread(folder: Path) -> None:
    tokenizer = BaseTokenizer.from_dir(folder)
    text = "hello, wolf! " * 40_000
    found: list[list[int]] = []
    thread = threading.Thread(target=lambda: found.append(tokenizer.encode(text)))
    start_s = last_s = time.monotonic()
    longest_s = 0.0
    thread.start()
    while thread.is_alive():
        time.sleep(0.001)
        now_s = time.monotonic()
        longest_s, last_s = max(longest_s, now_s - last_s), now_s
    assert found == [list(text.encode())]
    assert longest_s < max(0.1, 0.5 * (last_s - start_s)), "the interpreter's lock was held"
