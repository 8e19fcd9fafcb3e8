"""Batches of like length, what happens where memory runs out, and sampling that no batch changes."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
import torch

from and_platform.backends.batching import BatchSize, TooLargeError, by_length, each_by_length, pick_dtype
from and_platform.backends.sampling import seed_of, seeded_choice
from and_platform.errors import ConfigError

CPU_IS_FULL = (
    "[enforce fail at alloc_cpu.cpp:127] DefaultCPUAllocator: can't allocate memory: you tried to allocate 4 bytes."
)


def upper(room: int, calls: list[list[str]], error: Exception) -> Callable[[list[str]], list[str]]:
    """Upper-cases texts, as long as they have no more than `room` letters in all, padding included."""

    def compute(batch: list[str]) -> list[str]:
        calls.append(batch)
        if len(batch) * max(map(len, batch)) > room:
            raise error
        return [text.upper() for text in batch]

    return compute


def test_like_lengths_share_a_batch_and_the_longest_come_first() -> None:
    calls: list[list[str]] = []
    texts = ["a", "cccc", "bb", "dddd", "e"]
    assert by_length(texts, len, 2, upper(99, calls, MemoryError())) == ["A", "CCCC", "BB", "DDDD", "E"]
    assert calls == [["cccc", "dddd"], ["bb", "a"], ["e"]]
    assert by_length([], len, 2, upper(99, calls, MemoryError())) == []


@pytest.mark.parametrize(
    "error",
    [
        torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB."),
        RuntimeError(CPU_IS_FULL),
        torch.AcceleratorError("CUDA error: out of memory"),
        RuntimeError("CUDA error: out of memory\nCUDA kernel errors might be reported asynchronously"),
        RuntimeError("cuDNN error: CUDNN_STATUS_ALLOC_FAILED"),
        RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`"),
        RuntimeError("CUDA error: CUBLAS_STATUS_NOT_INITIALIZED when calling `cublasCreate(handle)`"),
        RuntimeError("[enforce fail] DefaultCPUAllocator: not enough memory: you tried to allocate 4 bytes."),
        RuntimeError("MPS backend out of memory (MPS allocated: 8.00 GB)"),
        MemoryError("Unable to allocate 9. GiB for an array"),
    ],
)
def test_where_memory_runs_out_the_batch_is_halved_and_stays_so(error: Exception) -> None:
    calls: list[list[str]] = []
    size = BatchSize(8)
    texts = ["x" * 4] * 8
    assert by_length(texts, len, size, upper(8, calls, error)) == ["XXXX"] * 8
    assert [len(batch) for batch in calls] == [8, 4, 2, 2, 2, 2]
    assert size.size == 2
    calls.clear()
    by_length(texts, len, size, upper(8, calls, error))
    assert [len(batch) for batch in calls] == [2, 2, 2, 2]


def test_a_batch_that_is_not_full_is_halved_from_what_it_holds() -> None:
    calls: list[list[str]] = []
    size = BatchSize(64)
    assert by_length(["xx"] * 6, len, size, upper(7, calls, MemoryError())) == ["XX"] * 6
    assert [len(batch) for batch in calls] == [6, 3, 3]
    assert size.size == 3


def test_what_does_not_fit_alone_fails_alone() -> None:
    texts = ["aaaaaaaaa", "bb", "cc"]
    first, *rest = each_by_length(texts, len, 2, upper(4, [], MemoryError()))
    assert isinstance(first, TooLargeError)
    assert "length 9 needs more memory" in str(first)
    assert rest == ["BB", "CC"]
    with pytest.raises(TooLargeError, match="use a smaller model"):
        by_length(texts, len, 2, upper(4, [], MemoryError()))


def test_other_errors_are_not_for_want_of_memory() -> None:
    with pytest.raises(RuntimeError, match="shapes"):
        by_length(["a", "b"], len, 2, upper(0, [], RuntimeError("shapes do not fit")))


def test_what_a_failed_attempt_held_is_given_back() -> None:
    import weakref

    held: list[weakref.ref[torch.Tensor]] = []

    def compute(batch: list[str]) -> list[str]:
        assert all(ref() is None for ref in held)
        tensor = torch.zeros(3)
        held.append(weakref.ref(tensor))
        if len(batch) > 1:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return batch

    assert by_length(["a", "b"], len, 2, compute) == ["a", "b"]
    assert len(held) == 3


def test_dtype() -> None:
    assert pick_dtype("auto", "cpu", torch.bfloat16) == torch.float32
    assert pick_dtype("bfloat16", "cpu") == torch.bfloat16
    assert pick_dtype("auto", "mps", torch.float16) == torch.float16
    assert pick_dtype("auto", "mps", torch.float32) == torch.bfloat16
    for unknown in ("half-ish", "int8", "nn"):
        with pytest.raises(ConfigError, match="there is no dtype"):
            pick_dtype(unknown, "cpu")


class TestSeededChoice:
    LOGITS = torch.tensor([1.0, 2.0, 0.0, -1.0])

    def draws(self, n: int, temperature: float, top_p: float = 1.0) -> torch.Tensor:
        scores = self.LOGITS.repeat(n, 1)
        ids = torch.zeros(n, 1, dtype=torch.long)
        return seeded_choice(range(n), temperature, top_p)(ids, scores).argmax(dim=1)

    @pytest.mark.parametrize("temperature", [0.5, 1.0, 2.0])
    def test_draws_follow_the_softmax(self, temperature: float) -> None:
        n = 4000
        shares = torch.bincount(self.draws(n, temperature), minlength=4) / n
        expected = torch.softmax(self.LOGITS / temperature, 0)
        assert torch.allclose(shares, expected, atol=4 * float(np.sqrt(0.25 / n)))

    def test_top_p_leaves_the_tail_out(self) -> None:
        assert set(self.draws(1000, 1.0, 0.8).tolist()) == {0, 1}

    def test_rows_do_not_know_each_other_and_steps_differ(self) -> None:
        ids, scores = torch.zeros(3, 1, dtype=torch.long), torch.zeros(3, 50)
        together, alone = seeded_choice([1, 2, 3], 1.0), seeded_choice([2], 1.0)
        for _ in range(3):
            assert torch.equal(together(ids, scores)[1], alone(ids[:1], scores[:1])[0])
        assert not torch.equal(together(ids, scores), together(ids, scores))

    def test_seeds(self) -> None:
        assert seed_of(1, b"clip") == seed_of(1, b"clip")
        assert len({seed_of(1, b"clip"), seed_of(2, b"clip"), seed_of(1, b"clap"), seed_of(11, b"lip")}) == 4
        assert 0 <= seed_of(0, b"") < 2**63
