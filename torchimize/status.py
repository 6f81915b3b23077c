"""Why a fit stopped, and why an error bar is missing: two tables of codes with their messages.

The codes of :class:`Status` are those of ``scipy.optimize.least_squares`` where SciPy has one.
"""

from __future__ import annotations

from enum import IntEnum


class FitWarning(UserWarning):
    """Some fits of a batch did not converge."""


class Status(IntEnum):
    """Why a problem's iterations ended; it succeeded where the code is positive.

    Examples
    --------
    >>> from torchimize import Status
    >>> Status(2).name, Status.FTOL.message
    ('FTOL', '`ftol` termination condition is satisfied.')
    """

    STALLED = -4
    NON_FINITE = -3
    CALLBACK = -2
    NON_FINITE_START = -1
    MAX_NFEV = 0
    GTOL = 1
    FTOL = 2
    XTOL = 3
    FTOL_XTOL = 4

    @property
    def message(self) -> str:
        """One sentence for the user."""
        return _MESSAGES[self]


_MESSAGES = {
    Status.STALLED: "No usable step was found: the normal equations stay singular.",
    Status.NON_FINITE: "Nothing finite within reach of the last point.",
    Status.CALLBACK: "Stopped by the callback.",
    Status.NON_FINITE_START: "Residuals are not finite in the initial point.",
    Status.MAX_NFEV: "The maximum number of function evaluations is exceeded.",
    Status.GTOL: "`gtol` termination condition is satisfied.",
    Status.FTOL: "`ftol` termination condition is satisfied.",
    Status.XTOL: "`xtol` termination condition is satisfied.",
    Status.FTOL_XTOL: "Both `ftol` and `xtol` termination conditions are satisfied.",
}

RUNNING = 127
"""Status code of a problem that has not stopped; never leaves the solver."""


class CovarianceStatus(IntEnum):
    """What can be said of a problem's covariance, and why not more.

    Examples
    --------
    >>> from torchimize import CovarianceStatus
    >>> CovarianceStatus.RANK_DEFICIENT.message
    'The data do not determine every parameter: those left open have infinite variance.'
    """

    OK = 0
    AT_BOUND = 1
    RANK_DEFICIENT = 2
    TOO_FEW_SAMPLES = 3
    NON_FINITE = 4

    @property
    def message(self) -> str:
        """One sentence for the user."""
        return _COVARIANCE_MESSAGES[self]


_COVARIANCE_MESSAGES = {
    CovarianceStatus.OK: "Covariance estimated.",
    CovarianceStatus.AT_BOUND: (
        "A parameter lies on its bound: the covariance ignores the bound and is no error bar there."
    ),
    CovarianceStatus.RANK_DEFICIENT: (
        "The data do not determine every parameter: those left open have infinite variance."
    ),
    CovarianceStatus.TOO_FEW_SAMPLES: (
        "No more samples than parameters: the scatter, and with it the variance, is unknown."
    ),
    CovarianceStatus.NON_FINITE: "The fit has no finite Jacobian at its last point.",
}
