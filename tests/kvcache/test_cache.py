"""The pool on the device: one fixed piece of memory per model, as large as the numbers say."""

import pytest
import torch

from args_fast.errors import ConfigError
from args_fast.kvcache.storage import PAGE_SIZE, CacheLayout, PagedCache, pages_for
from args_fast.large_pages import LARGE_PAGE

LAYOUT = CacheLayout(
    layers=2, kv_heads=3, head_size=4, dtype=torch.float32, device=torch.device("cpu")
)


def test_a_pool_has_its_pages_and_the_scratch_page():
    cache = PagedCache(LAYOUT, 5)
    assert cache.k_pages.shape == cache.v_pages.shape == (2, 6, PAGE_SIZE, 3, 4)
    assert cache.k_pages.dtype == cache.v_pages.dtype == torch.float32


def test_a_token_occupies_keys_and_values_of_every_layer():
    assert LAYOUT.bytes_per_token == 2 * 2 * 3 * 4 * 4
    cache = PagedCache(LAYOUT, 5)
    held = cache.k_pages.nbytes + cache.v_pages.nbytes
    assert held == 6 * PAGE_SIZE * LAYOUT.bytes_per_token


def test_a_pool_of_large_pages_begins_at_one():
    cache = PagedCache(LAYOUT, 3000)
    for pages in (cache.k_pages, cache.v_pages):
        assert pages.shape == (2, 3001, PAGE_SIZE, 3, 4)
        assert pages.is_contiguous()
        assert pages.data_ptr() % LARGE_PAGE == 0


def test_a_pool_beyond_all_memory_is_refused_by_name():
    with pytest.raises(ConfigError, match="cache_bytes"):
        PagedCache(LAYOUT, 10**12)


@pytest.mark.parametrize(
    ("tokens", "pages"), [(0, 0), (1, 1), (15, 1), (16, 1), (17, 2), (32, 2), (33, 3)]
)
def test_pages_for_rounds_up(tokens, pages):
    assert pages_for(tokens, page_size=16) == pages
