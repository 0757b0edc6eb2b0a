"""The page pool: pages are lent once, come back, and grow without moving."""

import pytest
import torch
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

from args_fast.engine.cache import PAGE_SIZE, SCRATCH_PAGE, CacheLayout, PagedCache

LAYOUT = CacheLayout(
    layers=2, kv_heads=3, head_size=4, dtype=torch.float32, device=torch.device("cpu")
)


def test_an_empty_pool_holds_only_the_scratch_page():
    cache = PagedCache(LAYOUT)
    assert cache.k_pages.shape == cache.v_pages.shape == (2, 1, PAGE_SIZE, 3, 4)
    assert cache.pages_in_use == 0


def test_a_token_occupies_keys_and_values_of_every_layer():
    assert LAYOUT.bytes_per_token == 2 * 2 * 3 * 4 * 4


@pytest.mark.parametrize(
    ("tokens", "pages"), [(0, 0), (1, 1), (15, 1), (16, 1), (17, 2), (32, 2), (33, 3)]
)
def test_pages_for_rounds_up(tokens, pages):
    assert PagedCache(LAYOUT, page_size=16).pages_for(tokens) == pages


def test_new_pages_are_zero():
    cache = PagedCache(LAYOUT)
    cache.k_pages.fill_(7.0)
    pages = cache.allocate(5)
    assert not cache.k_pages[:, pages].any()
    assert not cache.v_pages[:, pages].any()


def test_a_sequence_gets_its_pages_in_ascending_order_the_second_time_too():
    cache = PagedCache(LAYOUT)
    pages = cache.allocate(4)
    assert pages == sorted(pages)
    cache.release(pages)
    assert cache.allocate(4) == pages


class Pool(RuleBasedStateMachine):
    """Any order of allocating and releasing, with each owner's number written on its pages."""

    def __init__(self):
        super().__init__()
        self.cache = PagedCache(LAYOUT, page_size=2)
        self.owners = {}
        self.next = 1.0

    @rule(count=st.integers(0, 5))
    def allocate(self, count):
        pages = self.cache.allocate(count)
        assert len(pages) == count
        self.cache.k_pages[:, pages] = self.next
        self.cache.v_pages[:, pages] = -self.next
        self.owners[self.next] = pages
        self.next += 1

    @rule(data=st.data())
    def release(self, data):
        if self.owners:
            owner = data.draw(st.sampled_from(sorted(self.owners)))
            self.cache.release(self.owners.pop(owner))

    @invariant()
    def every_page_has_one_owner(self):
        lent = [page for pages in self.owners.values() for page in pages]
        assert len(set(lent)) == len(lent) == self.cache.pages_in_use
        assert SCRATCH_PAGE not in lent

    @invariant()
    def growth_and_neighbours_leave_a_page_as_it_is(self):
        for owner, pages in self.owners.items():
            assert (self.cache.k_pages[:, pages] == owner).all()
            assert (self.cache.v_pages[:, pages] == -owner).all()

    @invariant()
    def the_pool_is_no_larger_than_its_largest_demand(self):
        self.demand = max(getattr(self, "demand", 0), self.cache.pages_in_use)
        assert self.cache.k_pages.shape[1] == self.cache.v_pages.shape[1] == self.demand + 1


TestPool = Pool.TestCase
TestPool.settings = settings(stateful_step_count=20)
