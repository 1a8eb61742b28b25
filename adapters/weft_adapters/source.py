"""From stored files to factors in memory, the digest verified against the bytes that are read."""

from __future__ import annotations

from collections.abc import Callable
from io import BytesIO

from weft_adapters.base_weights import BaseWeights
from weft_adapters.config import parse_config
from weft_adapters.digest import adapter_digest
from weft_adapters.faults import AdapterFaultError
from weft_adapters.format import load, resolve
from weft_adapters.header import read_header
from weft_adapters.row_scales import RowScales
from weft_adapters.site_weights import SiteWeights
from weft_adapters.sites import BaseSpec, Site
from weft_adapters.store import StoredAdapter
from weft_adapters.tensors import Float32, TensorFile


class DigestMismatchError(ValueError):
    """The stored bytes are not those that were registered."""


def load_verified(
    stored: StoredAdapter,
    digest: str,
    base: BaseSpec,
    base_weights: BaseWeights | None = None,
    row_scales: RowScales | None = None,
    pause: Callable[[], None] | None = None,
) -> dict[Site, SiteWeights]:
    """Read the weights; DigestMismatchError when the bytes are not those of `digest`, and
    AdapterFaultError when they are no adapter of this base at all.

    `base_weights`: see `load`; `row_scales` were computed with them before. `pause` is called
    between small pieces of the work.
    """
    config = parse_config(stored.config_path.read_bytes())
    # read once: a file that changes after its digest was checked must not reach the device
    data = stored.tensors_path.read_bytes()
    header = read_header(BytesIO(data), len(data))
    plan = resolve(config, header, base)
    if plan.faults:
        raise AdapterFaultError(plan.faults)
    with TensorFile.of_bytes(data, header, pause) as file:
        found = adapter_digest(config, plan, header, file, base.digest)
        if found != digest:
            raise DigestMismatchError(f"the stored bytes have digest {found}, not {digest}")
        scaled = plan.vectors.magnitudes.keys()
        known = row_scales.find(digest, scaled) if scaled and row_scales is not None else None
        weights = load(plan, file, base, base_weights, known)
        if scaled and row_scales is not None and known is None:
            row_scales.keep(digest, {site: _row_scale(weights[site]) for site in scaled})
        return weights


def _row_scale(weights: SiteWeights) -> Float32:
    assert weights.row_scale is not None, "a site with a magnitude has a row scale"
    return weights.row_scale
