"""What is true of a page pool after every operation."""

import collections

from args_fast.kvcache.storage import SCRATCH_PAGE


def check_pool(pool, held=()):
    """What is true of a pool after every operation; ``held``: the pages of each holder."""
    free, retained = set(pool._free), set(pool._retained)
    counts = collections.Counter(page for pages in held for page in pages)
    assert len(free) == len(pool._free)
    assert not free & retained
    assert not (free | retained) & set(counts)
    assert free | retained | set(counts) == set(range(1, pool.size + 1))
    assert SCRATCH_PAGE not in counts
    for page in range(1, pool.size + 1):
        assert pool.ref_count(page) == counts[page]
    assert pool.pages_in_use == len(counts)
    # Every block's page knows it, and a page is retained only for what can be found in it.
    assert {page: block for block, (page, _) in pool._blocks.items()} == pool._block_of
    assert retained <= set(pool._block_of)
    assert not free & set(pool._block_of)
