"""Small dense linear algebra, batched over problems."""

from torchimize.linalg.cholesky import CholeskyBlocks

__all__ = ["CholeskyBlocks"]
