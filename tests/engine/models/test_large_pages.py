"""Weights and the KV pool in large pages: whole, apart from each other, alive as long as somebody holds them, and not
taken from the system before they are written."""

import gc
import math
import mmap
import os
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenmill_worker.engine.attention.cpu.memory import AREA, LARGE_PAGE, LINE, LargePages, empty
from tokenmill_worker.engine.kv_pool import KVPool, LayerShape

DTYPES = [torch.uint8, torch.bfloat16, torch.float32]


@settings(max_examples=30, deadline=None)
@given(st.lists(st.tuples(st.integers(0, 300), st.integers(1, 70), st.sampled_from(DTYPES)), max_size=12))
def test_every_copy_keeps_its_values(shapes: list[tuple[int, int, torch.dtype]]) -> None:
    pages = LargePages()
    values = [torch.randint(0, 100, (rows, width)).to(dtype) for rows, width, dtype in shapes]
    kept = [pages.keep(value) for value in values]
    for value, copy in zip(values, kept, strict=True):
        assert torch.equal(copy, value)
        assert copy.dtype == value.dtype
        assert copy.is_contiguous()


def test_copies_begin_at_cache_lines_and_lie_in_one_area() -> None:
    pages = LargePages()
    places = [pages.keep(torch.zeros(size, dtype=torch.uint8)).data_ptr() for size in (1, 100, 64)]
    assert places[0] % LARGE_PAGE == 0
    assert places == [places[0], places[0] + LINE, places[0] + 3 * LINE]


def test_what_lies_transposed_is_kept_in_the_order_it_shows() -> None:
    values = torch.arange(6).view(2, 3).t()
    assert torch.equal(LargePages().keep(values).flatten(), torch.tensor([0, 3, 1, 4, 2, 5]))


def test_more_than_an_area_gets_one_of_its_own() -> None:
    pages = LargePages()
    pages.keep(torch.zeros(1))
    values = torch.arange(AREA // 8 + 5)
    assert torch.equal(pages.keep(values), values)


def test_a_copy_outlives_the_one_who_made_it() -> None:
    copy = LargePages().keep(torch.arange(1000))
    gc.collect()
    assert torch.equal(copy, torch.arange(1000))


def test_a_kernel_without_large_pages_gives_ordinary_ones(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delattr(mmap, "MADV_HUGEPAGE", raising=False)
    assert torch.equal(LargePages().keep(torch.ones(3)), torch.ones(3))


def resident_bytes() -> int:
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")


@settings(max_examples=30, deadline=None)
@given(st.lists(st.sampled_from([1, 3, 32, 100]), min_size=1, max_size=4), st.sampled_from(DTYPES))
def test_empty_memory_has_the_shape_that_was_asked_for(shape: list[int], dtype: torch.dtype) -> None:
    made = empty(*shape, dtype=dtype)
    assert (made.shape, made.dtype, made.device.type) == (torch.Size(shape), dtype, "cpu")
    assert made.is_contiguous()
    if math.prod(shape) * dtype.itemsize >= LARGE_PAGE:
        assert made.data_ptr() % LARGE_PAGE == 0


def test_a_pool_takes_memory_only_for_what_was_written() -> None:
    before = resident_bytes()
    shapes = [LayerShape(kv_heads=4, key_dim=64, value_dim=64)] * 4
    pool = KVPool(shapes, num_pages=8192, dtype=torch.bfloat16, device=torch.device("cpu"))
    assert resident_bytes() - before < 4 * LARGE_PAGE  # of 1 GB
    for keys, values in pool.layers:
        keys[0].fill_(1), values[0].fill_(2)
    assert resident_bytes() - before < (4 + 2 * len(shapes)) * LARGE_PAGE
    pool.copy(torch.tensor([0]), torch.tensor([8191]))
    assert all(bool((keys[8191] == 1).all() and (values[8191] == 2).all()) for keys, values in pool.layers)


def test_memory_that_cannot_be_mapped_so_is_taken_in_the_ordinary_way(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*args: object, **settings: object) -> None:
        raise OSError("no address space")

    monkeypatch.setattr(mmap, "mmap", refuse)
    assert empty(3, LARGE_PAGE, dtype=torch.uint8).shape == (3, LARGE_PAGE)
