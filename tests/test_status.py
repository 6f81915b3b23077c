"""Codes and messages: SciPy's where SciPy has them."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import scipy.optimize

import torchimize
from torchimize import CovarianceStatus, FitWarning, Status
from torchimize.status import RUNNING


def test_codes() -> None:
    assert {status.name: int(status) for status in Status} == {
        "STALLED": -4,
        "NON_FINITE": -3,
        "CALLBACK": -2,
        "NON_FINITE_START": -1,
        "MAX_NFEV": 0,
        "GTOL": 1,
        "FTOL": 2,
        "XTOL": 3,
        "FTOL_XTOL": 4,
    }
    assert RUNNING not in [int(status) for status in Status]
    assert -128 <= RUNNING <= 127, "statuses are kept as int8"


SCIPY_CASES: dict[Status, dict[str, Any]] = {
    Status.MAX_NFEV: {"max_nfev": 1},
    Status.GTOL: {"gtol": 1e9},
    Status.FTOL: {"xtol": None, "gtol": None},
    Status.XTOL: {"ftol": None, "gtol": None},
}


@pytest.mark.parametrize("status", SCIPY_CASES)
def test_messages_are_scipy_s(status: Status) -> None:
    def residual(p: np.ndarray) -> np.ndarray:
        return np.array([10 * (p[1] - p[0] ** 2), 1 - p[0], 2.0])

    scipy_s = scipy.optimize.least_squares(residual, [-1.2, 1.0], **SCIPY_CASES[status])
    assert scipy_s.status == status and scipy_s.message == status.message


def test_every_code_has_its_own_sentence() -> None:
    for table in (Status, CovarianceStatus):
        messages = [code.message for code in table]
        assert len(set(messages)) == len(messages)
        assert all(message.endswith(".") and message[0] in "`ABCDEFGHIJKLMNOPRSTUVWXYZ"
                   for message in messages)  # fmt: skip


def test_success_is_a_positive_code() -> None:
    good = {status for status in Status if status > 0}
    assert good == {Status.GTOL, Status.FTOL, Status.XTOL, Status.FTOL_XTOL}


def test_covariance_codes() -> None:
    assert int(CovarianceStatus.OK) == 0
    assert [code.name for code in CovarianceStatus] == [
        "OK", "AT_BOUND", "RANK_DEFICIENT", "TOO_FEW_SAMPLES", "NON_FINITE",
    ]  # fmt: skip


def test_codes_from_numbers_and_public_names() -> None:
    assert Status(-1) is Status.NON_FINITE_START
    with pytest.raises(ValueError):
        Status(17)
    assert torchimize.Status is Status and torchimize.CovarianceStatus is CovarianceStatus
    assert issubclass(FitWarning, UserWarning)
