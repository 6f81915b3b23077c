"""The batch dimension: rows, chunks, and whether a function can be called on some rows only."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from torchimize.batch import BatchFunction, belongs_to_problems, chunks, take_rows
from torchimize.errors import DtypeError, ShapeError


def params(batch: int, num_params: int = 2) -> Tensor:
    generator = torch.Generator().manual_seed(batch)
    return 1 + torch.rand(batch, num_params, dtype=torch.float64, generator=generator)


def data(batch: int, samples: int = 7) -> Tensor:
    return torch.arange(float(batch * samples), dtype=torch.float64).reshape(batch, samples)


# ------------------------------------------------------------ rows, chunks


@pytest.mark.parametrize(
    ("value", "belongs"),
    [
        (torch.zeros(5, 3), True),
        (torch.zeros(5, 3, 4), True),
        (torch.zeros(5, 1), True),
        (torch.zeros(5), False),
        (torch.zeros(3, 5), False),
        (torch.tensor(5.0), False),
        ([[1.0]] * 5, False),
        (None, False),
        ("five", False),
    ],
)
def test_what_belongs_to_the_problems(value: Any, belongs: bool) -> None:
    assert belongs_to_problems(value, 5) is belongs
    rows = torch.tensor([4, 0, 4])
    cut = take_rows(value, rows, 5)
    if belongs:
        assert torch.equal(cut, value[[4, 0, 4]])
    else:
        assert cut is value
    assert take_rows(value, None, 5) is value


def test_cut_rows_keep_their_dtype() -> None:
    value = torch.arange(10).reshape(5, 2)
    assert take_rows(value, torch.tensor([3]), 5).tolist() == [[6, 7]]
    assert take_rows(value, torch.tensor([3]), 5).dtype == torch.int64


@pytest.mark.parametrize("length", [0, 1, 6, 7, 8, 20])
@pytest.mark.parametrize("size", [1, 7, 100])
def test_chunks_cover_the_range_once(length: int, size: int) -> None:
    parts = list(chunks(length, size))
    assert [i for part in parts for i in range(length)[part]] == list(range(length))
    assert all(0 < part.stop - part.start <= size for part in parts)
    assert len(parts) == -(-length // size)


# --------------------------------------------------------------------------------- calls on rows


def test_arguments_are_cut_with_the_parameters() -> None:
    seen: dict[str, Any] = {}

    def function(p: Tensor, y: Tensor, x: Tensor, *, offset: Tensor, name: str) -> Tensor:
        seen.update(y=y, x=x, offset=offset, name=name)
        return p.sum(1, keepdim=True) + y + offset

    y, x, offset = data(5), torch.zeros(7), data(5, 1)
    call = BatchFunction(function, 5, (y, x), {"offset": offset, "name": "fit"})
    p, rows = params(5), torch.tensor([3, 1])
    value = call(p[rows], rows)
    assert torch.equal(seen["y"], y[rows]) and torch.equal(seen["offset"], offset[rows])
    assert seen["x"] is x and seen["name"] == "fit"
    torch.testing.assert_close(value, (p.sum(1, keepdim=True) + y + offset)[rows])
    call(p)
    assert seen["y"] is y and seen["offset"] is offset


def test_one_problem_without_a_batch_dimension() -> None:
    y = data(4, 3)  # four samples of three: nothing here belongs to problems

    def function(p: Tensor, y: Tensor) -> Tensor:
        assert p.shape == (2,)
        return p.sum() - y

    call = BatchFunction(function, 1, (y,), single=True)
    p = params(1)
    assert call(p).shape == (1, 4, 3)
    torch.testing.assert_close(call.probe(p)[0], p.sum() - y)
    assert call.any_rows


@pytest.mark.parametrize("as_what", [list, tuple])
def test_sequences_become_tensors(as_what: Callable[..., Any]) -> None:
    p = params(4)
    call = BatchFunction(lambda p: as_what([p[:, 0], 2 * p[:, 1]]), 4)
    torch.testing.assert_close(call(p), torch.stack([p[:, 0], 2 * p[:, 1]], -1))
    numbers = BatchFunction(lambda p: as_what([float(p[0]), 3.0]), 1, single=True)
    torch.testing.assert_close(
        numbers(p[:1])[0], torch.stack([p[0, 0], torch.tensor(3.0)]).double()
    )


def test_output_of_another_dtype() -> None:
    p = params(4)
    single = lambda p: p.float() ** 2  # noqa: E731
    promoting = BatchFunction(single, 4, promote=True)
    assert promoting(p).dtype == torch.float64
    with pytest.raises(DtypeError, match=r"residuals have dtype torch\.float32.*torch\.float64"):
        BatchFunction(single, 4).probe(p)
    with pytest.raises(DtypeError, match=r"Jacobian has dtype torch\.int64"):
        BatchFunction(lambda p: p.long(), 4, name="Jacobian", promote=True).probe(p)


# ------------------------------------------------------------ can it be called on some rows only?

BATCHES = [2, 3, 4, 5, 6, 10, 50]


@pytest.mark.parametrize("batch", BATCHES)
def test_function_of_its_arguments_takes_any_rows(batch: int) -> None:
    calls = []

    def function(p: Tensor, y: Tensor) -> Tensor:
        calls.append(len(p))
        return p[:, :1] * 2 - y

    call = BatchFunction(function, batch, (data(batch),))
    sample = call.probe(params(batch))
    assert call.any_rows and sample.shape[1:] == (7,)
    assert sum(calls) <= 16, "looking at a function must not cost a pass over the batch"


@pytest.mark.parametrize("batch", BATCHES)
@pytest.mark.parametrize("keepdim", [True, False])
def test_function_that_closes_over_all_data_gets_all_rows(batch: int, keepdim: bool) -> None:
    y = data(batch)
    if keepdim:
        call = BatchFunction(lambda p: p[:, :1] - y, batch)
    else:
        y = y[:, 0]
        call = BatchFunction(lambda p: p[:, 0] - y, batch)
    p = params(batch)
    sample = call.probe(p)
    assert call.any_rows is False
    torch.testing.assert_close(sample, (p[:, :1] if keepdim else p[:, 0]) - y)


@pytest.mark.parametrize("batch", BATCHES)
def test_function_that_slices_its_data_to_length_gets_all_rows(batch: int) -> None:
    y = data(batch)
    call = BatchFunction(lambda p: p[:, :1] - y[: len(p)], batch)
    call.probe(params(batch))
    # with B = 2 three rows already do not fit
    assert call.any_rows is False


@pytest.mark.parametrize("batch", BATCHES)
def test_function_that_slices_from_the_end_gets_all_rows(batch: int) -> None:
    y = data(batch)
    call = BatchFunction(lambda p: p[:, :1] - y[-len(p) :], batch)
    call.probe(params(batch))
    assert call.any_rows is False


@pytest.mark.parametrize("batch", BATCHES)
def test_function_that_cycles_through_its_data_gets_all_rows(batch: int) -> None:
    y = data(batch)
    call = BatchFunction(lambda p: p[:, :1] - y[torch.arange(len(p)) % batch], batch)
    call.probe(params(batch))
    assert call.any_rows is False


@pytest.mark.parametrize("batch", BATCHES)
def test_equal_starts_do_not_hide_the_data(batch: int) -> None:
    # all problems start at one point, so that only the data tell rows apart
    y = data(batch)
    call = BatchFunction(lambda p: p[:, :1] - y[: len(p)], batch)
    call.probe(torch.ones(batch, 2, dtype=torch.float64))
    assert call.any_rows is False


@pytest.mark.parametrize("batch", BATCHES)
def test_function_with_one_foreign_length_gets_all_rows(batch: int) -> None:
    weight = torch.linspace(1, 2, batch, dtype=torch.float64)  # one dimension: shared, by the rule
    call = BatchFunction(lambda p, w: (p * w[:, None]).sum(1), batch, (weight,))
    p = params(batch)
    torch.testing.assert_close(call.probe(p), (p * weight[:, None]).sum(1))
    assert call.any_rows is False


def test_shared_data_that_broadcast_are_no_obstacle() -> None:
    shared = data(1)
    call = BatchFunction(lambda p: p[:, :1] - shared, 6)
    call.probe(params(6))
    assert call.any_rows


def test_nan_rows_do_not_look_like_foreign_rows() -> None:
    p = params(6)
    p[[0, 3, 5]] = torch.nan
    call = BatchFunction(lambda p: p**2, 6)
    call.probe(p)
    assert call.any_rows


def test_one_problem_is_called_once() -> None:
    calls = []

    def function(p: Tensor) -> Tensor:
        calls.append(tuple(p.shape))
        return p**2

    call = BatchFunction(function, 1)
    assert call.probe(params(1)).shape == (1, 2)
    assert calls == [(1, 2)] and call.any_rows


def test_probe_reports_wrong_outputs_for_the_whole_batch() -> None:
    with pytest.raises(ShapeError, match=r"\(1, 2\) for parameters of shape \(6, 2\).*\(6, ...\)"):
        BatchFunction(lambda p: p[:1], 6).probe(params(6))
    with pytest.raises(ZeroDivisionError):
        BatchFunction(lambda p: p / (1 // 0), 6).probe(params(6))
    with pytest.raises(ShapeError, match=r"residuals of shape \(\)"):
        BatchFunction(lambda p: p.sum(), 6).probe(params(6))


def test_probe_leaves_the_start_alone() -> None:
    p = params(6)
    before = p.clone()
    BatchFunction(lambda p: p.mul_(2), 6).probe(p.clone())
    call = BatchFunction(lambda p: p * 2, 6)
    call.probe(p)
    mixing(call, p)
    assert torch.equal(p, before)


# ------------------------------------------------------------ mixing


def mixing(call: BatchFunction, p: Tensor) -> list[int]:
    """The problems that mix, without a box."""
    return call.find_mixing(p, torch.full_like(p, -torch.inf), torch.full_like(p, torch.inf))


@pytest.mark.parametrize("batch", [2, 3, 7])
def test_independent_problems_do_not_mix(batch: int) -> None:
    y = data(batch)
    assert mixing(BatchFunction(lambda p: p[:, :1] ** 2 - y, batch), params(batch)) == []
    assert mixing(BatchFunction(lambda p: torch.ones_like(p), batch), params(batch)) == []


@pytest.mark.parametrize("batch", [2, 3, 7])
def test_mean_over_the_batch_mixes_everything(batch: int) -> None:
    call = BatchFunction(lambda p: p - p.mean(0), batch)
    assert mixing(call, params(batch)) == list(range(batch))


@pytest.mark.parametrize("other", [0, 1, 2, 3, 5, 6, 7, 8])
def test_any_pair_that_mixes_is_found(other: int) -> None:
    def function(p: Tensor) -> Tensor:
        value = p.clone()
        value[4] = p[4] + p[other]
        return value

    assert mixing(BatchFunction(function, 9), params(9)) == [4]


def test_one_problem_cannot_mix() -> None:
    assert mixing(BatchFunction(lambda p: p, 1), params(1)) == []


def test_mixing_of_problems_that_start_at_zero() -> None:
    call = BatchFunction(lambda p: p - p.mean(0), 4)
    assert mixing(call, torch.zeros(4, 2, dtype=torch.float64)) == [0, 1, 2, 3]


def test_nan_start_is_no_mixing() -> None:
    p = params(4)
    p[2] = torch.nan
    assert mixing(BatchFunction(lambda p: p**2, 4), p) == []


def test_mixing_is_looked_for_inside_the_box() -> None:
    p = params(6)

    def function(q: Tensor) -> Tensor:
        assert bool(((q >= p - 1e-3) & (q <= p)).all())
        return q - q.mean(0)

    assert BatchFunction(function, 6).find_mixing(p, p - 1e-3, p) == list(range(6))
