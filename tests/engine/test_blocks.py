"""The block manager gives out every block once and never the null block."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from weft.engine.blocks import BlockManager


def test_all_blocks_but_the_null_block_are_given_out() -> None:
    manager = BlockManager(9, block_size=4)
    blocks = manager.allocate(8)
    assert sorted(blocks) == list(range(1, 9))
    assert manager.num_usable == 8
    assert manager.num_free == 0
    assert not manager.can_allocate(1)
    assert manager.can_allocate(0)
    manager.release(blocks)
    assert manager.num_free == 8


@pytest.mark.parametrize(("num_tokens", "num_blocks"), [(0, 0), (1, 1), (4, 1), (5, 2), (133, 34)])
def test_tokens_need_whole_blocks(num_tokens: int, num_blocks: int) -> None:
    assert BlockManager(9, block_size=4).num_needed(num_tokens) == num_blocks


def test_a_released_block_is_the_last_to_be_given_out_again() -> None:
    manager = BlockManager(5, block_size=4)
    first = manager.allocate(1)
    manager.release(first)
    assert manager.allocate(4)[-1:] == first


def test_a_cache_without_a_usable_block_is_refused() -> None:
    with pytest.raises(ValueError, match="at least 2 blocks, not 1"):
        BlockManager(1, block_size=4)


def test_what_cannot_be_is_an_assertion() -> None:
    manager = BlockManager(3, block_size=4)
    with pytest.raises(AssertionError, match="can_allocate"):
        manager.allocate(3)
    blocks = manager.allocate(2)
    manager.release(blocks)
    with pytest.raises(AssertionError, match="released more than taken"):
        manager.release(blocks[:1])


@pytest.mark.parametrize("fault", ["lost", "free twice", "free and used", "null"])
def test_integrity_sees_each_fault(fault: str) -> None:
    manager = BlockManager(6, block_size=4)
    block = manager.allocate(2)[0]
    manager.integrity()
    if fault == "lost":
        manager._references[block] = 0
    elif fault == "free twice":
        manager._free.append(manager._free[0])
    elif fault == "free and used":
        manager._free.append(block)
    else:
        manager._free[0] = 0
    with pytest.raises(AssertionError):
        manager.integrity()


@given(
    st.integers(2, 40),
    st.lists(st.one_of(st.tuples(st.just("take"), st.integers(0, 12)),
                       st.tuples(st.just("give"), st.integers(0, 10**6))), max_size=60),
)  # fmt: skip
def test_no_block_has_two_holders_and_none_is_lost(
    num_blocks: int, actions: list[tuple[str, int]]
) -> None:
    manager = BlockManager(num_blocks, block_size=16)
    held: list[list[int]] = []
    for action, number in actions:
        if action == "take" and manager.can_allocate(number):
            held.append(manager.allocate(number))
            assert len(held[-1]) == number
        elif action == "give" and held:
            manager.release(held.pop(number % len(held)))
        blocks = [block for blocks in held for block in blocks]
        assert len(blocks) == len(set(blocks))
        assert set(blocks) <= set(range(1, num_blocks))
        assert manager.num_free == manager.num_usable - len(blocks)
        manager.integrity()


def test_withheld_blocks_are_nobodys_until_they_are_restored() -> None:
    blocks = BlockManager(10, 4, num_withheld=3)
    assert (blocks.num_usable, blocks.num_free) == (6, 6)
    held = blocks.allocate(2)
    blocks.publish(held[0], b"x")
    blocks.release(held)
    assert blocks.withhold(4) == [3, 4, 5, 6], "those that cache nothing go first, the last ones"
    assert blocks.match([b"x"]) == [1]
    assert blocks.withhold(5) == [2, 1]
    assert blocks.match([b"x"]) == []
    assert (blocks.num_usable, blocks.num_free, blocks.num_withheld) == (0, 0, 9)
    blocks.integrity()
    blocks.restore(blocks.withheld(4))
    assert sorted(blocks.allocate(4)) == [1, 2, 3, 4]
    blocks.integrity()
