"""Laws of ``least_squares`` that hold for every problem, tried on what hypothesis draws."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import hypothesis.strategies as st
import numpy as np
import pytest
import torch
from hypothesis import Phase, assume, given, settings
from numpy.typing import NDArray
from torch import Tensor

import torchimize
from torchimize import least_squares

Array = NDArray[np.float64]

# Derandomised, so that a run on another day finds what this one found.
lawful = settings(
    max_examples=25,
    deadline=None,
    derandomize=True,
    database=None,
    phases=(Phase.generate, Phase.shrink),
)

TIGHT = {"ftol": 1e-14, "xtol": 1e-14, "gtol": 1e-14}


@dataclass(frozen=True)
class Batch:
    """Noisy decays ``a exp(−b t) + c`` with their starts."""

    t: Tensor
    y: Tensor
    start: Tensor

    def solve(self, rows: Any = slice(None), **options: Any) -> torchimize.Result:
        return least_squares(
            offset_decay, self.start[rows], args=(self.t, self.y[rows]), **(TIGHT | options)
        )


def offset_decay(x: Tensor, t: Tensor, y: Tensor) -> Tensor:
    return x[:, :1] * torch.exp(-x[:, 1:2] * t) + x[:, 2:3] - y


@st.composite
def batches(
    draw: st.DrawFn, least: int = 1, most: int = 9, noises: tuple[float, ...] = (1e-3, 1e-2, 5e-2)
) -> Batch:
    num_problems = draw(st.integers(least, most))
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    noise = draw(st.sampled_from(noises))
    t = np.linspace(0, 5, draw(st.integers(8, 30)))
    true = rng.uniform([1.0, 0.4, -1.0], [4.0, 1.5, 1.0], (num_problems, 3))
    y = true[:, :1] * np.exp(-true[:, 1:2] * t) + true[:, 2:]
    y += noise * rng.standard_normal(y.shape)
    start = true * rng.uniform(0.7, 1.4, true.shape)
    return Batch(torch.tensor(t), torch.tensor(y), torch.tensor(start))


LOSSES = st.sampled_from(["linear", "soft_l1", "cauchy"])


def standard_errors(result: torchimize.Result) -> Tensor:
    """(B, P); what data with this scatter can say."""
    jacobian = result.jac
    samples, params = jacobian.shape[-2:]
    covariance = torch.linalg.inv(jacobian.mT @ jacobian)
    variance = 2 * result.cost / (samples - params)
    return (covariance.diagonal(dim1=-2, dim2=-1) * variance[:, None]).sqrt()


def assert_same_fits(met: torchimize.Result, wanted: torchimize.Result) -> None:
    """Equal to what costs that agree to eps allow: some √eps of a standard error."""
    torch.testing.assert_close(met.cost, wanted.cost, rtol=1e-11, atol=0)
    allowed = 2e-6 * standard_errors(wanted) + 1e-13 * wanted.x.abs()
    assert bool(((met.x - wanted.x).abs() <= allowed).all())
    assert torch.equal(met.success, wanted.success)


# ------------------------------------------------------------------------- problems do not mix


@lawful
@given(batches(least=2), LOSSES, st.randoms(use_true_random=False))
def test_permuting_the_batch_permutes_the_result(batch: Batch, loss: str, random: Any) -> None:
    order = list(range(len(batch.y)))
    random.shuffle(order)
    plain = batch.solve(loss=loss, f_scale=0.25)
    permuted = batch.solve(order, loss=loss, f_scale=0.25)
    inverse = torch.argsort(torch.tensor(order))
    assert permuted.x.shape == plain.x.shape
    torch.testing.assert_close(permuted.x[inverse], plain.x, rtol=1e-6, atol=1e-8)
    torch.testing.assert_close(permuted.cost[inverse], plain.cost, rtol=1e-11, atol=0)
    assert bool(plain.success.all())
    assert bool(permuted.success.all())


@lawful
@given(batches(least=2, most=4), LOSSES)
def test_solving_alone_equals_solving_in_the_batch(batch: Batch, loss: str) -> None:
    together = batch.solve(loss=loss, f_scale=0.25)
    for row in range(len(batch.y)):
        alone = batch.solve(slice(row, row + 1), loss=loss, f_scale=0.25)
        torch.testing.assert_close(alone.x[0], together.x[row], rtol=1e-6, atol=1e-8)
        torch.testing.assert_close(alone.cost[0], together.cost[row], rtol=1e-11, atol=0)
        assert int(alone.status[0]) > 0

        def fun(x: Tensor, row: int = row) -> Tensor:
            return offset_decay(x[None], batch.t, batch.y[row])[0]

        single = least_squares(fun, batch.start[row], loss=loss, f_scale=0.25, **TIGHT)
        torch.testing.assert_close(single.x, together.x[row], rtol=1e-6, atol=1e-8)


@lawful
@given(batches(least=1, most=5), st.integers(2, 4))
def test_a_duplicated_batch_gives_duplicated_results(batch: Batch, copies: int) -> None:
    plain = batch.solve()
    rows = torch.arange(len(batch.y)).repeat(copies)
    repeated = batch.solve(rows)
    for part in repeated.x.chunk(copies):
        torch.testing.assert_close(part, plain.x, rtol=1e-6, atol=1e-8)
    for part in repeated.cost.chunk(copies):
        torch.testing.assert_close(part, plain.cost, rtol=1e-11, atol=0)


@lawful
@given(batches(least=3), st.sampled_from([np.nan, np.inf, 1e200]), st.data())
def test_a_damaged_problem_changes_nobody(batch: Batch, damage: float, data: st.DataObject) -> None:
    row = data.draw(st.integers(0, len(batch.y) - 1))
    y = batch.y.clone()
    y[row, 0] = damage
    plain = batch.solve()
    damaged = Batch(batch.t, y, batch.start).solve()
    others = torch.arange(len(y)) != row
    torch.testing.assert_close(damaged.x[others], plain.x[others], rtol=1e-6, atol=1e-8)
    torch.testing.assert_close(damaged.cost[others], plain.cost[others], rtol=1e-11, atol=0)
    assert torch.equal(damaged.success[others], plain.success[others])
    # 1e200 is finite, its square is not
    assert int(damaged.status[row]) == -1


@lawful
@given(batches())
def test_the_same_call_gives_the_same_bits(batch: Batch) -> None:
    first, second = batch.solve(), batch.solve()
    for name in ("x", "cost", "nfev", "njev", "status", "fun", "jac", "grad"):
        assert torch.equal(first[name], second[name]), name


# ------------------------------------------------------------------------------------- scaling


@lawful
@given(
    batches(),
    st.integers(-30, 30),
    st.sampled_from([None, "lm", "gn"]),
    st.booleans(),
)
def test_scaling_residuals_by_a_power_of_two_changes_no_bit(
    batch: Batch, exponent: int, method: str | None, bounded: bool
) -> None:
    factor = 2.0**exponent

    def scaled(x: Tensor, t: Tensor, y: Tensor) -> Tensor:
        return factor * offset_decay(x, t, y)

    # a factor within the function makes another kernel, which rounds otherwise
    options: dict[str, Any] = {"method": method, "max_nfev": 200, "engine": "eager"}
    if bounded and method is None:
        # active wherever the decay is faster than that
        options["bounds"] = (-np.inf, torch.tensor([np.inf, 1.0, np.inf]).double())
        batch = Batch(batch.t, batch.y, batch.start.clamp(max=0.999))
    plain = batch.solve(**options)
    result = least_squares(scaled, batch.start, args=(batch.t, batch.y), **(TIGHT | options))
    assert torch.equal(result.x, plain.x)
    assert torch.equal(result.cost, factor**2 * plain.cost)
    assert torch.equal(result.nfev, plain.nfev)
    assert torch.equal(result.status, plain.status)


@lawful
@given(batches(), st.integers(-30, 30), st.sampled_from(["soft_l1", "huber", "cauchy", "arctan"]))
def test_scaling_residuals_and_f_scale_changes_no_bit(
    batch: Batch, exponent: int, loss: str
) -> None:
    factor = 2.0**exponent

    def scaled(x: Tensor, t: Tensor, y: Tensor) -> Tensor:
        return factor * offset_decay(x, t, y)

    plain = batch.solve(loss=loss, f_scale=0.25)
    result = least_squares(
        scaled,
        batch.start,
        args=(batch.t, batch.y),
        loss=loss,
        f_scale=0.25 * factor,
        **TIGHT,
    )
    assert torch.equal(result.x, plain.x)
    assert torch.equal(result.cost, factor**2 * plain.cost)
    assert torch.equal(result.nfev, plain.nfev)


@lawful
@given(batches(), st.tuples(*3 * [st.integers(-30, 30)]), LOSSES, st.booleans())
def test_rescaling_parameters_by_powers_of_two_rescales_the_solution(
    batch: Batch, exponents: tuple[int, int, int], loss: str, bounded: bool
) -> None:
    """The default method scales by columns, so units do not matter; powers of two round nothing."""
    units = 2.0 ** torch.tensor(exponents, dtype=torch.float64)
    upper = torch.tensor([np.inf, 1.0, np.inf]).double()
    start = batch.start.clamp(max=0.999) if bounded else batch.start
    bounds = upper if bounded else torch.tensor(np.inf).double()

    def rescaled(x: Tensor, t: Tensor, y: Tensor) -> Tensor:
        return offset_decay(x / units, t, y)

    options: dict[str, Any] = {"loss": loss, "f_scale": 0.25, **TIGHT}
    args = (batch.t, batch.y)
    plain = least_squares(offset_decay, start, bounds=(-np.inf, bounds), args=args, **options)
    result = least_squares(
        rescaled, units * start, bounds=(-np.inf, bounds * units), args=args, **options
    )
    assert torch.equal(result.nfev, plain.nfev)
    torch.testing.assert_close(result.x / units, plain.x, rtol=1e-14, atol=0)
    torch.testing.assert_close(result.cost, plain.cost, rtol=1e-14, atol=0)


@lawful
@given(batches(), st.floats(1e-6, 1e6), st.floats(1e-6, 1e6))
def test_units_of_data_and_parameters_change_nothing(
    batch: Batch, amplitude: float, time: float
) -> None:
    """Volts or microvolts, seconds or years: the same fit, by the default tolerances too."""
    units = torch.tensor([amplitude, 1 / time, amplitude], dtype=torch.float64)
    plain = batch.solve()
    result = least_squares(
        offset_decay,
        batch.start * units,
        args=(batch.t * time, batch.y * amplitude),
        **TIGHT,
    )
    assert bool(result.success.all())
    torch.testing.assert_close(result.cost / amplitude**2, plain.cost, rtol=1e-10, atol=0)
    torch.testing.assert_close(result.x / units, plain.x, rtol=1e-6, atol=1e-8)


@lawful
@given(batches(), LOSSES)
def test_reversing_the_samples_is_only_rounding(batch: Batch, loss: str) -> None:
    plain = batch.solve(loss=loss, f_scale=0.1)
    backwards = Batch(batch.t.flip(0), batch.y.flip(1), batch.start)
    result = backwards.solve(loss=loss, f_scale=0.1)
    assert_same_fits(result, plain)
    torch.testing.assert_close(result.fun.flip(1), plain.fun, rtol=0, atol=1e-7)


@lawful
@given(batches(), st.integers(2, 5))
def test_repeating_the_data_multiplies_the_cost(batch: Batch, times: int) -> None:
    plain = batch.solve()
    result = Batch(batch.t.repeat(times), batch.y.repeat(1, times), batch.start).solve()
    torch.testing.assert_close(result.cost, times * plain.cost, rtol=1e-11, atol=0)
    torch.testing.assert_close(result.x, plain.x, rtol=1e-6, atol=1e-8)


# ----------------------------------------------------------------------------- boxes, fixed ones


@lawful
@given(
    # little noise, so that √eps of a standard error is small beside 1e-8 of a parameter
    batches(noises=(1e-3,)),
    st.lists(st.booleans(), min_size=3, max_size=3).filter(lambda f: 0 < sum(f) < 3),
    LOSSES,
)
def test_a_fixed_parameter_is_a_smaller_problem(batch: Batch, fixed: list[bool], loss: str) -> None:
    hold = torch.tensor(fixed)
    # held at a value that fits, or the rest of the fit would be all misfit and no noise
    near = least_squares(offset_decay, batch.start, args=(batch.t, batch.y)).x
    start = torch.where(hold, near, batch.start)
    bounds = (torch.where(hold, start, -torch.inf), torch.where(hold, start, torch.inf))

    def smaller(x: Tensor, t: Tensor, y: Tensor, held: Tensor) -> Tensor:
        columns, free = [], iter(x.unbind(1))
        for j, is_fixed in enumerate(fixed):
            columns.append(held[:, j] if is_fixed else next(free))
        return offset_decay(torch.stack(columns, 1), t, y)

    for tolerances in ({}, TIGHT):
        options: dict[str, Any] = {"loss": loss, "f_scale": 0.25, **tolerances}
        result = least_squares(
            offset_decay, start, bounds=bounds, args=(batch.t, batch.y), **options
        )
        # `held` has a row per problem, so it belongs to them
        reduced = least_squares(smaller, start[:, ~hold], args=(batch.t, batch.y, start), **options)
        assert torch.equal(result.x[:, hold], start[:, hold])
        assert torch.equal(result.active_mask[:, ~hold], reduced.active_mask)
        assert torch.equal(result.success, reduced.success)
        torch.testing.assert_close(result.cost, reduced.cost, rtol=1e-11, atol=0)
        torch.testing.assert_close(result.x[:, ~hold], reduced.x, rtol=1e-8, atol=1e-10)
        if not tolerances:
            # at tolerances near eps rounding decides about the last evaluations
            assert torch.equal(result.nfev, reduced.nfev)
            assert torch.equal(result.njev, reduced.njev)
            assert torch.equal(result.status, reduced.status)


class Watch:
    """Remembers every point that a function is called at; traced calls hold no numbers."""

    def __init__(self, function: Callable[..., Tensor]) -> None:
        self.function = function
        self.lowest = np.full(3, np.inf)
        self.highest = -self.lowest
        self.seen = 0

    def __call__(self, x: Tensor, *args: Tensor) -> Tensor:
        try:
            values = np.array(x.tolist())
        except RuntimeError:
            return self.function(x, *args)
        self.seen += 1
        self.lowest = np.minimum(self.lowest, values.min(0))
        self.highest = np.maximum(self.highest, values.max(0))
        return self.function(x, *args)


@pytest.mark.parametrize("jac", [None, "forward", "2-point", "3-point"])
@pytest.mark.parametrize("on_the_bound", [False, True])
@lawful
@given(
    batch=batches(),
    corner=st.tuples(st.floats(0, 1), st.floats(0, 1), st.floats(0, 1)),
    loss=LOSSES,
    check=st.booleans(),
)
def test_bounds_are_never_left(
    jac: str | None,
    on_the_bound: bool,
    batch: Batch,
    corner: tuple[float, float, float],
    loss: str,
    check: bool,
) -> None:
    """Neither by an iterate nor by any other point at which the function is called."""
    middle = batch.start.mean(0)
    width = 0.1 + torch.tensor(corner, dtype=torch.float64)
    lower, upper = middle - width / 2, middle + width / 2
    start = torch.minimum(torch.maximum(batch.start, lower), upper)
    if on_the_bound:
        start = torch.where(batch.start > middle, upper, lower)
    watch = Watch(offset_decay)
    iterates: list[Tensor] = []
    result = least_squares(
        watch,
        start,
        jac,
        bounds=(lower, upper),
        args=(batch.t, batch.y),
        loss=loss,
        callback=lambda state: iterates.append(state.x),
        check_independence=check,
    )
    assert watch.seen > 2
    assert (watch.lowest >= lower.numpy()).all(), watch.lowest - lower.numpy()
    assert (watch.highest <= upper.numpy()).all(), watch.highest - upper.numpy()
    assert iterates
    for x in (*iterates, result.x):
        assert bool(((x >= lower) & (x <= upper)).all())
    assert bool(result.success.all())


@lawful
@given(batches(), st.tuples(*3 * [st.floats(0.05, 1)]))
def test_the_end_satisfies_the_first_order_conditions(
    batch: Batch, room: tuple[float, float, float]
) -> None:
    """Karush, Kuhn and Tucker: no gradient inside, a gradient pointing out on a bound."""
    width = torch.tensor(room, dtype=torch.float64)
    lower, upper = batch.start - width, batch.start + width
    result = batch.solve(bounds=(lower, upper))
    assert bool(result.success.all())
    length = torch.linalg.vector_norm(result.jac, dim=1) * (2 * result.cost)[:, None].sqrt()
    cosine = result.grad / length
    active = result.active_mask
    assert bool((cosine[active == 0].abs() < 1e-6).all())
    assert bool((cosine[active == -1] > -1e-6).all())
    assert bool((cosine[active == 1] < 1e-6).all())
    assert torch.equal(active == -1, result.x == lower)
    assert torch.equal(active == 1, result.x == upper)


@lawful
@given(batches(), st.floats(0.01, 2))
def test_a_smaller_box_never_has_a_smaller_minimum(batch: Batch, width: float) -> None:
    free = batch.solve()
    wide = batch.solve(bounds=(batch.start - width, batch.start + width))
    narrow = batch.solve(bounds=(batch.start - width / 2, batch.start + width / 2))
    assert bool((free.cost <= wide.cost * (1 + 1e-9)).all())
    assert bool((wide.cost <= narrow.cost * (1 + 1e-9)).all())


# --------------------------------------------------------------------------------------- losses


@st.composite
def lines(draw: st.DrawFn) -> tuple[Array, Array]:
    """Scattered points about a line: design (N, 2) and data (N,), noise of about 1."""
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    num_samples = draw(st.integers(6, 30))
    design = np.stack([np.ones(num_samples), rng.uniform(-1, 1, num_samples)], 1)
    noise = np.clip(rng.standard_normal(num_samples), -2, 2)
    return design, design @ rng.uniform(-5, 5, 2) + noise


@lawful
@given(lines(), st.floats(1e2, 1e7), st.sampled_from([-1.0, 1.0]), st.floats(-1, 1))
def test_a_far_outlier_pulls_huber_by_a_known_amount(
    line: tuple[Array, Array], distance: float, side: float, where: float
) -> None:
    """The rest lies below the kink C, where the loss is linear least squares, and the outlier adds
    C to the gradient however far it is: δ = ±C (XᵀX)⁻¹ x. The linear fit moves by the distance
    times h / (1 + h), with h the outlier's leverage.
    """
    design, y = line
    kink = 20.0
    normal = design.T @ design
    outlier = np.array([1.0, where])
    plain = np.linalg.solve(normal, design.T @ y)
    pull = np.linalg.solve(normal, outlier)
    leverage = outlier @ pull
    wanted = plain + side * kink * pull
    # with this, the closed form is the minimum: the rest stays below the kink
    assume(np.abs(design @ wanted - y).max() < kink)
    value = outlier @ plain + side * distance
    assume(distance > kink * (1 + leverage))
    full, data = torch.tensor(np.vstack([design, outlier])), torch.tensor(np.append(y, value))

    def fun(x: Tensor) -> Tensor:
        return full @ x - data

    robust = least_squares(fun, torch.tensor(plain), loss="huber", f_scale=kink, **TIGHT)
    linear = least_squares(fun, torch.tensor(plain), **TIGHT)
    assert robust.success
    assert linear.success
    np.testing.assert_allclose(robust.x.numpy(), wanted, rtol=1e-6, atol=1e-6)
    moved = outlier @ (linear.x.numpy() - plain)
    assert moved == pytest.approx(side * distance * leverage / (1 + leverage), rel=1e-6)
    assert abs(outlier @ (robust.x.numpy() - plain)) < abs(moved)


@lawful
@given(lines(), st.floats(1e4, 1e7), st.sampled_from(["cauchy", "arctan"]))
def test_redescending_losses_forget_a_far_outlier(
    line: tuple[Array, Array], distance: float, loss: str
) -> None:
    """Its pull falls with its distance; the start is the fit without it."""
    design, y = line
    plain = np.linalg.solve(design.T @ design, design.T @ y)
    outlier = np.array([1.0, 0.5])
    full = torch.tensor(np.vstack([design, outlier]))
    clean = torch.tensor(y)
    data = torch.tensor(np.append(y, outlier @ plain + distance))
    options: dict[str, Any] = {"loss": loss, "f_scale": 5.0, **TIGHT}
    without = least_squares(lambda x: full[:-1] @ x - clean, torch.tensor(plain), **options)
    with_it = least_squares(lambda x: full @ x - data, torch.tensor(plain), **options)
    linear = least_squares(lambda x: full @ x - data, torch.tensor(plain), **TIGHT)
    moved = float((with_it.x - without.x).norm())
    assert moved < 0.05
    assert moved < 1e-3 * float((linear.x - torch.tensor(plain)).norm())


@lawful
@given(batches(), st.sampled_from(["soft_l1", "huber", "cauchy", "arctan"]))
def test_every_loss_far_from_its_scale_is_linear(batch: Batch, loss: str) -> None:
    """ρ(z) = z + O(z²), so a large f_scale is least squares."""
    linear = batch.solve()
    result = batch.solve(loss=loss, f_scale=1e7)
    torch.testing.assert_close(result.cost, linear.cost, rtol=1e-9, atol=0)
    torch.testing.assert_close(result.x, linear.x, rtol=1e-6, atol=1e-8)


@lawful
@given(batches(), st.sampled_from(["soft_l1", "huber", "cauchy", "arctan"]), st.floats(0.05, 1))
def test_a_robust_cost_is_never_above_the_linear_one(
    batch: Batch, loss: str, f_scale: float
) -> None:
    """ρ(z) ≤ z, and each minimum is at most its cost at the other's."""
    linear = batch.solve()
    start = Batch(batch.t, batch.y, linear.x)
    result = start.solve(loss=loss, f_scale=f_scale)
    assert bool((result.cost <= linear.cost * (1 + 1e-12)).all())
