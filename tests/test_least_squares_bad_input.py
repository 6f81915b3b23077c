"""Bad input to ``least_squares``: one clear error each, nothing computed, nothing changed."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import scipy.optimize
import torch
from numpy.typing import NDArray
from torch import Tensor

import torchimize
from torchimize import least_squares

Array = NDArray[np.float64]

T = np.linspace(0.0, 4.0, 20)
TRUE = np.array([[3.0, 0.5], [2.0, 1.5], [1.0, 0.9], [4.0, 0.2]])
Y = TRUE[:, :1] * np.exp(-TRUE[:, 1:] * T)
X0 = np.array([[2.0, 1.0], [2.5, 1.0], [1.5, 0.5], [3.0, 0.5]])


class Decay:
    """Residuals that count how often they were asked for."""

    def __init__(self) -> None:
        self.calls = 0

    def __call__(self, x: Any, t: Any = T, y: Any = Y) -> Any:
        self.calls += 1
        t, y = torch.as_tensor(t, dtype=x.dtype), torch.as_tensor(y, dtype=x.dtype)
        return x[..., :1] * torch.exp(-x[..., 1:] * t) - y


def alone(x: Array) -> Array:
    """The first problem, for SciPy."""
    return x[0] * np.exp(-x[1] * T) - Y[0]


def refusal(function: Callable[..., Any], *args: Any, **kwargs: Any) -> Exception:
    """The error that a call raises."""
    try:
        function(*args, **kwargs)
    except Exception as error:
        return error
    raise AssertionError("nothing was raised")


# ------------------------------------------------------------------- refused before any evaluation

WITHOUT_EVALUATION: dict[str, tuple[Any, dict[str, Any], type[Exception], str]] = {
    # name: x0, options, exception, what the message must say (met and wanted)
    "x0 of rank 3": (np.ones((2, 2, 2)), {}, ValueError, r"x0.*\(2, 2, 2\).*\(P,\).*\(B, P\)"),
    "x0 without parameters": (np.ones((4, 0)), {}, ValueError, r"x0.*\(4, 0\).*at least one"),
    "x0 of integers": (np.ones((4, 2), dtype=np.int64), {}, TypeError, r"x0.*int64.*float64"),
    "x0 of booleans": (np.ones((4, 2), dtype=bool), {}, TypeError, r"x0.*bool.*float"),
    "x0 an integer tensor": (torch.ones(4, 2, dtype=torch.int32), {}, TypeError, r"int32.*float"),
    "x0 complex": (X0 + 0j, {}, TypeError, r"x0.*complex128.*real"),
    "x0 a complex tensor": (torch.tensor(X0 + 0j), {}, TypeError, r"x0.*complex128.*real"),
    "x0 complex numbers": ([[1j, 1.0]] * 4, {}, TypeError, r"x0.*complex.*real"),
    "x0 of half precision": (torch.ones(4, 2).half(), {}, TypeError, r"float16.*float64.*float32"),
    "x0 text": ("start", {}, TypeError, r"x0.*str.*numbers"),
    "x0 ragged": ([[1.0, 2.0], [1.0]], {}, TypeError, r"x0.*list.*numbers"),
    "x0 nothing": (None, {}, TypeError, r"x0.*None.*numbers"),
    "bounds of another batch": (
        X0, {"bounds": (np.zeros((3, 2)), 9.0)}, ValueError, r"lower.*\(3, 2\).*\(2,\).*\(4, 2\)",
    ),
    "bounds of other parameters": (
        X0, {"bounds": (0.0, np.full(3, 9.0))}, ValueError, r"upper.*\(3,\).*\(2,\).*\(4, 2\)",
    ),
    "bounds per problem for one": (
        X0[0], {"bounds": (np.zeros((4, 2)), 9.0)}, ValueError, r"lower.*\(4, 2\).*\(2,\)",
    ),
    "bounds no pair": (X0, {"bounds": (0.0, 1.0, 2.0)}, ValueError, r"bounds.*2.*lower, upper"),
    "bounds a number": (X0, {"bounds": 5.0}, (ValueError, TypeError), r"bounds.*2.*lower, upper"),
    "bounds text": (X0, {"bounds": ("low", 1.0)}, (ValueError, TypeError), r"bounds.*numbers"),
    "lower above upper": (X0, {"bounds": (9.0, 0.0)}, ValueError, r"lower bound.*at most.*upper"),
    "lower above upper once": (
        X0, {"bounds": (0.0, np.where(np.eye(4, 2) > 0, -1.0, 9.0))}, ValueError, r"lower.*upper",
    ),
    "NaN in lower": (X0, {"bounds": (np.nan, 9.0)}, ValueError, r"bounds.*NaN.*inf"),
    "NaN in upper": (X0, {"bounds": (0.0, [9.0, np.nan])}, ValueError, r"bounds.*NaN.*inf"),
    "start below": (
        X0, {"bounds": ([0.0, 0.6], 9.0)}, ValueError,
        r"x0.*infeasible.*parameter 1 of problem 2.*0\.5.*\[0\.6, 9\]",
    ),
    "start above": (
        X0, {"bounds": (0.0, [2.2, 9.0])}, ValueError,
        r"x0.*infeasible.*parameter 0 of problem 1.*2\.5.*\[0, 2\.2\]",
    ),
    "ftol negative": (X0, {"ftol": -1e-8}, ValueError, r"ftol.*-1e-08.*≥ 0"),
    "xtol negative": (X0, {"xtol": -1.0}, ValueError, r"xtol.*-1\.0.*≥ 0"),
    "gtol negative": (X0, {"gtol": -1e-300}, ValueError, r"gtol.*-1e-300.*≥ 0"),
    "ftol NaN": (X0, {"ftol": np.nan}, ValueError, r"ftol.*nan.*≥ 0"),
    "ftol text": (X0, {"ftol": "small"}, (ValueError, TypeError), r"small"),
    "no tolerance": (
        X0, dict.fromkeys(("ftol", "xtol", "gtol")), ValueError, r"at least one.*ftol.*xtol.*gtol",
    ),
    "all tolerances 0": (
        X0, dict.fromkeys(("ftol", "xtol", "gtol"), 0.0), ValueError, r"at least one",
    ),
    "f_scale 0": (X0, {"f_scale": 0.0}, ValueError, r"f_scale.*0\.0.*positive"),
    "f_scale negative": (X0, {"f_scale": -2.0}, ValueError, r"f_scale.*-2\.0.*positive"),
    "f_scale NaN": (X0, {"f_scale": np.nan}, ValueError, r"f_scale.*nan.*positive"),
    "f_scale infinite": (X0, {"f_scale": np.inf}, ValueError, r"f_scale.*inf.*positive"),
    "x_scale 0": (X0, {"x_scale": 0.0}, ValueError, r"x_scale.*'jac'.*positive"),
    "x_scale negative": (X0, {"x_scale": [1.0, -1.0]}, ValueError, r"x_scale.*positive"),
    "x_scale NaN": (X0, {"x_scale": [1.0, np.nan]}, ValueError, r"x_scale.*positive"),
    "x_scale unknown": (X0, {"x_scale": "auto"}, ValueError, r"x_scale.*'auto'.*'jac'"),
    "x_scale of other parameters": (
        X0, {"x_scale": np.ones(3)}, ValueError, r"x_scale.*\(3,\).*\(4, 2\).*\(2,\)",
    ),
    "x_scale of another batch": (
        X0, {"x_scale": np.ones((3, 2))}, ValueError, r"x_scale.*\(3, 2\).*\(4, 2\)",
    ),
    "max_nfev 0": (X0, {"max_nfev": 0}, ValueError, r"max_nfev.*0.*≥ 1"),
    "max_nfev negative": (X0, {"max_nfev": -3}, ValueError, r"max_nfev.*-3.*≥ 1"),
    "max_nfev fractional": (X0, {"max_nfev": 2.5}, ValueError, r"max_nfev.*2\.5.*whole"),
    "max_nfev NaN": (X0, {"max_nfev": np.nan}, ValueError, r"max_nfev.*nan.*whole"),
    "max_nfev infinite": (X0, {"max_nfev": np.inf}, ValueError, r"max_nfev.*inf.*whole"),
    "loss unknown": (X0, {"loss": "tukey"}, ValueError, r"loss.*'tukey'.*'linear'.*'cauchy'"),
    "loss nothing": (X0, {"loss": None}, ValueError, r"loss.*None.*'linear'"),
    "method unknown": (X0, {"method": "bfgs"}, ValueError, r"method.*'bfgs'.*'trf'.*'lm'"),
    "jac unknown": (X0, {"jac": "central"}, ValueError, r"jac.*'central'.*'forward'.*'3-point'"),
}  # fmt: skip


@pytest.mark.parametrize("name", WITHOUT_EVALUATION)
def test_refused_before_anything_is_computed(name: str) -> None:
    x0, options, exception, message = WITHOUT_EVALUATION[name]
    fun = Decay()
    with pytest.raises(exception, match=message) as caught:
        least_squares(fun, x0, **options)
    assert fun.calls == 0
    assert len(str(caught.value).splitlines()) == 1


# SciPy's own word for what it refuses too; only what it does with one problem can be compared.
SAME_AS_SCIPY: dict[str, dict[str, Any]] = {
    "bounds of other parameters": {"bounds": (0.0, np.full(3, 9.0))},
    "bounds no pair": {"bounds": (0.0, 1.0, 2.0)},
    "lower above upper": {"bounds": (9.0, 0.0)},
    "start outside": {"bounds": (2.5, 9.0)},
    "NaN in bounds": {"bounds": (0.0, [9.0, np.nan])},
    "no tolerance": dict.fromkeys(("ftol", "xtol", "gtol")),
    "x_scale 0": {"x_scale": 0.0},
    "x_scale negative": {"x_scale": [1.0, -1.0]},
    "x_scale unknown": {"x_scale": "auto"},
    "x_scale of other parameters": {"x_scale": np.ones(3)},
    "max_nfev 0": {"max_nfev": 0},
    "max_nfev negative": {"max_nfev": -3},
    "loss unknown": {"loss": "tukey"},
    "loss nothing": {"loss": None},
    "method unknown": {"method": "bfgs"},
    "jac unknown": {"jac": "central"},
    "loss of wrong shape": {"loss": lambda z: np.ones((3, len(z) + 1))},
    "Jacobian transposed": {"jac": lambda x, *args: np.ones((2, 20))},
    "Jacobian of too many parameters": {"jac": lambda x, *args: np.ones((20, 3))},
    "no tolerances with bounds": {"ftol": None, "xtol": None, "gtol": None, "bounds": (0, 9)},
}


@pytest.mark.parametrize("name", SAME_AS_SCIPY)
def test_exception_is_scipys_or_a_subclass_of_it(name: str) -> None:
    options = SAME_AS_SCIPY[name]
    theirs = refusal(scipy.optimize.least_squares, alone, X0[0], **options)
    ours = refusal(least_squares, Decay(), X0[0], args=(T, Y[0]), **options)
    assert isinstance(ours, type(theirs)), (ours, theirs)


def test_start_of_rank_3_is_scipys_error_too() -> None:
    theirs = refusal(scipy.optimize.least_squares, alone, np.ones((2, 2, 2)))
    ours = refusal(least_squares, Decay(), np.ones((2, 2, 2)))
    assert isinstance(ours, type(theirs))


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_residuals_that_are_not_finite_are_scipys_error_too(value: float) -> None:
    # exact derivatives: SciPy's differences of infinities warn first
    theirs = refusal(scipy.optimize.least_squares, lambda x: x * value, X0[0], lambda x: np.eye(2))
    ours = refusal(least_squares, lambda x: x * value, X0[0])
    assert isinstance(ours, type(theirs))
    assert str(ours) == str(theirs)


# --------------------------------------------------------------------------------------- numbers


@pytest.mark.parametrize(
    "x0", [[2, 1], (2, 1), [2.0, 1], [np.float64(2), 1], [np.int64(2), np.int64(1)]]
)
def test_python_numbers_are_a_start(x0: Any) -> None:
    result = least_squares(Decay(), x0, args=(T, Y[0]))
    assert result.x.dtype == np.float64
    np.testing.assert_allclose(result.x, TRUE[0], rtol=1e-6)


def test_integer_data_are_fine() -> None:
    result = least_squares(lambda x, y: x - y, np.zeros((2, 2)), args=(np.array([[1, 2], [3, 4]]),))
    np.testing.assert_allclose(result.x, [[1, 2], [3, 4]], rtol=1e-9)


# ----------------------------------------------------------------------------------- empty batch


@pytest.mark.parametrize("numpy", [True, False])
@pytest.mark.parametrize("jac", [None, "forward", "reverse", "2-point", "3-point"])
@pytest.mark.parametrize("trailing", [(), (20,), (2, 5)])
@pytest.mark.parametrize("loss", ["linear", "cauchy"])
def test_empty_batch_gives_empty_results(
    numpy: bool, jac: str | None, trailing: tuple[int, ...], loss: str
) -> None:
    def fun(x: Tensor) -> Tensor:
        ones = (1,) * len(trailing)
        return x.sum(-1).reshape(-1, *ones) * torch.ones(trailing, dtype=x.dtype)

    x0: Any = np.zeros((0, 3)) if numpy else torch.zeros(0, 3, dtype=torch.float64)
    bounds = (np.zeros((0, 3)), np.ones((0, 3)))
    result = least_squares(fun, x0, jac, bounds=bounds, loss=loss)
    shapes = {
        "x": (0, 3), "cost": (0,), "fun": (0, *trailing), "jac": (0, *trailing, 3),
        "grad": (0, 3), "optimality": (0,), "active_mask": (0, 3), "nfev": (0,), "njev": (0,),
        "status": (0,), "success": (0,),
    }  # fmt: skip
    for name, shape in shapes.items():
        assert tuple(result[name].shape) == shape, name
        assert isinstance(result[name], np.ndarray if numpy else Tensor), name
    assert list(result.message) == []
    assert "0 of 0" in repr(result)


def test_empty_batch_with_everything_else() -> None:
    states: list[Any] = []
    result = least_squares(
        Decay(),
        np.zeros((0, 2)),
        lambda x, t, y: torch.zeros(len(x), 20, 2, dtype=x.dtype),
        args=(T, Y[:0]),
        x_scale=np.ones((0, 2)),
        callback=states.append,
        check_independence=True,
    )
    assert result.x.shape == (0, 2)
    assert result.jac.shape == (0, 20, 2)
    assert states == []


# ------------------------------------------------------------------------------------- NaN starts


def test_the_only_problem_starts_at_nan() -> None:
    for x0, y in ((X0[0] * [1, np.nan], Y[0]), (X0[:1] * [1, np.nan], Y[:1])):
        with pytest.raises(ValueError, match="not finite in the initial point"):
            least_squares(Decay(), x0, args=(T, y))
    theirs = refusal(scipy.optimize.least_squares, alone, X0[0] * [1, np.nan])
    assert isinstance(theirs, ValueError)


@pytest.mark.parametrize("bounds", [(-np.inf, np.inf), (0.0, 9.0)])
@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_every_problem_starts_at_nan(value: float, bounds: tuple[float, float]) -> None:
    if np.isinf(value):
        bounds = (-np.inf, np.inf)
    x0 = X0.copy()
    x0[:, 0] = value
    with pytest.raises(ValueError, match="not finite in the initial point"):
        least_squares(Decay(), x0, bounds=bounds, args=(T, Y))


@pytest.mark.parametrize("bounds", [(-np.inf, np.inf), (0.0, 9.0)])
@pytest.mark.parametrize("jac", [None, "reverse", "3-point"])
def test_one_problem_starts_at_nan(bounds: tuple[float, float], jac: str | None) -> None:
    x0 = X0.copy()
    x0[1, 0] = np.nan
    result = least_squares(Decay(), x0, jac, bounds=bounds, args=(T, Y))
    assert result.status[1] == -1
    assert not result.success[1]
    assert result.message[1] == torchimize.Status(-1).message
    np.testing.assert_array_equal(result.x[1], x0[1])
    others = [0, 2, 3]
    assert (result.status[others] > 0).all()
    np.testing.assert_allclose(result.x[others], TRUE[others], rtol=1e-6)


def test_one_problems_parameter_is_nan_but_its_residuals_are_not() -> None:
    """A start that is not a number is no start, whatever the function makes of it."""
    x0 = np.array([[1.0, 1.0], [1.0, np.nan]])
    result = least_squares(lambda x: torch.nan_to_num(x) - 2, x0)
    assert result.status[1] == -1
    assert result.status[0] > 0


# -------------------------------------------------------------------------- what the function gives


def test_nan_everywhere() -> None:
    fun = Decay()
    with pytest.raises(ValueError, match="not finite in the initial point"):
        least_squares(lambda x: fun(x) * np.nan, X0)
    # a look at the function, the choice of a derivative, and the start; no iterations
    assert fun.calls <= 10


def test_nan_beyond_the_start_is_no_error() -> None:
    """Only steps that lead there are refused."""
    result = least_squares(lambda x: torch.log(x) - 1, np.array([[0.01], [20.0]]))
    assert result.success.all()
    np.testing.assert_allclose(result.x, np.e, rtol=1e-7)


@pytest.mark.parametrize(
    ("change", "met"),
    [
        (lambda value: value[:-1], r"\(3, 20\)"),
        (lambda value: torch.cat([value, value]), r"\(8, 20\)"),
        (lambda value: value.sum(), r"\(\)"),
        (lambda value: value.T, r"\(20, 4\)"),
        (lambda value: value.sum(0), r"\(20,\)"),
    ],
)
def test_wrong_number_of_rows(change: Callable[[Tensor], Tensor], met: str) -> None:
    fun = Decay()
    with pytest.raises(ValueError, match=f"residuals of shape {met}.*\\(4, 2\\).*\\(4, ...\\)"):
        least_squares(lambda x: change(fun(x)), X0)
    assert fun.calls <= 10


def test_rows_that_change_later() -> None:
    calls = 0

    def fun(x: Tensor, y: Tensor) -> Tensor:
        nonlocal calls
        calls += 1
        value = x[:, :1] * torch.exp(-x[:, 1:] * torch.tensor(T)) - y
        return value if calls < 6 else value[:, :-1]

    with pytest.raises(ValueError, match=r"19\).*\(…, 20\)"):
        least_squares(fun, X0, lambda x, y: torch.ones(len(x), 20, 2, dtype=x.dtype), args=(Y,))


@pytest.mark.parametrize("jac", [None, "forward", "reverse", "2-point", "3-point"])
@pytest.mark.parametrize(
    ("x0", "dtype"),
    [
        (torch.tensor(X0), torch.float32),
        (torch.tensor(X0).float(), torch.float64),
        (torch.tensor(X0), torch.complex128),
        (torch.tensor(X0), torch.int64),
        (torch.tensor(X0), torch.float16),
    ],
)
def test_residuals_of_another_dtype(jac: str | None, x0: Tensor, dtype: torch.dtype) -> None:
    fun = Decay()
    names = f"residuals have dtype {dtype}.*{x0.dtype}"
    with pytest.raises(TypeError, match=names):
        least_squares(lambda x: fun(x).to(dtype), x0, jac)
    assert fun.calls <= 10


@pytest.mark.parametrize("dtype", [torch.float32, torch.complex128, torch.int64])
def test_jacobian_of_another_dtype(dtype: torch.dtype) -> None:
    names = f"Jacobian.*dtype {dtype}.*float64"
    with pytest.raises(TypeError, match=names):
        least_squares(Decay(), X0, lambda x: torch.ones(len(x), 20, 2).to(dtype))


@pytest.mark.parametrize(
    ("shape", "met"),
    [
        (lambda b: (b, 2, 20), r"2, 20\)"),
        (lambda b: (b, 20, 3), r"20, 3\)"),
        (lambda b: (b, 20), r"\d, 20\)"),
        (lambda b: (20, 2), r"\(20, 2\)"),
        (lambda b: (b + 1, 20, 2), r"20, 2\)"),
        (lambda b: (b, 20, 2, 1), r"20, 2, 1\)"),
    ],
)
def test_jacobian_of_wrong_shape(shape: Callable[[int], tuple[int, ...]], met: str) -> None:
    with pytest.raises(ValueError, match=f"Jacobian has shape .*{met}; wanted .*20, 2\\)"):
        least_squares(Decay(), X0, lambda x: torch.ones(shape(len(x)), dtype=x.dtype))


def test_jacobian_of_wrong_shape_for_one_problem() -> None:
    with pytest.raises(ValueError, match=r"\(2, 20\); wanted \(20, 2\)"):
        least_squares(
            Decay(), X0[0], lambda x, t, y: torch.ones(2, 20, dtype=x.dtype), args=(T, Y[0])
        )


def test_residuals_on_another_device() -> None:
    fun = Decay()
    with pytest.raises(ValueError, match=r"residuals are on meta.*parameters on cpu"):
        least_squares(lambda x: fun(x).to("meta"), X0)
    assert fun.calls <= 10


def test_jacobian_on_another_device() -> None:
    with pytest.raises(ValueError, match=r"Jacobian.* on meta.*parameters on cpu"):
        least_squares(
            Decay(), X0, lambda x: torch.ones(len(x), 20, 2, dtype=x.dtype, device="meta")
        )


def test_bounds_on_another_device() -> None:
    fun = Decay()
    upper = torch.ones(2, dtype=torch.float64, device="meta")
    with pytest.raises(ValueError, match=r"upper bounds are on meta.*parameters on cpu"):
        least_squares(fun, X0, bounds=(0.0, upper))
    assert fun.calls == 0


def test_x_scale_on_another_device() -> None:
    fun = Decay()
    size = torch.ones(2, dtype=torch.float64, device="meta")
    with pytest.raises(ValueError, match=r"x_scale.*on meta.*cpu"):
        least_squares(fun, X0, x_scale=size)
    assert fun.calls == 0


@pytest.mark.parametrize(
    ("loss", "met"),
    [
        (lambda z: z, r"\(\d+,\)"),
        (lambda z: torch.stack([z, z]), r"\(2, \d+\)"),
        (lambda z: torch.ones(3, len(z) + 1), r"\(3, \d+\)"),
        (lambda z: torch.stack([z, z, z], 1), r"\(\d+, 3\)"),
        (lambda z: torch.tensor(1.0), r"\(\)"),
    ],
)
def test_loss_of_wrong_shape(loss: Callable[[Tensor], Tensor], met: str) -> None:
    fun = Decay()
    with pytest.raises(ValueError, match=rf"loss.*shape {met}.*wanted \(3, \d+\)"):
        least_squares(fun, torch.tensor(X0), loss=loss)
    assert fun.calls <= 10


def test_an_error_in_the_function_is_the_users() -> None:
    def broken(x: Tensor) -> Tensor:
        raise ZeroDivisionError("mine")

    with pytest.raises(ZeroDivisionError, match="mine"):
        least_squares(broken, X0)


def test_a_function_that_is_none() -> None:
    with pytest.raises(TypeError):
        least_squares(None, X0)  # type: ignore[arg-type]


def test_arguments_that_do_not_fit_the_function() -> None:
    with pytest.raises(TypeError, match="argument"):
        least_squares(lambda x: x, X0, args=(T,))


def test_nothing_is_changed_by_a_refused_call() -> None:
    x0, y = torch.tensor(X0), torch.tensor(Y)
    for options in ({"method": "bfgs"}, {"jac": "central"}, {"bounds": (9.0, 0.0)}):
        refusal(least_squares, Decay(), x0, args=(T, y), **options)
    refusal(least_squares, lambda x, y: x.sum(), x0, args=(y,))
    assert torch.equal(x0, torch.tensor(X0))
    assert torch.equal(y, torch.tensor(Y))
