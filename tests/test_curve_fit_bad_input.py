"""Bad input to ``curve_fit``: one clear error each, that says what was met and what was wanted."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import scipy.optimize
import scipy.special
import torch

from torchimize import FitWarning, Status, curve_fit

B, N, P = 4, 10, 3
X = np.linspace(0.1, 3, N)
Y = np.random.default_rng(0).normal(size=(B, N)) * 0.05 + 2 * np.exp(-0.7 * X) + 1
P0 = [1.0, 1.0, 0.5]


def decay(x: Any, a: Any, k: Any, c: Any) -> Any:
    return a * torch.exp(-k * x) + c


def line(x: Any, a: Any, b: Any) -> Any:
    return a + b * x


def refused(**changes: Any) -> None:
    """Call with one thing wrong."""
    arguments: dict[str, Any] = {"f": decay, "xdata": X, "ydata": Y, "p0": P0, **changes}
    curve_fit(**arguments)


def test_the_good_call_itself() -> None:
    """What every other test changes one argument of."""
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        refused()


# --------------------------------------------------------------------------------------- shapes


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"sigma": np.ones(N - 1)}, r"`sigma` has shape \(9,\).*\(10,\).*\(4, 10\)"),
        ({"sigma": np.ones((B, N + 1))}, r"`sigma` has shape \(4, 11\).*\(4, 10\)"),
        ({"sigma": np.ones((B + 1, N))}, r"`sigma` has shape \(5, 10\)"),
        ({"sigma": np.ones((N, N, 1))}, r"`sigma` has shape \(10, 10, 1\)"),
        ({"sigma": np.ones((B + 1, N, N))}, r"`sigma` has shape \(5, 10, 10\).*\(4, 10, 10\)"),
        ({"sigma": np.ones((B, N, N, 1))}, r"`sigma` has shape"),
        ({"xdata": X[:-1]}, r"`xdata` has shape \(9,\), `ydata` \(4, 10\).*\(10,\)"),
        ({"xdata": np.ones((B, N + 1))}, r"`xdata` has shape \(4, 11\)"),
        ({"xdata": np.ones((B + 1, 2, N))}, r"`xdata` has shape \(5, 2, 10\).*\(4, k, 10\)"),
        ({"xdata": np.ones((1, B, 2, N))}, r"`xdata` has shape \(1, 4, 2, 10\)"),
        ({"p0": np.ones((B + 1, P))}, r"`p0` has shape \(5, 3\).*\(3,\).*\(4, 3\)"),
        ({"p0": np.ones((1, P))}, r"`p0` has shape \(1, 3\)"),
        ({"p0": np.ones((B, 1, P))}, r"`p0` has shape \(4, 1, 3\)"),
        ({"p0": []}, r"`p0` has shape \(0,\).*at least one"),
        ({"bounds": (np.zeros(P + 1), np.ones(P + 1))}, r"bounds have shape \(4,\).*\(3,\)"),
        ({"bounds": (np.zeros((B + 1, P)), 9.0)}, r"bounds have shape \(5, 3\).*\(4, 3\)"),
        ({"bounds": (np.zeros(P + 1), np.ones(P + 1)), "p0": None}, r"`?bounds`? have shape.*3"),
        ({"bounds": (0,)}, "`bounds` must contain 2 elements"),
        ({"bounds": (0, 1, 2)}, "`bounds` must contain 2 elements"),
        ({"x_scale": np.ones(P + 1)}, "`x_scale`"),
        ({"ydata": 3.0}, r"`ydata` has shape \(\)"),
    ],
)
def test_wrong_shape(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        refused(**changes)


@pytest.mark.parametrize("single", [True, False])
def test_no_samples(single: bool) -> None:
    y = np.empty(0) if single else np.empty((B, 0))
    with pytest.raises(ValueError, match=r"`ydata` has shape \((4, 0|0,)\).*N ≥ 1"):
        curve_fit(decay, np.empty(0), y, P0)
    with pytest.raises(ValueError, match="`ydata` must not be empty"):
        scipy.optimize.curve_fit(decay, np.empty(0), np.empty(0), P0)


@pytest.mark.parametrize("batch", [(0,), (3, 0), (0, 2)])
@pytest.mark.parametrize("p0", [P0, None, "each"])
@pytest.mark.parametrize(
    "options",
    [
        {},
        {"jac": "2-point"},
        {"jac": "reverse"},
        {"sigma": 0.1},
        {"sigma": np.eye(N)},
        {"bounds": (0, 9)},
        {"loss": "huber"},
        {"likelihood": "poisson"},
        {"nan_policy": "omit"},
        {"absolute_sigma": True, "sigma": np.full(N, 0.1)},
    ],
)
def test_empty_batch(batch: tuple[int, ...], p0: Any, options: dict[str, Any]) -> None:
    p0 = np.ones((*batch, P)) if isinstance(p0, str) else p0
    popt, pcov, result = curve_fit(decay, X, np.empty((*batch, N)), p0, full_output=True, **options)
    assert popt.shape == (*batch, P)
    assert pcov.shape == (*batch, P, P)
    for name in ("status", "success", "nfev", "cost", "chi_square", "aic", "r_squared"):
        assert result[name].shape == batch, name
    assert result.stderr.shape == (*batch, P)
    assert np.prod(result.message.shape) == 0
    assert curve_fit(decay, X, np.empty((*batch, N)), p0, **options)[0].shape == (*batch, P)


def test_empty_batch_of_tensors() -> None:
    popt, pcov = curve_fit(decay, X, torch.empty(0, N), P0)
    assert isinstance(popt, torch.Tensor)
    assert popt.shape == (0, P)
    assert popt.dtype == pcov.dtype == torch.float32


@pytest.mark.parametrize(
    ("model", "met"),
    [
        (lambda x, a, k, c: (a * x)[..., :-1], r"\(4, 9\)"),
        (lambda x, a, k, c: (a * x).mT, r"\(10, 4\)"),
        (lambda x, a, k, c: torch.cat([a * x, a * x], -1), r"\(4, 20\)"),
        (lambda x, a, k, c: torch.stack([a * x, a * x]), r"\(2, 4, 10\)"),
    ],
)
def test_model_of_the_wrong_shape(model: Callable[..., Any], met: str) -> None:
    with pytest.raises(ValueError, match=rf"the model returned shape {met}.*wanted \(4, 10\)"):
        refused(f=model)


def test_model_of_the_wrong_shape_for_one_problem() -> None:
    with pytest.raises(ValueError, match=r"the model returned shape .*9.*wanted \(1, 10\)"):
        refused(f=lambda x, a, k, c: (a * x)[..., :-1], ydata=Y[0])


@pytest.mark.parametrize("value", [None, "text", {}])
def test_model_that_returns_no_numbers(value: Any) -> None:
    with pytest.raises((TypeError, ValueError), match="model"):
        refused(f=lambda x, a, k, c: value)


def test_model_of_complex_values() -> None:
    for model in (
        lambda x, a, k, c: a * torch.exp(1j * k * x) + c,
        lambda x, a, k, c: a * np.exp(1j * k * x) + c,
    ):
        with pytest.raises(TypeError, match="complex"):
            refused(f=model)


def test_models_own_error_comes_through() -> None:
    def model(x: Any, a: Any, k: Any, c: Any) -> Any:
        raise ZeroDivisionError("mine")

    with pytest.raises(ZeroDivisionError, match="mine"):
        refused(f=model)


@pytest.mark.parametrize(
    "jac",
    [
        lambda x, a, k, c: torch.ones(B, N, P + 1, dtype=torch.float64),
        lambda x, a, k, c: torch.ones(B, P, N, dtype=torch.float64),
        lambda x, a, k, c: torch.ones(N, P - 1, dtype=torch.float64),
    ],
)
def test_jacobian_of_the_wrong_shape(jac: Callable[..., Any]) -> None:
    with pytest.raises(ValueError, match=r"the Jacobian has shape .*wanted \(\d+, 10, 3\)"):
        refused(jac=jac)


# --------------------------------------------------------------------------------------- values


@pytest.mark.parametrize("value", [0.0, -1.0, np.nan])
@pytest.mark.parametrize("kind", ["a number", "shared", "per problem"])
def test_sigma_that_is_not_positive(value: float, kind: str) -> None:
    sigma: Any = value
    if kind != "a number":
        sigma = np.ones(N if kind == "shared" else (B, N))
        sigma[..., 3] = value
    with pytest.raises(ValueError, match=r"`sigma` must be positive"):
        refused(sigma=sigma)


def test_covariance_that_is_not_positive_definite() -> None:
    message = "`sigma` must be symmetric positive definite"
    bad = np.eye(N)
    bad[0, 1] = bad[1, 0] = 2
    with pytest.raises(ValueError, match=message):
        refused(sigma=bad)
    with pytest.raises(ValueError, match="must be positive definite"):
        scipy.optimize.curve_fit(lambda x, a: a * x, X, Y[0], [1.0], sigma=bad)
    each = np.tile(np.eye(N), (B, 1, 1))
    each[2] = bad
    with pytest.raises(ValueError, match=message):
        refused(sigma=each)
    with pytest.raises(ValueError, match=message):
        refused(sigma=np.full((N, N), np.nan))
    with pytest.raises(ValueError, match=message):
        refused(sigma=np.zeros((N, N)))


@pytest.mark.parametrize("name", ["xdata", "ydata", "sigma"])
def test_complex_data(name: str) -> None:
    value = {"xdata": X, "ydata": Y, "sigma": np.ones(N)}[name]
    with pytest.raises(TypeError, match=f"`{name}` is complex; wanted real"):
        refused(**{name: value + 1j})


def test_complex_start() -> None:
    with pytest.raises(TypeError, match=r"`p0` has dtype torch.complex128; wanted a real"):
        refused(p0=np.array(P0) + 0j)
    with pytest.raises(TypeError, match="`p0` has dtype"):
        refused(p0=[1.0, 1j, 0.0])


@pytest.mark.parametrize(
    "p0",
    [
        np.ones(P, int),
        torch.ones(P, dtype=torch.int64),
        np.ones((B, P), np.int32),
        np.ones(P, bool),
    ],
)
def test_integer_start(p0: Any) -> None:
    with pytest.raises(TypeError, match=r"`p0` has dtype .*; wanted a real floating type"):
        refused(p0=p0)


@pytest.mark.parametrize("p0", ["text", {"a": 1.0}, [[1.0, 2.0], [3.0]], object()])
def test_start_that_is_no_array(p0: Any) -> None:
    with pytest.raises(TypeError, match="`p0`"):
        refused(p0=p0)


@pytest.mark.parametrize("y", ["text", None, object(), [["a", "b"]]])
def test_data_that_are_no_numbers(y: Any) -> None:
    with pytest.raises(TypeError, match="`ydata` is"):
        refused(ydata=y)


@pytest.mark.parametrize(
    ("bounds", "message"),
    [
        ((2.0, 1.0), "lower bound"),
        (([0, 0, 2], [9, 9, 1]), "lower bound"),
        ((np.nan, 9.0), "NaN"),
        ((0, [9, 9, 0.25]), r"infeasible: parameter 2 of problem 0 starts at 0.5.*\[0, 0.25\]"),
        (
            (np.where(np.arange(B * P) == 4, 3.0, 0.0).reshape(B, P), 9.0),
            "infeasible: parameter 1 of problem 1 starts at 1",
        ),
    ],
)
def test_bounds_that_leave_no_room(bounds: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        refused(bounds=bounds)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"likelihood": "binomial"}, "unknown `likelihood` 'binomial'.*'gaussian'.*'poisson'"),
        ({"nan_policy": "propagate"}, "unknown `nan_policy` 'propagate'.*'omit'.*'raise'"),
        ({"method": "simplex"}, "unknown `method` 'simplex'.*'lm'"),
        ({"loss": "hubert"}, "unknown `loss` 'hubert'.*'huber'"),
        ({"jac": "4-point"}, "unknown `jac` '4-point'.*'3-point'"),
        ({"x_scale": "auto"}, "unknown `x_scale` 'auto'"),
        ({"x_scale": [1.0, 0.0, 1.0]}, "`x_scale`.*positive"),
        ({"x_scale": -1.0}, "`x_scale`.*positive"),
        ({"f_scale": 0.0}, "`f_scale` is 0.*positive"),
        ({"f_scale": -1.0}, "`f_scale` is -1.*positive"),
        ({"f_scale": np.nan}, "`f_scale` is nan"),
        ({"ftol": -1e-8}, "`ftol` is -1e-08; wanted a number ≥ 0"),
        ({"xtol": np.nan}, "`xtol` is nan"),
        ({"gtol": -1.0}, "`gtol` is -1"),
        ({"ftol": None, "xtol": None, "gtol": None}, "at least one of `ftol`"),
        ({"max_nfev": 0}, "`max_nfev` is 0; wanted a whole number ≥ 1"),
        ({"max_nfev": 2.5}, "`max_nfev` is 2.5"),
    ],
)
def test_words_and_numbers_that_mean_nothing(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        refused(**changes)


def test_loss_of_the_wrong_shape() -> None:
    with pytest.raises(ValueError, match=r"`loss` has shape \(2, .*wanted \(3, "):
        refused(loss=lambda z: np.stack([z, np.ones_like(z)]))


# -------------------------------------------------------------------------------------- Poisson


def test_poisson_wants_counts() -> None:
    counts = np.round(np.abs(Y) * 10)
    refused(ydata=counts, likelihood="poisson", p0=[20.0, 1.0, 5.0])
    counts[1, 2] = -1
    with pytest.raises(ValueError, match=r"`ydata` holds negative values.*counts ≥ 0"):
        refused(ydata=counts, likelihood="poisson", p0=[20.0, 1.0, 5.0])


@pytest.mark.parametrize(
    "changes", [{"sigma": 1.0}, {"sigma": np.ones(N)}, {"sigma": np.eye(N)}, {"loss": "huber"}]
)
def test_poisson_knows_its_scatter(changes: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match="it takes no `sigma` and no `loss`"):
        refused(ydata=np.ones((B, N)), likelihood="poisson", **changes)


def test_poisson_start_that_expects_negative_counts() -> None:
    """One problem cannot begin, the others can; where none can it is an error."""
    counts = np.round(np.abs(Y) * 10)
    start = np.tile([20.0, 1.0, 5.0], (B, 1))
    start[2] = [-20.0, 1.0, 0.0]
    popt, _, result = curve_fit(decay, X, counts, start, likelihood="poisson", full_output=True)
    assert (result.status == Status.NON_FINITE_START).tolist() == [False, False, True, False]
    assert popt[2].tolist() == [-20.0, 1.0, 0.0]
    with pytest.raises(ValueError, match="not finite in the initial point"):
        refused(ydata=counts, likelihood="poisson", p0=[-20.0, 1.0, 0.0])


# -------------------------------------------------------------------------------- NaN and inf


def damaged(name: str, value: float = np.nan) -> dict[str, Any]:
    data = {"xdata": X.copy(), "ydata": Y.copy()}
    data[name][..., 4] = value
    return data


@pytest.mark.parametrize("name", ["xdata", "ydata"])
def test_nan_policy_raise(name: str) -> None:
    with pytest.raises(ValueError, match=r"contain NaN.*'omit'"):
        refused(nan_policy="raise", **damaged(name))
    with pytest.raises(ValueError, match="contains nan values"):
        scipy.optimize.curve_fit(
            lambda x, a: a * x,
            damaged(name)["xdata"],
            damaged(name)["ydata"][0],
            [1.0],
            nan_policy="raise",
        )
    refused(nan_policy="raise")


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("name", ["xdata", "ydata"])
def test_check_finite(name: str, value: float) -> None:
    with pytest.raises(ValueError, match="must not contain infs or NaNs"):
        refused(check_finite=True, **damaged(name, value))
    refused(check_finite=True)


def test_check_finite_looks_at_every_problem_and_variable() -> None:
    y = Y.copy()
    y[3, 9] = np.inf
    with pytest.raises(ValueError, match="must not contain infs or NaNs"):
        refused(check_finite=True, ydata=y)
    x = np.stack([np.tile(X, (B, 1)), np.tile(X, (B, 1))], 1)
    x[2, 1, 3] = np.nan
    with pytest.raises(ValueError, match="must not contain infs or NaNs"):
        refused(check_finite=True, xdata=x, f=lambda x, a, k, c: decay(x[0] + 0 * x[1], a, k, c))


def test_all_problems_damaged_is_an_error() -> None:
    with pytest.raises(ValueError, match="not finite in the initial point"):
        refused(**damaged("ydata"))
    with pytest.raises(ValueError, match="not finite in the initial point"):
        refused(ydata=damaged("ydata")["ydata"][0])
    with pytest.raises(ValueError, match="not finite in the initial point"):
        refused(p0=[np.nan, 1.0, 0.0])
    with pytest.raises(ValueError, match="not finite in the initial point"):
        refused(f=lambda x, a, k, c: a * x * torch.nan)


def test_start_of_nan_in_one_problem() -> None:
    start = np.tile(P0, (B, 1))
    start[1, 0] = np.nan
    popt, _, result = curve_fit(decay, X, Y, start, full_output=True)
    assert result.success.tolist() == [True, False, True, True]
    assert result.status[1] == Status.NON_FINITE_START
    assert np.isfinite(popt[[0, 2, 3]]).all()


# -------------------------------------------------------------------------------------- devices


@pytest.mark.parametrize("name", ["xdata", "ydata", "p0", "sigma", "lower"])
def test_tensors_on_two_devices(name: str) -> None:
    values: dict[str, Any] = {
        "xdata": torch.tensor(X),
        "ydata": torch.tensor(Y),
        "p0": torch.tensor(P0),
        "sigma": torch.ones(N),
        "lower": torch.zeros(P),
    }
    values[name] = values[name].to("meta")
    lower = values.pop("lower")
    with pytest.raises(ValueError, match=r"is on |are on ") as raised:
        refused(**values, bounds=(lower, 9.0))
    assert "meta" in str(raised.value)
    assert "cpu" in str(raised.value)


# ---------------------------------------------------------------------------- not converged


def test_one_problem_not_converged() -> None:
    with pytest.raises(RuntimeError, match="Optimal parameters not found: The maximum number"):
        refused(ydata=Y[0], max_nfev=1)
    with pytest.raises(RuntimeError, match="Optimal parameters not found: The maximum number"):
        scipy.optimize.curve_fit(
            lambda x, a, k, c: a * np.exp(-k * x) + c, X, Y[0], P0, method="trf", max_nfev=1
        )


def test_some_problems_of_a_batch_not_converged() -> None:
    with pytest.warns(
        FitWarning, match=r"^4 of 4 fits did not converge .*maximum number"
    ) as record:
        popt, pcov = curve_fit(decay, X, Y, P0, max_nfev=1)
    assert len(record) == 1
    assert record[0].filename == __file__, "the warning points at the caller"
    assert popt.shape == (B, P)
    assert pcov.shape == (B, P, P)
    y = Y.copy()
    y[2, 0] = np.nan
    with pytest.warns(FitWarning, match=r"^1 of 4 fits did not converge .*initial point"):
        curve_fit(decay, X, y, P0)


def test_full_output_neither_raises_nor_warns() -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        single = curve_fit(decay, X, Y[0], P0, max_nfev=1, full_output=True)[2]
        batch = curve_fit(decay, X, Y, P0, max_nfev=1, full_output=True)[2]
    assert single.status == Status.MAX_NFEV
    assert single.success is False
    assert single.nfev == 1
    assert "maximum number of function evaluations" in single.message
    assert batch.status.tolist() == [0] * B
    assert (batch.nfev == 1).all()


# ------------------------------------------------------------------------------- NumPy's words


@pytest.mark.parametrize(
    ("model", "name"),
    [
        (lambda x, a, k, c: a * np.unwrap(k * x) + c, "numpy.unwrap"),
        (lambda x, a, k, c: a * scipy.special.mathieu_a(k, x) + c, "scipy.special.mathieu_a"),
        (lambda x, a, k, c: a * np.exp(-k * x) + np.linalg.svd(c * x)[1], "numpy.linalg.svd"),
    ],
)
def test_numpy_function_without_counterpart_is_named(model: Callable[..., Any], name: str) -> None:
    with pytest.raises(TypeError, match=rf"{name}\b.*no counterpart in torch"):
        refused(f=model)


def test_number_of_parameters_unknown() -> None:
    for model in (lambda x, *p: x, lambda x: x):
        with pytest.raises(ValueError, match="Unable to determine number of fit parameters"):
            refused(f=model, p0=None)


def test_wrong_number_of_parameters_names_the_models_complaint() -> None:
    with pytest.raises(TypeError, match="positional argument"):
        refused(p0=[1.0, 1.0])
    with pytest.raises(TypeError, match="positional argument"):
        scipy.optimize.curve_fit(decay, X, Y[0], [1.0, 1.0])


def test_nothing_is_computed_before_the_input_is_judged() -> None:
    calls: list[int] = []

    def model(x: Any, a: Any, k: Any, c: Any) -> Any:
        calls.append(1)
        return decay(x, a, k, c)

    wrong: list[dict[str, Any]] = [
        {"sigma": np.zeros(N)},
        {"sigma": np.ones(N + 1)},
        {"p0": np.ones((B + 1, P))},
        {"bounds": (2.0, 1.0)},
        {"loss": "none"},
        {"likelihood": "none"},
        {"f_scale": 0},
        {"nan_policy": "none"},
        {"ftol": -1.0},
        {"max_nfev": 0},
        {"x_scale": "none"},
        {"method": "none"},
        {"jac": "none"},
        {"xdata": X[:-1]},
    ]
    for changes in wrong:
        with pytest.raises(ValueError):
            refused(f=model, **changes)
        assert not calls, changes
