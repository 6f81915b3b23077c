"""Special functions with right derivatives.

In torch 2.13 the Bessel functions, the Airy function and the orthogonal polynomials of
``torch.special`` have a derivative that is silently zero, in forward and in reverse mode; also the
values of ``bessel_j0``, ``bessel_j1``, ``bessel_y0``, ``bessel_y1`` and ``airy_ai`` are off by up
to 3e-6. ``gammainc``, ``gammaincc`` and ``zeta`` raise in forward mode, and in both modes with
respect to their first argument. The functions of the same names here are right. They work under
``torch.func.jvp``, ``vjp``, ``vmap`` and compositions of these, and can be differentiated twice.

`CorrectDerivatives` reroutes the calls that a function makes to ``torch.special``;
`needs_correction` tells whether it makes any.

Examples
--------
>>> import torch
>>> x = torch.tensor([1.0], dtype=torch.float64)
>>> value, slope = torch.func.jvp(bessel_j0, (x,), (torch.ones_like(x),))
>>> bool(slope == -bessel_j1(x))
True
"""

from torchimize.special_functions.airy import airy_ai as airy_ai
from torchimize.special_functions.bessel import bessel_j0 as bessel_j0
from torchimize.special_functions.bessel import bessel_j1 as bessel_j1
from torchimize.special_functions.bessel import bessel_y0 as bessel_y0
from torchimize.special_functions.bessel import bessel_y1 as bessel_y1
from torchimize.special_functions.bessel import modified_bessel_i0 as modified_bessel_i0
from torchimize.special_functions.bessel import modified_bessel_i1 as modified_bessel_i1
from torchimize.special_functions.bessel import modified_bessel_k0 as modified_bessel_k0
from torchimize.special_functions.bessel import modified_bessel_k1 as modified_bessel_k1
from torchimize.special_functions.bessel import (
    scaled_modified_bessel_k0 as scaled_modified_bessel_k0,
)
from torchimize.special_functions.bessel import (
    scaled_modified_bessel_k1 as scaled_modified_bessel_k1,
)
from torchimize.special_functions.bessel import spherical_bessel_j0 as spherical_bessel_j0
from torchimize.special_functions.correction import CorrectDerivatives as CorrectDerivatives
from torchimize.special_functions.correction import needs_correction as needs_correction
from torchimize.special_functions.elementwise import elementwise as elementwise
from torchimize.special_functions.faddeeva import faddeeva_imag as faddeeva_imag
from torchimize.special_functions.faddeeva import faddeeva_real as faddeeva_real
from torchimize.special_functions.faddeeva import voigt_profile as voigt_profile
from torchimize.special_functions.gamma import cube_root as cube_root
from torchimize.special_functions.gamma import gammainc as gammainc
from torchimize.special_functions.gamma import gammaincc as gammaincc
from torchimize.special_functions.gamma import zeta as zeta
from torchimize.special_functions.polynomials import (
    chebyshev_polynomial_t as chebyshev_polynomial_t,
)
from torchimize.special_functions.polynomials import (
    chebyshev_polynomial_u as chebyshev_polynomial_u,
)
from torchimize.special_functions.polynomials import hermite_polynomial_h as hermite_polynomial_h
from torchimize.special_functions.polynomials import (
    hermite_polynomial_he as hermite_polynomial_he,
)
from torchimize.special_functions.polynomials import (
    laguerre_polynomial_l as laguerre_polynomial_l,
)
from torchimize.special_functions.polynomials import (
    legendre_polynomial_p as legendre_polynomial_p,
)
