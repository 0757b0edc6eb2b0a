"""Who holds which page: lent once, shared by text, retained, and back in the end."""

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule
from pools import check_pool

from args_fast.kvcache.pages import PagePool

ROOT = -1
SIZE = 2  # tokens of a page


def enter(pool, pages, text):
    prefix = ROOT
    for i, page in enumerate(pages):
        prefix = pool.register(page, prefix, text[i * SIZE : (i + 1) * SIZE])
    return prefix


def test_a_sequence_gets_its_pages_in_ascending_order_the_second_time_too():
    pool = PagePool(9)
    pages = pool.allocate(4)
    assert pages == [1, 2, 3, 4]
    pool.release(pages)
    assert pool.allocate(4) == pages


def test_more_than_there_is_cannot_be_had():
    pool = PagePool(3)
    pool.allocate(2)
    with pytest.raises(RuntimeError, match="2 pages requested, 1 available"):
        pool.allocate(2)
    assert pool.available == 1


def test_a_text_that_begins_alike_is_found_as_far_as_it_goes():
    pool = PagePool(9, SIZE)
    pages = pool.allocate(3)
    enter(pool, pages, [1, 2, 3, 4, 5, 6])
    assert pool.match_prefix([1, 2, 3, 4, 5, 7, 8, 9], ROOT, 4)[0] == pages[:2]
    assert pool.match_prefix([1, 2, 3, 4, 5, 6], ROOT, 2)[0] == pages[:2]
    assert pool.match_prefix([1, 9, 3, 4], ROOT, 2) == ([], ROOT)
    assert pool.match_prefix([3, 4], ROOT, 1)[0] == []  # the same tokens after another prefix
    assert pool.match_prefix([1, 2], ROOT - 1, 1)[0] == []
    check_pool(pool, [pages, pages[:2], pages[:2]])


def test_equal_hashes_are_not_equal_texts():
    pool = PagePool(9, SIZE)
    pages = pool.allocate(1)
    enter(pool, pages, [-1, 5])
    assert hash((-1, 5)) == hash((-2, 5))
    assert pool.match_prefix([-2, 5], ROOT, 1)[0] == []


def test_what_is_let_go_stays_until_its_page_is_needed_the_end_of_a_text_first():
    pool = PagePool(4, SIZE)
    text = [1, 2, 3, 4, 5, 6]
    pages = pool.allocate(3)
    enter(pool, pages, text)
    pool.release(pages)
    assert (pool.pages_in_use, pool.available) == (0, 4)
    check_pool(pool)
    taken = pool.allocate(2)  # the free one, then the last page of the text
    assert pages[2] in taken
    shared, _ = pool.match_prefix(text, ROOT, 3)
    assert shared == pages[:2]
    check_pool(pool, [taken, shared])


def test_a_broken_page_is_not_found_again():
    pool = PagePool(4, SIZE)
    pages = pool.allocate(2)
    enter(pool, pages, [1, 2, 3, 4])
    other, _ = pool.match_prefix([1, 2], ROOT, 1)
    pool.release(pages, retain=False)
    assert pool.match_prefix([1, 2], ROOT, 1)[0] == []
    check_pool(pool, [other])
    pool.release(other)
    check_pool(pool)
    assert pool.available == 4


def test_nothing_is_found_after_forgetting():
    pool = PagePool(4, SIZE)
    pages = pool.allocate(2)
    enter(pool, pages, [1, 2, 3, 4])
    pool.release(pages)
    pool.evict_all()
    assert pool.match_prefix([1, 2, 3, 4], ROOT, 2) == ([], ROOT)
    check_pool(pool)


class Pool(RuleBasedStateMachine):
    """Texts over two tokens come and go in a pool that is too small for them. What is written on a
    page is remembered, so a page that is lent twice, or found under another text, shows."""

    def __init__(self):
        super().__init__()
        self.pool = PagePool(7, SIZE)
        self.held = []  # (pages, text, number of pages entered, prefix)
        self.written = {}

    @rule(text=st.lists(st.integers(0, 1), max_size=8))
    def arrive(self, text):
        shared, prefix = self.pool.match_prefix(text, ROOT, len(text) // SIZE)
        for i, page in enumerate(shared):
            assert self.written[page] == text[: (i + 1) * SIZE]
        wanted = -(-len(text) // SIZE) - len(shared)
        if wanted > self.pool.available:
            self.pool.release(shared)
            return
        pages = shared + self.pool.allocate(wanted)
        for i, page in enumerate(pages[len(shared) :], len(shared)):
            self.written[page] = text[: (i + 1) * SIZE]
        self.held.append((pages, text, len(shared), prefix))

    @precondition(lambda self: self.held)
    @rule(data=st.data())
    def enter(self, data):
        i = data.draw(st.integers(0, len(self.held) - 1))
        pages, text, entered, prefix = self.held[i]
        for j in range(entered, len(text) // SIZE):
            prefix = self.pool.register(pages[j], prefix, text[j * SIZE : (j + 1) * SIZE])
        self.held[i] = (pages, text, len(text) // SIZE, prefix)

    @precondition(lambda self: self.held)
    @rule(data=st.data(), retain=st.booleans())
    def leave(self, data, retain):
        pages, *_ = self.held.pop(data.draw(st.integers(0, len(self.held) - 1)))
        self.pool.release(pages, retain=retain)

    @rule()
    def evict_all(self):
        self.pool.evict_all()

    @invariant()
    def books_are_kept(self):
        check_pool(self.pool, [pages for pages, *_ in self.held])

    @invariant()
    def held_pages_hold_what_was_written(self):
        for pages, text, *_ in self.held:
            for i, page in enumerate(pages):
                assert self.written[page] == text[: (i + 1) * SIZE]


TestPool = Pool.TestCase
TestPool.settings = settings(stateful_step_count=30)
