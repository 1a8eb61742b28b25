"""The KV cache's blocks: who owns which, and which hold a prefix worth keeping. No tensors.

Block 0 is the null block: never given out, always zero, the target of padded block tables. A full
block whose tokens are known by their hash (see `prefix`) is *published*: others that need the same
prefix share it, and when its last holder lets go it stays as *cached* until room is wanted, the
least recently used first.
"""

from __future__ import annotations

from collections import OrderedDict, deque
from collections.abc import Iterable, Sequence


class BlockManager:
    """Gives out blocks of `block_size` tokens.

    Some can be withheld, while their memory serves another purpose. Invariant: free + used + cached
    + withheld = `num_blocks - 1`; no block is two of them at once.
    """

    def __init__(self, num_blocks: int, block_size: int, num_withheld: int = 0) -> None:
        if num_blocks < 2:
            raise ValueError(f"the KV cache needs at least 2 blocks, not {num_blocks}")
        self.block_size = block_size
        self.num_blocks = num_blocks
        self._free: deque[int] = deque(range(1, num_blocks - num_withheld))
        self._withheld = list(range(num_blocks - num_withheld, num_blocks))
        self._references = [0] * num_blocks
        self._published: dict[bytes, int] = {}
        self._hash_of: dict[int, bytes] = {}
        self._cached: OrderedDict[int, None] = OrderedDict()  # least recently used first

    @property
    def num_free(self) -> int:
        """Blocks that can be given out, those included that cache a prefix until then."""
        return len(self._free) + len(self._cached)

    @property
    def num_cached(self) -> int:
        return len(self._cached)

    @property
    def num_usable(self) -> int:
        """All blocks but the null block and those that are withheld."""
        return self.num_blocks - 1 - len(self._withheld)

    def num_needed(self, num_tokens: int) -> int:
        """Blocks that hold `num_tokens` tokens."""
        return -(-num_tokens // self.block_size)

    def can_allocate(self, count: int) -> bool:
        return count <= self.num_free

    def allocate(self, count: int) -> list[int]:
        assert self.can_allocate(count), "ask can_allocate first"
        blocks = [self._take_one() for _ in range(count)]
        for block in blocks:
            self._references[block] = 1
        return blocks

    def _take_one(self) -> int:
        if self._free:
            return self._free.popleft()
        block, _ = self._cached.popitem(last=False)
        del self._published[self._hash_of.pop(block)]
        return block

    def withhold(self, count: int) -> list[int]:
        """Take up to `count` of those that can be given out, the last ones of those that cache
        nothing first; they lie together where that can be had."""
        free = sorted(self._free)
        num_free = min(count, len(free))
        self._free = deque(free[: len(free) - num_free])
        taken = free[len(free) - num_free :]
        taken += [self._take_one() for _ in range(min(count - num_free, len(self._cached)))]
        self._withheld += taken
        return taken

    @property
    def num_withheld(self) -> int:
        return len(self._withheld)

    def withheld(self, count: int) -> list[int]:
        """The first `count` of those that are withheld, or all."""
        return sorted(self._withheld)[:count]

    def restore(self, blocks: Sequence[int]) -> None:
        """Have blocks that were withheld given out again."""
        restored = set(blocks)
        left = [block for block in self._withheld if block not in restored]
        assert len(self._withheld) - len(left) == len(blocks), "a block that was not withheld"
        self._withheld = left
        self._free.extend(blocks)

    def share(self, blocks: Iterable[int]) -> None:
        """Take one more reference to each of some used or cached blocks."""
        for block in blocks:
            if self._references[block] == 0:
                del self._cached[block]
            self._references[block] += 1

    def release(self, blocks: Sequence[int]) -> None:
        """Drop one reference to each block of a table; those without any are cached or free.

        The end of a prefix goes before its beginning: without it, the beginning still serves.
        """
        for block in reversed(blocks):
            assert self._references[block] > 0, f"block {block} is released more than taken"
            self._references[block] -= 1
            if self._references[block] > 0:
                continue
            if block in self._hash_of:
                self._cached[block] = None
            else:
                self._free.append(block)

    def is_writable(self, block: int) -> bool:
        """True when nobody else sees what is written to it."""
        return self._references[block] == 1 and block not in self._hash_of

    def match(self, hashes: Iterable[bytes]) -> list[int]:
        """The blocks of the longest known prefix; no reference is taken."""
        blocks = []
        for block_hash in hashes:
            block = self._published.get(block_hash)
            if block is None:
                break
            blocks.append(block)
        return blocks

    def publish(self, block: int, block_hash: bytes) -> None:
        """Let others find a full block; the first block of a content stays the one to be found."""
        assert self._references[block] > 0, "only a used block is published"
        if block_hash not in self._published and block not in self._hash_of:
            self._published[block_hash] = block
            self._hash_of[block] = block_hash

    def private(self, blocks: Iterable[int]) -> list[int]:
        """Those that one holder alone has written or may write."""
        return [block for block in blocks if self.is_writable(block)]

    def num_released(self, blocks: Iterable[int]) -> int:
        """How many of a table's blocks its release would make free."""
        return sum(self._references[block] == 1 for block in blocks)

    def check_references(self, expected: dict[int, int]) -> None:
        """AssertionError unless every block has exactly the holders that are expected."""
        found = {b: count for b, count in enumerate(self._references) if count > 0}
        assert found == expected, "a block has no holder, or one too many"

    def integrity(self) -> None:
        """Raise AssertionError when the invariant does not hold."""
        free, cached = set(self._free), set(self._cached)
        assert len(free) == len(self._free), "a block is free twice"
        assert 0 not in free | cached, "the null block was given out"
        used = {b for b in range(1, self.num_blocks) if self._references[b] > 0}
        assert not (free | cached) & used, "a block is used and free or cached at once"
        assert not free & cached, "a block is free and cached at once"
        assert not (free | cached | used) & set(self._withheld), "a withheld block is in use"
        assert len(free) + len(used) + len(cached) == self.num_usable, "a block is lost"
        assert cached <= self._hash_of.keys(), "a cached block has no hash"
        assert not free & self._hash_of.keys(), "a free block is published"
        assert {h: b for b, h in self._hash_of.items()} == self._published, "a hash is out of step"
