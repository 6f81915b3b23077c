"""What comes back: fields as attributes and items, the large ones computed once and on demand."""

from __future__ import annotations

import copy
import pickle
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

import pytest
import torch
from torch import Tensor

from problems import workloads
from torchimize import CovarianceStatus, Result, Status, least_squares
from torchimize.arrays import Output
from torchimize.result import Messages, status_fields

W = workloads.make("gauss1d", 12, seed=5)
FIELDS = [
    "x", "cost", "active_mask", "nfev", "njev", "engine", "engine_reason",
    "status", "message", "success",
    "fun", "jac", "grad", "optimality",
]  # fmt: skip


def small(calls: Counter[str] | None = None, single: bool = False) -> Result:
    """A result made by hand, with two fields on demand."""
    calls = Counter() if calls is None else calls

    def lazy(name: str) -> Any:
        def compute() -> str:
            calls[name] += 1
            return name.upper()

        return compute

    codes = torch.tensor([1] if single else [1, -3, 1], dtype=torch.int8)
    output = Output(() if single else (3,), numpy=False)
    fields = {"x": output(torch.ones(len(codes), 2)), **status_fields(output, codes)}
    return Result(output, fields, {"fun": lazy("fun"), "jac": lazy("jac")})


# ------------------------------------------------------------ the mapping


def test_mapping() -> None:
    result = small()
    names = ["x", "status", "message", "success", "fun", "jac"]
    assert isinstance(result, Mapping)
    assert list(result) == list(result.keys()) == names and len(result) == 6
    assert "fun" in result and "x" in result and "nope" not in result
    assert result["x"] is result.x and result["fun"] == result.fun == "FUN"
    assert result.get("nope") is None and result.get("jac") == "JAC"
    assert dict(result)["fun"] == "FUN"
    assert list(result) == [*names[:4], "fun", "jac"] and len(result) == 6
    assert set(names) <= set(dir(result))
    with pytest.raises(KeyError, match="nope"):
        result["nope"]


def test_unknown_attribute_names_the_fields() -> None:
    with pytest.raises(AttributeError, match=r"no field 'popt'.*'x'.*'fun'"):
        small().popt  # noqa: B018
    assert not hasattr(small(), "__array__")
    assert not hasattr(small(), "_anything")


def test_error_within_a_field_on_demand_is_its_own() -> None:
    def broken() -> None:
        raise ZeroDivisionError("in the function")

    result = Result(Output((1,), False), {}, {"fun": broken})
    with pytest.raises(ZeroDivisionError, match="in the function"):
        result.fun  # noqa: B018


def test_fields_can_be_added() -> None:
    result = small()
    result.add(popt=5, x=6)
    assert result.popt == 5 and result["x"] == 6 and "popt" in list(result)


# ------------------------------------------------------------------------------- fields on demand


def test_computed_once_and_only_when_asked_for() -> None:
    calls: Counter[str] = Counter()
    result = small(calls)
    repr(result), len(result), list(result), "jac" in result, dir(result)
    assert not calls
    assert result.fun == "FUN" and result["fun"] == "FUN" and result.fun is result.fun
    assert calls == {"fun": 1}
    list(result.values()), list(result.items())
    assert calls == {"fun": 1, "jac": 1}


def test_a_fit_s_large_fields_wait_until_they_are_asked_for() -> None:
    calls: Counter[str] = Counter()

    def residual(p: Tensor, y: Tensor) -> Tensor:
        calls["residual"] += 1
        return W.residual(p, y)

    def jacobian(p: Tensor, y: Tensor) -> Tensor:
        calls["jacobian"] += 1
        return W.residual_jacobian(p, y)

    result = least_squares(residual, W.start, jacobian, args=(W.y,))
    assert list(result) == FIELDS
    calls.clear()
    repr(result), result.x, result.cost, result.status, result.message, result.success, result.nfev
    assert not calls
    first = result.fun
    assert calls == {"residual": 1}
    assert result.fun is first and calls == {"residual": 1}
    assert result.jac is result["jac"] and calls["jacobian"] == 1
    calls.clear()
    for _ in range(2):
        assert result.grad.shape == (12, 4) and result.optimality.shape == (12,)
    assert calls["jacobian"] <= 2
    torch.testing.assert_close(first, W.residual(result.x, W.y))
    torch.testing.assert_close(result.jac, W.residual_jacobian(result.x, W.y))
    wanted = torch.einsum("bcnp,bcn->bp", result.jac, result.fun)
    torch.testing.assert_close(result.grad, wanted, rtol=1e-6, atol=1e-8)
    torch.testing.assert_close(result.optimality, wanted.abs().amax(1), rtol=1e-6, atol=1e-8)


def test_shapes_of_a_batch_and_of_one_problem() -> None:
    batch = least_squares(W.residual, W.start, args=(W.y,))
    assert batch.x.shape == batch.grad.shape == batch.active_mask.shape == (12, 4)
    for name in ("cost", "nfev", "njev", "status", "success", "optimality"):
        assert batch[name].shape == (12,), name
    assert batch.fun.shape == (12, 1, 50) and batch.jac.shape == (12, 1, 50, 4)
    assert len(batch.message) == 12
    one = least_squares(lambda p: W.model(W.x, *p) - W.y[0], W.start[0])
    assert one.x.shape == one.grad.shape == (4,) and one.jac.shape == (50, 4)
    assert isinstance(one.cost, float) and isinstance(one.optimality, float)
    assert isinstance(one.status, int) and one.success is True and isinstance(one.message, str)
    torch.testing.assert_close(one.x, batch.x[0], rtol=1e-7, atol=1e-7)


# ------------------------------------------------------------------------------------ its picture


def test_repr_of_a_batch() -> None:
    text = repr(small())
    assert text.startswith("Result\n") and "2 of 3 fits succeeded" in text
    assert "x: (3, 2)" in text and "fields: x, status, message, success, fun, jac" in text
    assert f"2 × {Status.GTOL.message!r}" in text and f"1 × {Status.NON_FINITE.message!r}" in text
    assert all(len(line) < 300 for line in text.splitlines())
    assert len(repr(least_squares(W.residual, W.start, args=(W.y,))).splitlines()) < 10


def test_repr_of_one_problem() -> None:
    text = repr(small(single=True))
    assert "x: tensor([1., 1.])" in text and "status: 1" in text and "success: True" in text
    assert Status.GTOL.message in text and "FUN" not in text


def test_repr_of_an_empty_batch() -> None:
    result = least_squares(W.residual, W.start[:0], args=(W.y[:0],))
    assert "0 of 0 fits succeeded" in repr(result)


# ------------------------------------------------------------ copies


@pytest.mark.parametrize("copier", [copy.copy, copy.deepcopy])
def test_copies(copier: Any) -> None:
    result = least_squares(W.residual, W.start, args=(W.y,))
    twin = copier(result)
    assert torch.equal(twin.x, result.x) and list(twin) == list(result)
    torch.testing.assert_close(twin.fun, result.fun)
    twin.add(extra=1)
    assert "extra" not in result


def test_pickle() -> None:
    # what has been computed travels; the user's functions need not
    result = least_squares(W.residual, W.start, args=(W.y,))
    fun = result.fun
    twin = pickle.loads(pickle.dumps(result))
    for name in ("x", "cost", "status", "nfev", "success"):
        assert torch.equal(twin[name], result[name])
    assert list(twin.message) == list(result.message)
    assert torch.equal(twin.fun, fun)


# ------------------------------------------------------------ messages


def test_messages_are_a_sequence() -> None:
    codes = torch.tensor([1, 0, -1, 4], dtype=torch.int8)
    messages = Messages(codes, Status)
    wanted = [Status(code).message for code in (1, 0, -1, 4)]
    assert isinstance(messages, Sequence) and len(messages) == 4
    assert list(messages) == wanted and messages[2] == wanted[2] and messages[-1] == wanted[3]
    assert isinstance(messages[1:3], Messages) and list(messages[1:3]) == wanted[1:3]
    assert list(messages[::2]) == wanted[::2]
    assert wanted[1] in messages and messages.count(wanted[0]) == 1
    assert messages.index(wanted[3]) == 3
    with pytest.raises(IndexError):
        messages[4]


def test_messages_of_the_covariance() -> None:
    messages = Messages(torch.tensor([0, 2], dtype=torch.int8), CovarianceStatus)
    assert list(messages) == [
        CovarianceStatus.OK.message, CovarianceStatus.RANK_DEFICIENT.message,
    ]  # fmt: skip


def test_messages_are_written_only_when_read(monkeypatch: pytest.MonkeyPatch) -> None:
    read = []

    class Table(int):
        @property
        def message(self) -> str:
            read.append(int(self))
            return f"message {int(self)}"

    messages = Messages(torch.ones(1_000_000, dtype=torch.int8), Table)  # type: ignore[arg-type]
    assert len(messages) == 1_000_000 and not read
    assert messages[5] == "message 1" and read == [1]
    assert repr(messages) == "Messages(1000000 × 'message 1')" and len(read) == 2
    assert messages[10:20][0] == "message 1" and len(read) == 3


def test_repr_of_messages_counts() -> None:
    messages = Messages(torch.tensor([1, 0, 1], dtype=torch.int8), Status)
    assert f"2 × {Status.GTOL.message!r}" in repr(messages)
    assert f"1 × {Status.MAX_NFEV.message!r}" in repr(messages)
