"""Array-likes in, NumPy arrays out; tensors in, tensors out."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

from torchimize.arrays import Output, as_tensor, data_tensor, start_tensor
from torchimize.errors import DeviceError, DtypeError

CPU = torch.device("cpu")


@pytest.mark.parametrize(
    "value",
    [
        [1, 2],
        (1.0, 2.0),
        np.array([1, 2], dtype=np.int16),
        np.array([1, 2], dtype=np.float32),
        torch.tensor([1, 2]),
    ],
)
def test_as_tensor_values(value: Any) -> None:
    tensor = as_tensor(value, "x")
    assert isinstance(tensor, torch.Tensor) and tensor.tolist() == [1, 2]


def test_as_tensor_keeps_dtypes() -> None:
    assert as_tensor(np.array([1], dtype=np.float32), "x").dtype == torch.float32
    assert as_tensor(np.array([1]), "x").dtype == torch.int64
    assert as_tensor(np.array([1.5], dtype=np.longdouble), "x").dtype == torch.float64
    assert as_tensor(3.5, "x").shape == ()
    assert as_tensor(torch.ones(2, dtype=torch.float16), "x").dtype == torch.float16


def test_as_tensor_of_awkward_arrays() -> None:
    values = np.arange(6.0)
    assert as_tensor(values[::-1], "x").tolist() == [5, 4, 3, 2, 1, 0]
    assert as_tensor(values.astype(">f8"), "x").tolist() == values.tolist()
    locked = values.copy()
    locked.setflags(write=False)
    assert as_tensor(locked, "x").tolist() == values.tolist()
    assert as_tensor(np.broadcast_to(np.float64(2), (3,)), "x").tolist() == [2, 2, 2]


def test_as_tensor_cuts_gradients() -> None:
    tensor = torch.ones(2, requires_grad=True)
    assert not as_tensor(tensor * 2, "x").requires_grad


@pytest.mark.parametrize("value", ["text", None, {"a": 1}, object(), [[1, 2], [3]], ["a", "b"]])
def test_as_tensor_refuses(value: Any) -> None:
    with pytest.raises(TypeError, match=rf"`ydata` is {type(value).__name__}; wanted numbers"):
        as_tensor(value, "ydata")


def test_start_from_python_numbers_is_float64() -> None:
    for value in (1, 2.0, [1, 2], (1, 2.5), [[1, 2], [3, 4]], True):
        assert start_tensor(value, "p0").dtype == torch.float64
    assert start_tensor([1, 2], "p0").tolist() == [1.0, 2.0]


def test_start_from_arrays_keeps_its_dtype() -> None:
    # integer arrays are left as they are, to be refused with their dtype named
    assert start_tensor(np.array([1, 2]), "p0").dtype == torch.int64
    assert start_tensor(torch.tensor([1, 2]), "p0").dtype == torch.int64
    assert start_tensor(np.array([1], dtype=np.float32), "p0").dtype == torch.float32
    assert start_tensor(torch.ones(1), "p0").dtype == torch.float32
    assert start_tensor([1 + 2j], "p0").is_complex()


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_data_take_the_fit_s_dtype(dtype: torch.dtype) -> None:
    for value in (
        np.array([1, 2]),
        [True, False],
        torch.tensor([1.5]),
        np.array([2], dtype=np.float64),
    ):
        tensor = data_tensor(value, "y", dtype, CPU)
        assert tensor.dtype == dtype and tensor.device == CPU


def test_data_of_the_right_dtype_are_not_copied() -> None:
    value = torch.ones(5, dtype=torch.float64)
    assert data_tensor(value, "y", torch.float64, CPU).data_ptr() == value.data_ptr()


def test_complex_data() -> None:
    with pytest.raises(DtypeError, match="`ydata` is complex; wanted real numbers"):
        data_tensor(np.array([1j]), "ydata", torch.float64, CPU)


def test_data_on_another_device() -> None:
    elsewhere = torch.ones(3, device="meta")
    with pytest.raises(DeviceError, match="`xdata` is on meta, the other tensors on cpu"):
        data_tensor(elsewhere, "xdata", torch.float64, CPU)


def test_output_of_a_batch() -> None:
    value = torch.arange(6.0).reshape(3, 2)
    tensors, arrays = Output((3,), numpy=False), Output((3,), numpy=True)
    assert not tensors.single and torch.equal(tensors(value), value)
    assert isinstance(arrays(value), np.ndarray) and arrays(value).shape == (3, 2)
    np.testing.assert_array_equal(arrays.scalar(value[:, 0]), [0, 2, 4])
    assert torch.equal(tensors.scalar(value[:, 0]), value[:, 0])


def test_output_of_one_problem() -> None:
    value = torch.arange(2.0).reshape(1, 2)
    output = Output((), numpy=False)
    assert output.single and torch.equal(output(value), value[0])
    assert output.scalar(torch.tensor([2.5])) == 2.5
    assert type(output.scalar(torch.tensor([3]))) is int
    assert output.scalar(torch.tensor([True])) is True


def test_output_of_several_batch_dimensions() -> None:
    value = torch.arange(24.0).reshape(6, 4)
    assert Output((2, 3), numpy=False)(value).shape == (2, 3, 4)
    assert Output((2, 3), numpy=True).scalar(value[:, 0]).shape == (2, 3)
    assert Output((0,), numpy=True)(torch.zeros(0, 4)).shape == (0, 4)
    attached = torch.ones(3, 2, requires_grad=True) * 2
    assert isinstance(Output((3,), numpy=True)(attached), np.ndarray)
