"""The base's weights site by site are those of the checkpoint, in every layout that serves them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from tests.engine.families import CASES, create_model

from weft.engine.model.config import create_model_config, read_hf_config
from weft.engine.model.served_weights import ServedWeights
from weft.engine.model.weights import load_weights
from weft_adapters.sites import ROUTER, BaseSpec, Site
from weft_kernels.backend import create_backend
from weft_kernels.quantized import quantize

if TYPE_CHECKING:
    from tests.bench import Bench

Weight = Callable[[str], torch.Tensor]
MOE = CASES["qwen2_moe"]
BASES = {
    "biases": CASES["llama, biases, llama3"],
    # widths that divide into the groups of int4
    "experts": replace(MOE, sizes=MOE.sizes | {"moe_intermediate_size": 64,
                                               "shared_expert_intermediate_size": 32}),
}  # fmt: skip


@pytest.fixture(scope="module", params=BASES)
def base_dir(
    request: pytest.FixtureRequest,
    tmp_path_factory: pytest.TempPathFactory,
    create_bench: Callable[..., Bench],
) -> Path:
    folder = tmp_path_factory.mktemp("base")
    return create_bench(folder, create_model(BASES[request.param]), {}).base_dir


def serve(
    base_dir: Path, kernels: str, quantization: str | None = None
) -> tuple[ServedWeights, BaseSpec]:
    device, dtype = torch.device("cpu"), torch.float32
    raw = read_hf_config(base_dir)
    backend = create_backend(kernels, device, dtype)
    weights = load_weights(
        base_dir, create_model_config(raw), dtype, device, backend, quantization=quantization
    )
    base = BaseSpec.from_config(raw, "sha256:" + "0" * 64)
    return ServedWeights(weights, base, quantization), base


def module_of(site: Site) -> str:
    """The checkpoint's name of a site's linear."""
    name = site.projection
    block = "self_attn" if name in ("q_proj", "k_proj", "v_proj", "o_proj") else "mlp"
    if name == ROUTER:
        return f"model.layers.{site.layer}.mlp.gate"
    if name == "shared_expert_gate":
        return f"model.layers.{site.layer}.mlp.{name}"
    if name.startswith("shared_"):
        return f"model.layers.{site.layer}.mlp.shared_expert.{name.removeprefix('shared_')}"
    expert = "" if site.expert is None else f"experts.{site.expert}."
    return f"model.layers.{site.layer}.{block}.{expert}{name}"


def test_biases_are_those_of_the_checkpoint(base_dir: Path) -> None:
    tensors = load_file(base_dir / "model.safetensors")
    served, base = serve(base_dir, "auto")
    num_biases = 0
    for site in base.sites():
        want, got = tensors.get(f"{module_of(site)}.bias"), served.bias(site)
        assert (got is None) == (want is None), site
        if got is not None and want is not None:
            num_biases += 1
            assert np.array_equal(got, want.numpy()), site
    assert num_biases > 0


@pytest.mark.parametrize(
    ("kernels", "quantization"),
    [("torch", None), ("auto", None), ("auto", "int8"), ("auto", "int4")],
)
def test_row_norms_are_those_of_the_weights_as_they_are_rounded(
    base_dir: Path, kernels: str, quantization: str | None
) -> None:
    """With random factors they tell each row of a weight from any other."""
    tensors = load_file(base_dir / "model.safetensors")
    served, base = serve(base_dir, kernels, quantization)
    rng = np.random.default_rng(0)
    for site in base.sites():
        a, b = (rng.standard_normal((3, n)).astype(np.float32) for n in base.shape(site))
        w = tensors[f"{module_of(site)}.weight"].T
        if quantization is not None and site.projection not in ("shared_expert_gate", ROUTER):
            w = quantize(w, quantization).dense()
        wide = w.double().numpy().T
        want = np.linalg.norm(wide + 0.5 * b.T @ a, axis=1)
        np.testing.assert_allclose(served.row_norms(site, a, b, 0.5), want, rtol=1e-5)


def test_the_format_says_how_weights_are_rounded(base_dir: Path) -> None:
    formats = {q: serve(base_dir, "torch", q)[0].weight_format for q in (None, "int8", "int4")}
    assert len(set(formats.values())) == 3


def test_a_site_that_is_not_there_is_refused(base_dir: Path) -> None:
    served, _ = serve(base_dir, "torch")
    for site in (Site(9, "q_proj"), Site(0, "gate_proj", 77)):
        with pytest.raises(KeyError, match="has no layer"):
            served.row_norms(site, *(np.ones((1, 1), np.float32),) * 2, 1.0)
        with pytest.raises(KeyError, match="has no layer"):
            served.bias(site)
