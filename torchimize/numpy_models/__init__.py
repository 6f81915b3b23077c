"""Models written with NumPy's and scipy.special's functions, unmodified, on tensors.

A model such as ``a * np.exp(-b * x)`` runs on tensors through NumPy's dispatch protocols: batched,
and differentiated and traced like one written with torch. What has no counterpart raises
`UnsupportedNumpyFunction`, which names the function.

Examples
--------
>>> import numpy as np
>>> import torch
>>> def decay(x, a, b):
...     return a * np.exp(-b * x)
>>> x = torch.tensor([0.0, 1.0])
>>> uses_numpy(decay, (x, torch.ones(1), torch.ones(1)), {})
True
>>> in_numpy_words(decay)(x, torch.tensor([[1.0], [2.0]]), torch.tensor([[0.0], [1.0]]))
tensor([[1.0000, 1.0000],
        [2.0000, 0.7358]])
"""

from torchimize.numpy_models.adapt import in_numpy_words as in_numpy_words
from torchimize.numpy_models.adapt import uses_numpy as uses_numpy
from torchimize.numpy_models.conversion import NumberEscape as NumberEscape
from torchimize.numpy_models.conversion import (
    UnsupportedNumpyFunction as UnsupportedNumpyFunction,
)
from torchimize.numpy_models.wrapper import NumpyTensor as NumpyTensor
