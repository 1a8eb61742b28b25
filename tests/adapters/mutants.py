"""Adapters that went wrong in one to four places, each chosen by a random generator.

The mutator knows what an upload is made of: keys of the config, names, shapes, dtypes and values of
tensors, entries and offsets of the header, bytes. Some changes leave a good adapter; most do not.
A mutant is determined by the generator's state, so a number is enough to make it again.
"""

from __future__ import annotations

import json
import random
import struct
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
from tests.adapters.uploads import DTYPES, Tensor, Upload


class Mutator:
    """Makes mutants of good adapters: `originals` by name, each a config and its tensors."""

    def __init__(self, originals: Mapping[str, tuple[dict[str, Any], Mapping[str, Any]]]) -> None:
        self.originals = {
            name: (config, {key: Tensor.of(values) for key, values in tensors.items()})
            for name, (config, tensors) in originals.items()
        }

    def mutate(self, rng: random.Random) -> Upload:
        name = rng.choice(sorted(self.originals))
        config, tensors = self.originals[name]
        upload = Upload(
            json.loads(json.dumps(config)),
            {key: Tensor(t.dtype, list(t.shape), t.data) for key, t in tensors.items()},
            changes=[name],
        )
        for _ in range(rng.choice((1, 1, 1, 2, 3, 4))):
            change = rng.choice(CHANGES)
            upload.changes.append(change.__name__)
            change(upload, rng)
        return upload


# ---- the config ----

NASTY: Sequence[Any] = (
    None, True, False, 0, 1, -1, 3, 4, 65536, 2**70, 0.5, -0.0, 1e300, 1e-300, "", "LORA", "all",
    "all-linear", "none", "\0", "\u202e", "é" * 50, "../../etc/passwd", "(a+)+$", ".*" * 40, [], {},
    [[]], [None], ["q_proj"], ["q_proj", 7], {"q_proj": 2}, {"(.*)*x": 3}, {"": 1}, {"a" * 301: 1},
    {"q_proj": "4"}, {"q_proj": 1e9}, {"q_proj": -1}, {"layers.0.": 2}, {"up.*": 4},
)  # fmt: skip
KEYS = (
    "peft_type", "r", "lora_alpha", "rank_pattern", "alpha_pattern", "use_rslora", "use_dora",
    "bias", "fan_in_fan_out", "init_lora_weights", "target_modules", "exclude_modules",
    "layers_to_transform", "layers_pattern", "target_parameters", "modules_to_save",
    "layer_replication", "lora_bias", "alora_invocation_tokens", "trainable_token_indices",
    "megatron_config", "auto_mapping", "peft_version", "base_model_name_or_path", "revision",
    "ensure_weight_tying", "arrow_config", "use_qalora", "a_key_from_next_year",
)  # fmt: skip


def set_a_key(upload: Upload, rng: random.Random) -> None:
    upload.config[rng.choice(KEYS)] = rng.choice(NASTY)


def drop_a_key(upload: Upload, rng: random.Random) -> None:
    if upload.config:
        del upload.config[rng.choice(sorted(upload.config))]


def scale_alpha(upload: Upload, rng: random.Random) -> None:
    upload.config["lora_alpha"] = rng.choice((1, 3.5, -2, 0, 1e6, 1e-12))
    upload.config["use_rslora"] = rng.choice((True, False, None))


def set_a_pattern(upload: Upload, rng: random.Random) -> None:
    pieces = ("q_proj", "layers", r"\.", ".", "0", "1", "*", "+", "?", "(", ")", "|", "[0-9]", "$")
    pattern = "".join(rng.choice(pieces) for _ in range(rng.randrange(1, 12)))
    table = rng.choice(("rank_pattern", "alpha_pattern"))
    upload.config[table] = {pattern: rng.choice((1, 2, 4, 8))}


def set_the_version(upload: Upload, rng: random.Random) -> None:
    versions = ("0.17.1", "0.18.0", "0.19.0", "0.21.2", "1.0", "x", "", None)
    upload.config["peft_version"] = rng.choice(versions)


def edit_the_configs_text(upload: Upload, rng: random.Random) -> None:
    edits: Sequence[Callable[[bytes], bytes]] = (
        lambda text: text[:-1] + b',"r":4}',
        lambda text: text.replace(b": 8", b": NaN", 1),
        lambda text: text.replace(b": 8", b": 1e400", 1),
        lambda text: text.replace(b": 8", b": " + b"8" * 4000, 1),
        lambda text: text[:-1] + b',"x":' + b"[" * 10_000 + b"]" * 10_000 + b"}",
        lambda text: b"\xef\xbb\xbf" + text,
        lambda text: text.decode("latin-1").encode("utf-16"),
        lambda text: b"[" + text + b"]",
        lambda text: text[:-1] + b',"\\ud800":null}',
        lambda text: b"  \n" + text + b"\n\n",
        lambda text: text[:-1] + b',"eva_config":[' + b"[]," * 40_000 + b"0]}",
    )
    upload.text_edits.append(rng.choice(edits))


def flip_bytes_of_the_config(upload: Upload, rng: random.Random) -> None:
    upload.text_edits.append(_flips(rng))


# ---- names, shapes, dtypes, values ----


def _a_name(upload: Upload, rng: random.Random) -> str | None:
    return rng.choice(list(upload.tensors)) if upload.tensors else None


def rename_a_tensor(upload: Upload, rng: random.Random) -> None:
    if (name := _a_name(upload, rng)) is None:
        return
    old, new = rng.choice((
        ("layers.0", "layers.1"), ("layers.1", "layers.0"), ("layers.0", "layers.00"),
        ("layers.0", "layers.999999"), ("layers.0", "layers.-1"), ("q_proj", "k_proj"),
        ("q_proj", "o_proj"), ("up_proj", "gate_proj"), ("experts.0", "experts.9"),
        ("experts.0", "experts.1"), ("lora_A", "lora_B"), ("lora_B", "lora_A"),
        ("lora_A.weight", "lora_A.default.weight"), ("lora_A", "lora_embedding_A"),
        ("lora_A", "lora_magnitude_vector"), ("lora_B.weight", "lora_B.bias"),
        ("base_model.model.", ""), ("base_model.model.", "base_model.model.base_model.model."),
        ("self_attn", "linear_attn"), ("mlp", "mlp.shared_expert"), ("mlp", "mlp.gate"),
        (".experts", ".experts.base_layer"), ("weight", "weight\n"), ("weight", "Weight"),
        ("proj", "pr\u043ej"), ("model", "\0"), ("model.layers", "lm_head"),
    ))  # fmt: skip
    upload.tensors = {
        (key.replace(old, new, 1) if key == name else key): t for key, t in upload.tensors.items()
    }


def move_a_layer(upload: Upload, rng: random.Random) -> None:
    old, new = rng.choice((("layers.0.", "layers.1."), ("layers.1.", "layers.0.")))
    upload.tensors = {key.replace(old, new): t for key, t in upload.tensors.items()}


def drop_a_tensor(upload: Upload, rng: random.Random) -> None:
    if (name := _a_name(upload, rng)) is not None:
        del upload.tensors[name]


def drop_a_module(upload: Upload, rng: random.Random) -> None:
    if (name := _a_name(upload, rng)) is not None:
        module = name.partition(".lora_")[0]
        for key in [key for key in upload.tensors if key.startswith(module + ".")]:
            del upload.tensors[key]


def copy_a_tensor(upload: Upload, rng: random.Random) -> None:
    if (name := _a_name(upload, rng)) is not None:
        t = upload.tensors[name]
        upload.tensors[name + rng.choice(("2", ".weight", ""))] = Tensor(t.dtype, t.shape, t.data)


def reorder_tensors(upload: Upload, rng: random.Random) -> None:
    names = list(upload.tensors)
    rng.shuffle(names)
    upload.tensors = {name: upload.tensors[name] for name in names}


def reshape_a_tensor(upload: Upload, rng: random.Random) -> None:
    if (name := _a_name(upload, rng)) is None:
        return
    t = upload.tensors[name]
    count = int(np.prod(t.shape))
    t.shape = rng.choice((
        t.shape[::-1], [count], [1, *t.shape], [*t.shape, 1], [count, 1], [2, count // 2], [],
        [0], [0, 2**40], [2**62, 4], [2**31, 2**31], [-1, count], [1] * 9,
    ))  # fmt: skip


def cut_rank(upload: Upload, rng: random.Random) -> None:
    """One rank row less, of one factor or of its partner, too."""
    if (name := _a_name(upload, rng)) is None:
        return
    partner = name.replace("lora_A", "*").replace("lora_B", "lora_A").replace("*", "lora_B")
    for key in (name, partner) if rng.random() < 0.5 else (name,):
        t = upload.tensors.get(key)
        if t is None or len(t.shape) != 2 or len(t.data) != DTYPES[t.dtype] * int(np.prod(t.shape)):
            continue
        values = t.values().reshape(t.shape)
        values = values[:-1] if "lora_A" in key else values[:, :-1]
        t.shape = list(values.shape)
        t.set_values(values, t.dtype)


def convert_tensors(upload: Upload, rng: random.Random) -> None:
    """To another dtype, as a trainer would save them."""
    dtype = rng.choice(sorted(DTYPES))
    for t in upload.tensors.values():
        if t.dtype in DTYPES and len(t.data) == DTYPES[t.dtype] * int(np.prod(t.shape)):
            t.set_values(t.values(), dtype)


def relabel_a_dtype(upload: Upload, rng: random.Random) -> None:
    if (name := _a_name(upload, rng)) is not None:
        upload.entries[name] = {
            "dtype": rng.choice(("F16", "BF16", "F32", "F64", "I8", "F8_E4M3", "BOOL", "f32", "")),
            "shape": upload.tensors[name].shape,
            "data_offsets": [0, len(upload.tensors[name].data)],
        }


def set_values(upload: Upload, rng: random.Random) -> None:
    if (name := _a_name(upload, rng)) is None:
        return
    t = upload.tensors[name]
    if t.dtype not in DTYPES or not t.data or len(t.data) % DTYPES[t.dtype]:
        return
    values = t.values().copy()
    value = rng.choice((np.nan, np.inf, -np.inf, 0.0, 1e-40, 1e-45, 6e4, 1e30, 3e38, 1.0))
    values[rng.choice((slice(None), slice(-1, None), slice(0, 1)))] = value
    t.set_values(values, t.dtype)


def scale_values(upload: Upload, rng: random.Random) -> None:
    factor = rng.choice((1e-30, 1e-3, 0.5, 10.0, 1e6))
    for t in upload.tensors.values():
        if t.dtype in DTYPES and not len(t.data) % DTYPES[t.dtype]:
            with np.errstate(over="ignore"):
                t.set_values(t.values() * np.float32(factor), t.dtype)


# ---- the header and the file ----


def lie_in_an_entry(upload: Upload, rng: random.Random) -> None:
    if (name := _a_name(upload, rng)) is None:
        return
    t = upload.tensors[name]
    n = len(t.data)
    good = {"dtype": t.dtype, "shape": t.shape, "data_offsets": [0, n]}
    upload.entries[name] = rng.choice((
        {**good, "data_offsets": [n, 0]}, {**good, "data_offsets": [-8, n - 8]},
        {**good, "data_offsets": [1, n + 1]}, {**good, "data_offsets": [0, 2**63]},
        {**good, "data_offsets": [2**64 - n, 2**64]}, {**good, "data_offsets": [0.0, float(n)]},
        {**good, "data_offsets": [n, 2 * n]}, {**good, "data_offsets": "0,8"},
        {**good, "shape": [True, n // 4]}, {**good, "shape": None}, {**good, "more": 1},
        {"dtype": "F32"}, [], None, 7, "F32", {**good, "dtype": {"a": [1]}}, {},
    ))  # fmt: skip


def set_metadata(upload: Upload, rng: random.Random) -> None:
    upload.entries["__metadata__"] = rng.choice((
        {"format": "pt"}, {}, {"a": 1}, None, [], "x", {"a": {}}, {"é\0": "\u202e"},
        {"a": "b" * 300_000}, {str(i): "" for i in range(300)},
    ))  # fmt: skip


def edit_the_header(upload: Upload, rng: random.Random) -> None:
    first = next(iter(upload.tensors), "a")
    again = json.dumps(first).encode() + b":{}}"
    edits: Sequence[Callable[[bytes], bytes]] = (
        lambda text: text[:-1] + b"," + again,
        lambda text: text + b" " * 64,
        lambda text: text + b"\0" * 8,
        lambda text: b" " + text,
        lambda text: text.replace(b'"shape"', b'"shape":[1],"shape"', 1),
        lambda text: text.replace(b'"dtype"', b'"d\\u0074ype"', 1),
        lambda text: text[: len(text) // 2],
        lambda text: text[:-1] + b',"a":' + b"[" * 5000 + b"]" * 5000 + b"}",
        lambda text: text[:-1],
        _indented,
        lambda text: text.replace(b"[0,", b"[00,").replace(b"[0, ", b"[-0, "),
    )
    upload.header_edits.append(rng.choice(edits))


def _indented(text: bytes) -> bytes:
    """The same to a reader of JSON, where it is JSON."""
    try:
        return json.dumps(json.loads(text), indent=1).encode("utf-8", "surrogatepass")
    except (ValueError, RecursionError):
        return text


def flip_bytes_of_the_header(upload: Upload, rng: random.Random) -> None:
    upload.header_edits.append(_flips(rng))


def edit_the_file(upload: Upload, rng: random.Random) -> None:
    length = rng.choice((0, 1, 2**24 + 1, 2**32, 2**63, 2**64 - 1))
    cut = rng.random()
    edits: Sequence[Callable[[bytes], bytes]] = (
        lambda file: struct.pack("<Q", length) + file[8:],
        lambda file: file[: int(cut * len(file))],
        lambda file: file[: len(file) - 1],
        lambda file: file + b"\0",
        lambda file: file + file,
        lambda file: file[8:],
        lambda file: b"PK\x03\x04" + file[4:],
        lambda file: b"\x80\x04" + file[2:],
        lambda file: b"",
    )
    upload.file_edits.append(rng.choice(edits))


def flip_bytes_of_the_file(upload: Upload, rng: random.Random) -> None:
    upload.file_edits.append(_flips(rng))


def _flips(rng: random.Random) -> Callable[[bytes], bytes]:
    places = [(rng.random(), rng.randrange(256)) for _ in range(rng.choice((1, 1, 2, 5)))]

    def flip(data: bytes) -> bytes:
        flipped = bytearray(data)
        for place, value in places:
            if flipped:
                flipped[int(place * len(flipped))] = value
        return bytes(flipped)

    return flip


CHANGES: Sequence[Callable[[Upload, random.Random], None]] = (
    set_a_key, set_a_key, set_a_key, drop_a_key, scale_alpha, set_a_pattern, set_the_version,
    edit_the_configs_text, flip_bytes_of_the_config, rename_a_tensor, rename_a_tensor, move_a_layer,
    drop_a_tensor, drop_a_module, copy_a_tensor, reorder_tensors, reshape_a_tensor, cut_rank,
    convert_tensors, relabel_a_dtype, set_values, scale_values, lie_in_an_entry, set_metadata,
    edit_the_header, flip_bytes_of_the_header, edit_the_file, flip_bytes_of_the_file,
)  # fmt: skip
