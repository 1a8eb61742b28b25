"""The KV blocks of each sequence: growing, sharing, forking, swapping. Plain Python, no tensors.

Blocks change hands here at once; their contents follow when the runner makes the plan's moves.
"""

from __future__ import annotations

from array import array

from weft.engine.blocks import BlockManager
from weft.engine.plan import BlockMoves
from weft.engine.prefix import PrefixRoots, chain
from weft.engine.req import Req


class SequenceMemory:
    """Owns every block table. `roots` None: no prefix is looked up or kept."""

    def __init__(
        self, blocks: BlockManager, roots: PrefixRoots | None, num_host_blocks: int
    ) -> None:
        self.blocks = blocks
        self._roots = roots
        self.num_host_blocks = num_host_blocks
        self._free_host = list(range(num_host_blocks))
        self._freed_host: list[int] = []  # still read by this step's moves
        self._out: list[tuple[int, int]] = []
        self._copies: list[tuple[int, int]] = []
        self._back: list[tuple[int, int]] = []

    def take_moves(self) -> BlockMoves:
        """The moves since the last call; the step must make them before it computes."""
        moves = BlockMoves(tuple(self._out), tuple(self._copies), tuple(self._back))
        self._out, self._copies, self._back = [], [], []
        self._free_host += self._freed_host
        self._freed_host = []
        return moves

    @property
    def num_free_host(self) -> int:
        return len(self._free_host) + len(self._freed_host)

    # ---- growing ----

    def _has_to_copy(self, req: Req) -> bool:
        """The next token would be written to a block that others read."""
        first = req.num_computed // self.blocks.block_size
        return first < len(req.blocks) and not self.blocks.is_writable(req.blocks[first])

    def num_missing(self, req: Req, num_new: int) -> int:
        """Blocks to allocate before `num_new` more tokens of `req` can be written."""
        num_blocks = -(-(req.num_computed + num_new) // self.blocks.block_size)
        return max(0, num_blocks - len(req.blocks)) + self._has_to_copy(req)

    def room_for(self, req: Req, num_reserved: int) -> int:
        """Tokens that `req` could grow by if `num_reserved` free blocks are left alone."""
        free = self.blocks.num_free - num_reserved - self._has_to_copy(req)
        if free < 0:
            return 0
        return (len(req.blocks) + free) * self.blocks.block_size - req.num_computed

    def grow(self, req: Req, num_new: int) -> None:
        """Give `req` blocks of its own for `num_new` more tokens; ask `num_missing` first."""
        blocks, size = self.blocks, self.blocks.block_size
        if self._has_to_copy(req):
            first = req.num_computed // size
            shared, own = req.blocks[first], blocks.allocate(1)[0]
            self._copies.append((shared, own))
            req.blocks[first] = own
            blocks.release([shared])
        missing = -(-(req.num_computed + num_new) // size) - len(req.blocks)
        if missing > 0:
            req.blocks.extend(blocks.allocate(missing))

    def free(self, req: Req) -> None:
        """Give back all that `req` holds, on device and host; it has computed nothing then."""
        self.blocks.release(req.blocks)
        self._freed_host += req.host_blocks
        req.blocks, req.host_blocks = array("i"), []
        req.num_computed = req.num_published = 0

    # ---- sharing ----

    def adopt_prefix(self, req: Req) -> None:
        """Share the blocks that hold the beginning of `req`, all but its last token at most."""
        if self._roots is None or req.blocks:
            return
        size = self.blocks.block_size
        if not req.prefix_root:
            req.prefix_root = self._roots.root(req.request)
        num_tokens = len(req.token_ids)
        hashes = chain(req.prefix_root, req.block_hashes, req.token_ids, num_tokens, size)
        found = self.blocks.match(hashes[: (num_tokens - 1) // size])
        self.blocks.share(found)
        req.blocks = array("i", found)
        req.num_computed = len(found) * size
        req.num_published = len(found)

    def publish(self, req: Req, num_computed: int) -> None:
        """Let others find the full blocks of the first `num_computed` tokens of `req`, which are
        known."""
        num_full = num_computed // self.blocks.block_size
        if self._roots is None or num_full <= req.num_published:
            return
        size = self.blocks.block_size
        if not req.prefix_root:
            req.prefix_root = self._roots.root(req.request)
        hashes = chain(req.prefix_root, req.block_hashes, req.token_ids, num_full * size, size)
        for i in range(req.num_published, num_full):
            self.blocks.publish(req.blocks[i], hashes[i])
        req.num_published = num_full

    def fork(self, first: Req, choice: Req) -> None:
        """`choice` shares the prompt of `first` and computes its last token again, for logits of
        its own."""
        num_blocks = self.blocks.num_needed(first.num_prompt_tokens)
        choice.blocks = first.blocks[:num_blocks]
        self.blocks.share(choice.blocks)
        choice.num_computed = first.num_prompt_tokens - 1
        choice.prefix_root = first.prefix_root
        num_full = first.num_prompt_tokens // self.blocks.block_size
        choice.block_hashes = first.block_hashes[:num_full]
        choice.num_published = min(first.num_published, num_full)

    # ---- swapping ----

    def can_swap_out(self, req: Req) -> bool:
        return 0 < self.blocks.num_needed(req.num_computed) <= len(self._free_host)

    def swap_out(self, req: Req) -> None:
        """Keep what `req` has computed in host memory; ask `can_swap_out` first."""
        num_blocks = self.blocks.num_needed(req.num_computed)
        hosts = [self._free_host.pop() for _ in range(num_blocks)]
        self._out += zip(req.blocks[:num_blocks], hosts, strict=True)
        self.blocks.release(req.blocks)
        req.blocks, req.host_blocks = array("i"), hosts

    def swap_in(self, req: Req) -> None:
        """Bring it back into blocks of its own; ask whether `len(req.host_blocks)` fit first."""
        req.blocks = array("i", self.blocks.allocate(len(req.host_blocks)))
        self._back += zip(req.host_blocks, req.blocks, strict=True)
        self._freed_host += req.host_blocks
        req.host_blocks = []
        req.num_published = 0

    def integrity(self, holders: list[Req]) -> None:
        """AssertionError when a block has no holder, or one too many; `holders` are all requests
        that are neither finished nor forking, and those that are leaving."""
        self.blocks.integrity()
        references: dict[int, int] = {}
        for req in holders:
            for block in req.blocks:
                references[block] = references.get(block, 0) + 1
            assert not (req.blocks and req.host_blocks), "a request is on host and device at once"
            room = (len(req.blocks) + len(req.host_blocks)) * self.blocks.block_size
            assert req.num_computed <= room, "a token lies outside its blocks"
        self.blocks.check_references(references)
        hosts = [block for req in holders for block in req.host_blocks]
        assert len(set(hosts)) == len(hosts), "two requests hold one host block"
        assert len(hosts) + self.num_free_host == self.num_host_blocks, "a host block is lost"
