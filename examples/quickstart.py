"""A thousand noisy decays, fitted in one call; the model is written in NumPy's words."""

from __future__ import annotations

import numpy as np

from torchimize import curve_fit

rng = np.random.default_rng(0)
time = np.linspace(0.0, 5.0, 40)
amplitude = rng.uniform(1.0, 3.0, (1000, 1))
rate = rng.uniform(0.5, 2.0, (1000, 1))
decays = amplitude * np.exp(-rate * time) + rng.normal(0.0, 0.05, (1000, 40))

popt, pcov = curve_fit(lambda t, a, k: a * np.exp(-k * t), time, decays, p0=[1.0, 1.0])

stderr = np.sqrt(np.diagonal(pcov, axis1=1, axis2=2))
print(f"rate of the first: {popt[0, 1]:.3f} ± {stderr[0, 1]:.3f}, true {rate[0, 0]:.3f}")
print(f"within two standard errors: {np.mean(abs(popt[:, 1:] - rate) < 2 * stderr[:, 1:]):.1%}")
