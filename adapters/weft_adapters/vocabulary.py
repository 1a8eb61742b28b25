"""What an adapter does to the vocabulary: factors on embedding and head, whole matrices in their
place, and added tokens.

PEFT writes, for a vocabulary of V' tokens where the base has V:

    embed_tokens.lora_embedding_A [rank, V'], .lora_embedding_B [H, rank]     factors
    lm_head.lora_A.weight [rank, H], .lora_B.weight [V', rank]
    <module>.weight [V', H]              a matrix of its own (`modules_to_save`), or the base's
    <module>.base_layer.weight [V', H]   with factors, resized or not
    <module>.modules_to_save.weight, .original_module.weight     `.weight` again, and what it
                                         replaces, where the tokens were resized as well

Where the base's head is its embedding, a resized matrix is that of both. One of `modules_to_save`,
or factors, are the module's own, unless `ensure_weight_tying` says that they are the other's, too.

Most rows of such matrices are the base's: those are left out where the base can be asked.

Legend: V tokens, H hidden, N rows that are kept.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

from weft_adapters.config import AdapterConfig
from weft_adapters.faults import Fault
from weft_adapters.header import Header
from weft_adapters.sites import EMBEDDING, HEAD, VOCABULARY_MODULES, BaseSpec
from weft_adapters.tensors import Float32, TensorFile
from weft_adapters.uses import Pair, TensorUse

_NAME = re.compile(
    r"base_model\.model\.(?P<module>model\.embed_tokens|lm_head)\."
    r"(?P<role>lora_embedding_A|lora_embedding_B|lora_A\.weight|lora_B\.weight|"
    r"base_layer\.weight|weight|modules_to_save\.weight|original_module\.weight)\Z"
)
_FACTORS = {
    EMBEDDING: ("lora_embedding_A", "lora_embedding_B"),
    HEAD: ("lora_A.weight", "lora_B.weight"),
}
# each of them is a logit more for all rows of a batch
MAX_ADDED_TOKENS = 65_536


@dataclass(frozen=True, slots=True)
class Factors:
    """Two tensors of `module`, and the scale on their product."""

    module: str
    a_name: str
    b_name: str
    rank: int
    scale: float

    def read(self, file: TensorFile, projection: str) -> tuple[Float32, Float32]:
        """A `[rank, in]` and B transposed `[rank, out]`, as `projection` has them: factors of the
        other module change places."""
        a, b = file.read(self.a_name), file.read(self.b_name).T.copy()
        return (a, b) if projection == self.module else (b, a)


@dataclass(frozen=True, slots=True)
class TokenMatrix:
    """What stands at the embedding or the head: the matrix by name, None for the base's, with
    factors on it, if there are any."""

    projection: str
    matrix: str | None
    factors: Factors | None


@dataclass(frozen=True, slots=True)
class VocabularyPlan:
    """`twins`: pairs of tensors that are one matrix, and have to be equal. `originals`: what a
    matrix of `modules_to_save` takes the place of; they change nothing."""

    num_tokens: int
    matrices: tuple[TokenMatrix, ...]
    twins: tuple[tuple[str, str], ...]
    originals: tuple[str, ...]

    @property
    def ranks(self) -> dict[str, int]:
        """By projection; 0 for a matrix alone."""
        return {m.projection: m.factors.rank if m.factors else 0 for m in self.matrices}

    @property
    def factors(self) -> list[Factors]:
        """Each pair once, though it may be that of both modules."""
        return list({m.factors: None for m in self.matrices if m.factors is not None})

    @property
    def pairs(self) -> tuple[Pair, ...]:
        return tuple(Pair(f.a_name, f.b_name, f.rank, f.scale) for f in self.factors)

    def uses(self) -> Iterator[tuple[str, TensorUse]]:
        """Each tensor's name and what it is for."""
        for factors in self.factors:
            yield factors.a_name, TensorUse("lora_A", factors.module)
            yield factors.b_name, TensorUse("lora_B", factors.module)
        for matrix in self.matrices:
            if matrix.matrix is not None:
                yield matrix.matrix, TensorUse("weight", matrix.projection)
        for name, twin in self.twins:
            yield twin, TensorUse("weight", f"the same as {name}")
        for name in self.originals:
            yield name, TensorUse("original weight", "nothing: another one takes its place")


def is_vocabulary_tensor(name: str) -> bool:
    return _NAME.match(name) is not None


def resolve_vocabulary(
    config: AdapterConfig, header: Header, base: BaseSpec, faults: list[Fault]
) -> VocabularyPlan | None:
    """What the file's tensors of embedding and head are for; None where there are none."""
    found: dict[str, dict[str, str]] = {EMBEDDING: {}, HEAD: {}}
    for name in header.tensors:
        if (match := _NAME.match(name)) is not None:
            projection = EMBEDDING if match["module"] == VOCABULARY_MODULES[EMBEDDING] else HEAD
            found[projection][match["role"]] = name
    if not any(found.values()) and not config.modules_to_save:
        return None
    if base.vocab_size == 0:
        message = "the base's config.json does not say how many tokens it has"
        faults.append(Fault("unknown_vocabulary", message))
        return None
    return _Resolver(config, header, base, found, faults).resolve()


class _Resolver:
    """Collects faults; its plan is good where it found none."""

    def __init__(
        self,
        config: AdapterConfig,
        header: Header,
        base: BaseSpec,
        found: Mapping[str, Mapping[str, str]],
        faults: list[Fault],
    ) -> None:
        self._config, self._header, self._base = config, header, base
        self._found, self._faults = found, faults
        self._ties = config.ensure_weight_tying and base.is_tied
        self._twins: list[tuple[str, str]] = []
        self._originals: list[str] = []
        self._saved = {
            projection: any(module.endswith(key) for key in config.modules_to_save)
            for projection, module in VOCABULARY_MODULES.items()
        }

    def resolve(self) -> VocabularyPlan | None:
        num_faults = len(self._faults)
        matrices = {projection: self._matrix(projection) for projection in VOCABULARY_MODULES}
        self._check_copies(matrices)
        if self._base.is_tied:
            self._tie(matrices)
        shapes = {name: self._header.tensors[name].shape for name in matrices.values() if name}
        self._check_matrices(shapes)
        if len(self._faults) > num_faults:
            return None
        rows = {p: shapes[m][0] if m else self._base.vocab_size for p, m in matrices.items()}
        if rows[EMBEDDING] != rows[HEAD]:
            message = (
                f"embed_tokens has {rows[EMBEDDING]} tokens, lm_head {rows[HEAD]}: the export "
                "lacks one of the resized matrices (save it with save_embedding_layers=True)"
            )
            self._faults.append(Fault("vocabulary_mismatch", message))
            return None
        num_tokens = rows[EMBEDDING]
        num_added = num_tokens - self._base.vocab_size
        if num_added > MAX_ADDED_TOKENS:
            message = f"the adapter adds {num_added} tokens; at most {MAX_ADDED_TOKENS} are served"
            self._faults.append(Fault("too_many_tokens", message))
        factors = {p: self._factors(p, num_tokens) for p in VOCABULARY_MODULES}
        if self._ties:  # to those of the embedding, whether they were written twice or not
            factors[HEAD] = factors[HEAD] or factors[EMBEDDING]
        if len(self._faults) > num_faults:
            return None
        own = tuple(
            TokenMatrix(p, matrices[p], factors[p])
            for p in VOCABULARY_MODULES
            if matrices[p] is not None or factors[p] is not None
        )
        return VocabularyPlan(num_tokens, own, tuple(self._twins), tuple(self._originals))

    def _refuse(self, code: str, message: str, tensor: str | None = None) -> None:
        self._faults.append(Fault(code, message, tensor))

    def _matrix(self, projection: str) -> str | None:
        """The tensor of a whole matrix."""
        found = self._found[projection]
        names = [found[role] for role in ("weight", "base_layer.weight") if role in found]
        if len(names) == 2:
            self._refuse("duplicate_site", f"{names[0]!r} and {names[1]!r} are both", names[1])
        is_others = self._ties and projection == HEAD and self._saved[EMBEDDING]
        if self._saved[projection] and "weight" not in found and not is_others:
            message = f"modules_to_save names {projection}, but the file has no weight of it"
            self._refuse("missing_tensor", message)
        return names[0] if names else None

    def _check_copies(self, matrices: Mapping[str, str | None]) -> None:
        """What PEFT writes beside a matrix of `modules_to_save`."""
        for projection, found in self._found.items():
            own = matrices[projection]
            for role in ("modules_to_save.weight", "original_module.weight"):
                name = found.get(role)
                if name is not None and (own is None or not self._saved[projection]):
                    message = f"{name!r} belongs to no module of modules_to_save"
                    self._refuse("unmapped_tensor", message, name)
                elif name is not None and role.startswith("original"):
                    self._originals.append(name)
                elif name is not None and own is not None:
                    self._twins.append((own, name))

    def _tie(self, matrices: dict[str, str | None]) -> None:
        """One matrix for both where the base has one; those of `modules_to_save` are copies."""
        are_copies = not self._ties
        shared = [
            name
            for projection in VOCABULARY_MODULES
            if (name := matrices[projection]) and not (are_copies and self._saved[projection])
        ]
        if not shared:
            return
        for projection in VOCABULARY_MODULES:
            if matrices[projection] is None or matrices[projection] in shared:
                matrices[projection] = shared[0]
        if len(shared) == 2:
            self._twins.append((shared[0], shared[1]))

    def _check_matrices(self, shapes: Mapping[str, tuple[int, ...]]) -> None:
        for name, shape in shapes.items():
            if len(shape) != 2 or shape[1] != self._base.hidden_size or shape[0] == 0:
                wanted = f"a row of {self._base.hidden_size} for each token"
                self._refuse("wrong_shape", f"{name!r} has shape {list(shape)}, not {wanted}", name)

    def _factors(self, projection: str, num_tokens: int) -> Factors | None:
        found, roles = self._found[projection], _FACTORS[projection]
        names = [found[role] for role in roles if role in found]
        strays = [name for role, name in found.items() if role.startswith("lora_")]
        if len(names) != len(strays):
            (stray,) = [name for name in strays if name not in names][:1]
            self._refuse("unmapped_tensor", f"{stray!r} is no factor of {projection}", stray)
            return None
        if len(names) == 1:
            message = f"{names[0]!r} lacks its counterpart"
            self._refuse("missing_factor", message, names[0])
        if len(names) < 2:
            return None
        if self._config.use_dora:
            self._refuse("unsupported_config", f"use_dora=true is not served for {projection}")
            return None
        module, hidden = VOCABULARY_MODULES[projection], self._base.hidden_size
        rank = self._config.rank_of(module)
        sizes = (num_tokens, hidden) if projection == EMBEDDING else (hidden, num_tokens)
        for name, wanted in zip(names, ((rank, sizes[0]), (sizes[1], rank)), strict=True):
            shape = self._header.tensors[name].shape
            if shape != wanted:
                message = f"{name!r} has shape {list(shape)}; {list(wanted)} is needed"
                if num_tokens == self._base.vocab_size and num_tokens not in shape:
                    message += (
                        f", since the base has {num_tokens} tokens and the file no resized matrix "
                        "(save it with save_embedding_layers=True)"
                    )
                self._refuse("wrong_shape", message, name)
        return Factors(projection, names[0], names[1], rank, self._config.scale_of(module))


def check_twins(plan: VocabularyPlan | None, file: TensorFile) -> list[Fault]:
    """Of two tensors that are one matrix, only one can be served."""
    return [
        Fault("tied_weights_differ", f"{first!r} and {second!r} are one matrix, and differ", second)
        for first, second in (plan.twins if plan is not None else ())
        if not file.are_equal(first, second)
    ]
