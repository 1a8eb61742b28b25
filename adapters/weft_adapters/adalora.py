"""AdaLoRA as PEFT saves and loads it: factors with singular values, of which some were pruned.

    delta = B diag(E) A * alpha / (init_r + 1e-5)

PEFT scales by the rank at the start, whatever is left of it at a module. `rank_pattern` says by
module which of the `init_r` triples are left; only those are in the file.
"""

from __future__ import annotations

from weft_adapters.faults import shown

# of its training: they change nothing in what was saved; `init_r` is read
ADALORA_KEYS = frozenset(
    {
        "init_r",
        "target_r",
        "tinit",
        "tfinal",
        "deltaT",
        "beta1",
        "beta2",
        "orth_reg_weight",
        "total_step",
    }
)
_EPSILON = 1e-5
_SUFFIX = ".lora_E"
_MAX_NAME_CHARS = 300


def adalora_scale(alpha: float, init_rank: int, rank: int) -> float:
    """On B diag(E) A; without an alpha it is 1 for a module that kept all of its rank."""
    return (alpha if alpha > 0 else float(rank)) / (init_rank + _EPSILON)


def read_kept_ranks(value: object, init_rank: int) -> dict[str, int]:
    """The rank by module, of a config's `rank_pattern`: `<module>.lora_E` -> which triples are
    left. Raises ValueError naming what is wrong."""
    if value is None:
        return {}
    if not isinstance(value, dict):
        raise ValueError("It must be an object.")
    ranks = {}
    for name, kept in value.items():
        if not name.endswith(_SUFFIX) or len(name) > _MAX_NAME_CHARS:
            raise ValueError(f"The name {shown(name)} does not end in {_SUFFIX}.")
        is_mask = isinstance(kept, list) and all(isinstance(flag, bool) for flag in kept)
        if not is_mask or len(kept) != init_rank:
            raise ValueError(f"{shown(name)} must have {init_rank} times true or false.")
        ranks[name.removesuffix(_SUFFIX)] = sum(kept)
    return ranks
