"""Rotary parameters in both spellings of transformers, against its own table; refusals by name."""

from __future__ import annotations

import re
from typing import Any

import pytest
import torch
from transformers import LlamaConfig
from transformers.models.llama.modeling_llama import LlamaRotaryEmbedding

from weft.engine.model.rope import read_rope
from weft_adapters.base_config import Keys
from weft_adapters.families import FAMILIES
from weft_kernels.rotary import Rope, create_rotary_table

HEAD_DIM, NUM_POSITIONS = 64, 80
LLAMA3 = {
    "rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
    "original_max_position_embeddings": 512,
}  # fmt: skip
YARN = {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 512}


def rope_of(model_type: str = "llama", **config: Any) -> Rope:
    raw = {"max_position_embeddings": 2048, **config}
    return read_rope(Keys(raw, FAMILIES[model_type]))


def transformers_table(**config: Any) -> torch.Tensor:
    """`[positions, 2, D / 2]` of transformers' Llama with this config."""
    llama = LlamaConfig(
        hidden_size=HEAD_DIM, num_attention_heads=1, max_position_embeddings=2048, **config
    )
    positions = torch.arange(NUM_POSITIONS)[None]
    cos, sin = LlamaRotaryEmbedding(llama)(torch.zeros(1), positions)
    return torch.stack((cos[0], sin[0]), dim=1)[..., : HEAD_DIM // 2]


@pytest.mark.parametrize(
    "scaling",
    [
        {"rope_type": "default"},
        {"rope_type": "linear", "factor": 2.5},
        LLAMA3,
        {**LLAMA3, "factor": 32, "low_freq_factor": 2, "high_freq_factor": 9},
        YARN,
        {**YARN, "factor": None},
        {**YARN, "factor": 1.0},
        {**YARN, "attention_factor": 0.8},
        {**YARN, "mscale": 1.0},
        {**YARN, "mscale": 0.7, "mscale_all_dim": 1.4},
        {**YARN, "beta_fast": 20, "beta_slow": 2.5, "truncate": False},
        {"rope_type": "yarn", "factor": 8.0},
        {**YARN, "original_max_position_embeddings": 8},
    ],
)
@pytest.mark.parametrize("theta", [10000.0, 5e5])
def test_frequencies_are_those_of_transformers(scaling: dict[str, Any], theta: float) -> None:
    with_theta = {**scaling, "rope_theta": theta}
    want = transformers_table(rope_parameters=dict(with_theta))
    legacy = {**scaling, "type": scaling["rope_type"]}
    for config in (
        {"rope_parameters": with_theta},
        {"rope_theta": theta, "rope_scaling": scaling},
        {"rope_theta": theta, "rope_scaling": legacy, "rope_parameters": None},
        {"rope_theta": theta, "rope_parameters": with_theta, "rope_scaling": None},
    ):
        rope = rope_of(**config)
        table = create_rotary_table(NUM_POSITIONS, HEAD_DIM, rope, torch.device("cpu"))
        torch.testing.assert_close(table, want, rtol=0, atol=2e-5)


def test_an_absent_theta_is_the_familys() -> None:
    assert rope_of() == rope_of(rope_parameters={}) == Rope(10000.0)
    assert rope_of("mixtral") == Rope(1e6)
    assert rope_of("mixtral", rope_scaling={"type": "linear", "factor": 2}) == Rope(
        1e6, "linear", factor=2.0
    )


@pytest.mark.parametrize(
    ("config", "named"),
    [
        ({"rope_parameters": [1e6]}, "'rope_parameters'"),
        ({"rope_parameters": {"rope_type": "dynamic", "factor": 2.0}}, "'dynamic'"),
        ({"rope_scaling": {"type": "longrope", "short_factor": [1.0]}}, "'longrope'"),
        ({"rope_scaling": {"type": ["yarn"]}}, "'rope_scaling.rope_type'"),
        ({"rope_scaling": {"type": "linear", "rope_type": "yarn"}}, "'rope_scaling.type'"),
        ({"rope_scaling": YARN, "rope_parameters": YARN}, "'rope_parameters' and 'rope_scaling'"),
        ({"rope_parameters": {"factor": 2}}, "'rope_parameters.factor'"),
        ({"rope_scaling": {"type": "linear"}}, "'rope_scaling.factor'"),
        ({"rope_scaling": {"type": "linear", "factor": 0}}, "'rope_scaling.factor'"),
        ({"rope_scaling": {"type": "linear", "factor": "2"}}, "'rope_scaling.factor'"),
        ({"rope_scaling": {**YARN, "mrope_section": [1]}}, "'rope_scaling.mrope_section'"),
        ({"rope_scaling": {**YARN, "low_freq_factor": 1}}, "'rope_scaling.low_freq_factor'"),
        ({"rope_scaling": {**YARN, "truncate": 1}}, "'rope_scaling.truncate'"),
        ({"rope_scaling": {**YARN, "beta_fast": 0}}, "'rope_scaling.beta_fast'"),
        ({"rope_scaling": {**LLAMA3, "low_freq_factor": 4}}, "'rope_scaling.low_freq_factor'"),
        ({"rope_scaling": {**LLAMA3, "high_freq_factor": None}}, "'rope_scaling.high_freq_factor'"),
        (
            {"rope_scaling": {**LLAMA3, "original_max_position_embeddings": 1.5}},
            "'rope_scaling.original_max_position_embeddings'",
        ),
        (
            {"rope_parameters": {"full_attention": {"rope_theta": 1e6}}},
            "'rope_parameters.full_attention'",
        ),
        (
            {"rope_parameters": {"partial_rotary_factor": 0.5}},
            "'rope_parameters.partial_rotary_factor'",
        ),
        ({"rope_theta": 0.5}, "'rope_theta'"),
        ({"rope_theta": None}, "'rope_theta'"),
        ({"rope_theta": 1e4, "rope_parameters": {"rope_theta": 1e6}}, "'rope_theta'"),
    ],
)
def test_what_is_not_served_is_refused_by_name(config: dict[str, Any], named: str) -> None:
    with pytest.raises(ValueError, match=re.escape(named)):
        rope_of(**config)
