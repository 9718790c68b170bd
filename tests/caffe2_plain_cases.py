"""Cases of Caffe2's general operators: arithmetic, shapes, layers."""

from __future__ import annotations

from typing import Any

import numpy as np

from zooport.tests.caffe2_cases import (
    EXACT,
    F4,
    I4,
    I8,
    Cases,
    normal,
    normals,
    positive,
    rounded,
    truths,
    whole,
)
from zooport.tests.caffe2_cases import then as followed_by

UNARY = (
    "Abs Alias Ceil Copy CopyFromCPUInput Cos Cube EnsureCPUOutput Erf Exp Floor Negative Reciprocal Relu"
    " Sigmoid Sign Sin Softplus Softsign Sqr StopGradient Swish Tanh"
)
BINARY = "Add Sub Mul Div LT LE GT GE EQ NE"


def plain_cases() -> Cases:
    """Return all of them."""
    cases = Cases()
    for add in (
        _elementwise,
        _fills,
        _joining,
        _shaping,
        _selection,
        _reductions,
        _layers,
        _normalization,
        _images,
    ):
        add(cases)
    return cases


def _elementwise(cases: Cases) -> None:
    cases.add(UNARY, normal(3, 4, 5))
    cases.add(UNARY, normal(0, 4))
    cases.add("Log Sqrt Rsqrt", positive((4, 5)))
    for shapes in (
        ((2, 3, 4), (2, 3, 4)),
        ((2, 3, 4), (1, 3, 1)),
        ((3, 1), (2, 3, 4)),
        ((2, 3), ()),
        ((0, 3), (3,)),
        ((2, 3), (4,)),
    ):
        cases.add(BINARY, normals(*shapes))
    cases.add(BINARY, normals((2, 3, 4), (3,)), broadcast=1, axis=1)
    cases.add(BINARY, normals((2, 3, 4), (3, 4)), broadcast=1)
    cases.add(BINARY, normals((2, 3, 4), (1,)), broadcast=1)
    cases.add(BINARY, normals((2, 3, 4), (3,)), axis=1)
    cases.add(BINARY, whole(I4, (2, 3), (2, 3)))
    cases.add(BINARY, whole(I8, (2, 3), (3,)))
    cases.add(BINARY, followed_by(normal(2, 3), np.ones((2, 3), I4)))
    cases.add("And Or Xor", truths((2, 3), (2, 3)))
    cases.add("And Or Xor", normals((2, 3), (2, 3)))
    cases.add("Not", truths((2, 3)))
    cases.add("Not", normal(2, 3))
    cases.add("Sum Max Min Mean", normal(2, 3))
    cases.add("Sum Max Min Mean", normals((2, 3), (2, 3), (2, 3)))
    cases.add("Clip", normal(20), min=-0.5, max=0.5)
    cases.add("Clip", normal(20), min=0.0)
    cases.add("LeakyRelu", normal(20))
    cases.add("LeakyRelu", normal(20), alpha=0.3)
    cases.add("Elu", normal(20), alpha=1.5)
    cases.add("PRelu", normals((2, 3, 4, 4), (3,)))
    cases.add("PRelu", normals((2, 3, 4, 4), (1,)))
    cases.add("HardSigmoid", normal(20))
    cases.add("Pow", positive((20,)), exponent=1.5)
    cases.add("Pow", positive((20,), (20,)))
    cases.add("Where", lambda random: [random.random((2, 3)) > 0.5, *normals((2, 3), (2, 3))(random)])
    cases.add("Where", lambda random: [random.random((2, 1)) > 0.5, *normals((2, 3), (2, 3))(random)])
    cases.add("Dropout", normal(4), is_test=1)
    for kind in (1, 2, 5, 6, 10, 13, "float", "int32", "int64", "bool"):
        cases.add("Cast", lambda random: [random.standard_normal(20).astype(F4) * 3], to=kind)
        cases.add("Cast", whole(I8, (20,)), to=kind)


def _fills(cases: Cases) -> None:
    def nothing(random: object) -> list[np.ndarray]:
        return []

    cases.add("GivenTensorFill", nothing, shape=[2, 2], values=[1.0, 2.0, 3.0, 4.0])
    cases.add("GivenTensorFill", nothing, shape=[5], values=[1.0, 2.0, 3.0, 4.0])
    cases.add("GivenTensorFill", nothing, shape=[0, 3], values=[])
    cases.add("GivenTensorFill", nothing, shape=[], values=[2.0])
    cases.add("GivenTensorDoubleFill", nothing, shape=[3], values=[1.0, 0.5, 2.0])
    cases.add("GivenTensorIntFill GivenTensorInt64Fill", nothing, shape=[3], values=[1, 2, 3])
    cases.add("GivenTensorBoolFill", nothing, shape=[3], values=[1, 0, 1])
    cases.add("ConstantFill", nothing, shape=[2, 3])
    cases.add("ConstantFill", nothing, shape=[2, 3], value=1.5)
    cases.add("ConstantFill", nothing, shape=[2, 3], value=2)
    cases.add("ConstantFill", nothing, shape=[2, 3], dtype=10)
    for kind, value in ((2, 2), (10, 2), (5, 1), (1, 1), (2, 1.0)):
        cases.add("ConstantFill", nothing, shape=[2, 3], value=value, dtype=kind)
    cases.add("ConstantFill", normal(2, 5), value=1.5)
    cases.add("ConstantFill", followed_by(nothing, np.array([2, 4], I8)), input_as_shape=1, value=1.5)
    cases.add("ConstantFill", followed_by(nothing, np.array([2, 4], I8)), input_as_shape=1, extra_shape=[3])
    cases.add("ConstantFill", followed_by(nothing, np.array([2, 4], I4)), input_as_shape=1)
    starts_and_ends: tuple[tuple[list[Any], Any], ...] = (
        ([5], I8),
        ([2.5, 7, 0.5], F4),
        ([5, 0, -2], I4),
        ([5.0], F4),
        ([2, 7], I4),
        ([7.0, 2.0], F4),
    )
    for numbers, kind in starts_and_ends:
        cases.add("Range", followed_by(nothing, *np.array(numbers, kind)))


def _joining(cases: Cases) -> None:
    cases.add("Concat", normals((2, 3, 4), (2, 5, 4)), 2)
    cases.add("Concat", normals((2, 3), (0, 3)), 2, axis=0)
    cases.add("Concat", normals((0, 3), (0, 3)), 2, axis=0)
    cases.add("Concat", normals((2, 3), (2, 3)), 2, axis=1, add_axis=1)
    cases.add("Concat", normals((2, 3), (2, 3)), 2, axis=-1)
    cases.add("Concat", normals((2, 3), (3,)), 2, axis=0)
    cases.add("Concat", normals((2, 3), (2, 4)), 2, axis=0)
    cases.add("Concat", normals((2, 3, 3, 3), (2, 3, 3, 4)), 2, order="NHWC")
    cases.add("Split", normal(2, 6), 3)
    cases.add("Split", normal(2, 6), 3, axis=1, split=[1, 2, 3])
    cases.add("Split", followed_by(normal(2, 6), np.array([4, 2], I4)), 2, axis=1)
    cases.add("Split", normal(2, 6), 4, axis=1)
    cases.add("Split", normal(2, 6), 2, axis=1, split=[1, 2])
    cases.add("Split", normal(4, 6), 2, axis=0)
    cases.add("Split", normal(4, 6), 2, axis=-1)
    cases.add("Tile", normal(2, 3), tiles=3, axis=1)
    cases.add("Tile", followed_by(normal(2, 3), np.array([3], I4), np.array([0], I4)))


def _shaping(cases: Cases) -> None:
    for shape in ([6, 4], [0, -1], [-1], [2, 0, 0], [-1, 2, 2], [5, 5], [-1, -1], [2, 3, 4, 0]):
        cases.add("Reshape", normal(2, 3, 4), 2, shape=shape)
    cases.add("Reshape", normal(0, 4), 2, shape=[-1, 4])
    for shape in ([0, 2, 2], [-1, 1, 0, 0], [0, 0], [-1, 5], [3, -1, -1]):
        cases.add("Reshape", normal(0, 4), 2, shape=shape)
    cases.add("Reshape", normal(3, 0), 2, shape=[0, 5])
    cases.add("Reshape", followed_by(normal(2, 4), np.array([4, 2], I8)), 2)
    cases.add("Reshape", followed_by(normal(2, 4), np.array([4, 2], I4)), 2)
    for axis in range(5):
        cases.add("Flatten", normal(2, 3, 4), axis=axis)
    cases.add("Flatten", normal(0, 3, 4))
    cases.add("FlattenToVec", normal(2, 3))
    cases.add("Transpose", normal(2, 3, 4))
    cases.add("Transpose", normal(2, 3, 4), axes=[1, 2, 0])
    cases.add("Transpose", normal(0, 3, 4), axes=[1, 2, 0])
    cases.add("Transpose", whole(I8, (2, 3)))
    cases.add("NCHW2NHWC NHWC2NCHW", normal(2, 3, 4, 5))
    cases.add("ExpandDims", normal(2, 3), dims=[0, 2])
    cases.add("Squeeze", normal(1, 3, 1), dims=[0, 2])
    cases.add("Squeeze", normal(1, 3, 1), dims=[1])
    cases.add("Expand", followed_by(normal(3, 1), np.array([2, 1, 4], I8)))
    cases.add("Expand", followed_by(normal(3, 1), np.array([2, 1, 4], I4)))
    cases.add("ResizeLike", normals((2, 6), (3, 4)))
    cases.add("Shape", normal(2, 3, 4))
    cases.add("Shape", normal(2, 3, 4), axes=[2, 0])
    cases.add("Size", normal(2, 3, 4))


def _selection(cases: Cases) -> None:
    for starts, ends in (
        ([0, 1], [-1, -1]),
        ([0, 1], [-1, 3]),
        ([1, 0], [2, -1]),
        ([0, -3], [-1, -1]),
        ([0, 1], [-1, -2]),
        ([0, 0], [-1, 99]),
        ([0, 5], [-1, -1]),
        ([1, 1], [2, 2]),
        ([0], [1]),
        ([0, 4], [-1, 4]),
        ([0, 4], [-1, 2]),
    ):
        cases.add("Slice", normal(3, 6), starts=starts, ends=ends)
    cases.add("Slice", followed_by(normal(3, 6), np.array([0, 2], I4), np.array([-1, 4], I4)))
    cases.add("Slice", followed_by(normal(3, 6), np.array([0, 2], I8), np.array([-1, 4], I8)))
    cases.add("Slice", whole(I8, (6,)), starts=[1], ends=[3])
    cases.add("Gather", followed_by(normal(5, 3), np.array([[0, 4], [2, 2]], I8)))
    cases.add("Gather", followed_by(normal(5, 3), np.array([0, 2], I4)), axis=1)
    cases.add("Gather", followed_by(normal(5, 3), np.array([0, 7], I4)))
    cases.add("Gather", followed_by(normal(5, 3), np.array([0, -1], I4)), wrap_indices=1)
    cases.add("Gather", followed_by(normal(5, 3), np.array([], I4)))
    cases.add("Gather", followed_by(normal(0, 3), np.array([], I4)))
    cases.add("Gather", followed_by(whole(I8, (5,)), np.array(2, I8)))
    cases.add("BatchGather", followed_by(normal(2, 5, 3), np.array([0, 2], I4)))
    for rows, kept in ((6, [True, False] * 3), (6, [False] * 6), (0, [])):
        cases.add("BooleanMask", followed_by(normal(rows, 3), np.array(kept, bool)), 2)
    cases.add("TopK", normal(3, 9), 3, k=4)
    cases.add("TopK", rounded(3, 20), 3, k=7, times=4)
    cases.add("TopK", normal(3, 9), 2, k=2, axis=0)
    cases.add("TopK", normal(30), 2, k=5)


def _reductions(cases: Cases) -> None:
    reduce = "ReduceL1 ReduceL2 ReduceMax ReduceMean ReduceMin ReduceSum"
    cases.add(reduce, normal(2, 3, 4))
    cases.add(reduce, normal(2, 3, 4), axes=[1], keepdims=0)
    cases.add(reduce, normal(2, 3, 4), axes=[1, 2])
    ends = "ReduceBackMax ReduceBackMean ReduceBackSum ReduceFrontMax ReduceFrontMean ReduceFrontSum"
    cases.add(ends, normal(2, 3, 4))
    cases.add(ends, normal(2, 3, 4), num_reduce_dim=2)
    cases.add("ArgMax ArgMin", rounded(3, 9), tolerance=EXACT, times=3)
    cases.add("ArgMax ArgMin", rounded(3, 9), axis=0, keepdims=0, tolerance=EXACT)
    cases.add("SumElements", normal(3, 4))
    cases.add("SumElements", normal(3, 4), average=1)
    cases.add("Softmax", normal(5, 6))
    cases.add("Softmax", normal(0, 6))
    for axis in (1, 2, -1):
        cases.add("Softmax", normal(2, 3, 4), axis=axis)


def _layers(cases: Cases) -> None:
    three: dict[str, Any] = {"kernels": [3, 3]}
    cases.add("Conv", normals((2, 4, 9, 8), (6, 4, 3, 3), (6,)), strides=[2, 2], pads=[1, 1, 1, 1], **three)
    cases.add("Conv", normals((1, 4, 9, 8), (6, 4, 3, 3)), kernel=3)
    cases.add(
        "Conv",
        normals((1, 4, 9, 8), (6, 2, 3, 1), (6,)),
        kernel_h=3,
        kernel_w=1,
        group=2,
        pad_t=1,
        pad_l=0,
        pad_b=2,
        pad_r=1,
    )
    cases.add("Conv", normals((1, 4, 9, 8), (4, 1, 3, 3), (4,)), group=4, pads=[1, 1, 1, 1], **three)
    cases.add(
        "Conv", normals((1, 4, 12, 12), (4, 4, 3, 3), (4,)), dilations=[2, 2], pads=[2, 2, 2, 2], **three
    )
    cases.add("Conv", normals((1, 4, 7, 7), (4, 4, 3, 3), (4,)), strides=[3, 3], pads=[0, 1, 2, 1], **three)
    for image in ((0, 4, 12, 12), (1, 4, 2, 2), (1, 3, 5, 5)):  # none, too small, of other channels
        cases.add("Conv", normals(image, (4, 4, 3, 3), (4,)), **three)
    two: dict[str, Any] = {"kernels": [2, 2], "strides": [2, 2]}
    four: dict[str, Any] = {"kernels": [4, 4], "strides": [2, 2]}
    cases.add("ConvTranspose", normals((2, 4, 5, 6), (4, 3, 2, 2), (3,)), **two)
    cases.add("ConvTranspose", normals((0, 4, 5, 6), (4, 3, 2, 2), (3,)), **two)
    cases.add("ConvTranspose", normals((2, 4, 5, 6), (4, 3, 2, 2), (3,)), dilations=[1, 1], **two)
    cases.add("ConvTranspose", normals((2, 4, 5, 6), (4, 3, 4, 4)), pads=[1, 1, 1, 1], **four)
    cases.add("ConvTranspose", normals((2, 4, 5, 6), (4, 1, 4, 4)), pads=[1, 1, 1, 1], group=4, **four)
    cases.add("ConvTranspose", normals((2, 4, 5, 6), (4, 3, 4, 4)), kernel=4, stride=2, pad=1)
    cases.add(
        "ConvTranspose",
        normals((2, 4, 5, 6), (4, 3, 3, 3)),
        strides=[2, 2],
        pads=[1, 0, 0, 1],
        adjs=[1, 1],
        **three,
    )
    pools = "MaxPool AveragePool"
    cases.add(pools, normal(2, 3, 9, 8), strides=[2, 2], pads=[1, 1, 1, 1], **three)
    cases.add(pools, normal(2, 3, 9, 8), strides=[2, 2], pads=[0, 0, 1, 1], **three)
    cases.add(pools, normal(2, 3, 9, 8), pads=[1, 1, 1, 1], count_include_pad=1, **three)
    cases.add(pools, normal(2, 3, 9, 8), kernel=2, stride=2)
    cases.add(pools, normal(0, 3, 9, 8), kernel=2, stride=2)
    cases.add(pools, normal(2, 3, 9, 8), kernels=[1, 1], strides=[2, 2])
    cases.add(pools, normal(2, 3, 9, 8), global_pooling=1)
    cases.add(pools, normal(2, 3, 2, 2), kernel=3)
    cases.add(pools, normal(2, 3, 6, 6), kernel=2, pad=2)
    cases.add(pools, normal(2, 3, 12, 11), kernels=[5, 4], strides=[3, 2], pads=[2, 1, 2, 1])
    cases.add("FC", normals((5, 6), (4, 6), (4,)))
    cases.add("FC", normals((0, 6), (4, 6), (4,)))
    cases.add("FC", normals((5, 2, 3), (4, 6), (4,)))
    cases.add("FC", normals((5, 2, 3), (4, 3), (4,)), axis=2)
    cases.add("FC", normals((5, 6), (4, 5), (4,)))
    cases.add("FC", normals((5, 6), (4, 6), (3,)))
    cases.add("FCTransposed", normals((5, 6), (6, 4), (4,)))
    cases.add("MatMul", normals((5, 6), (6, 4)))
    cases.add("MatMul", normals((6, 5), (4, 6)), trans_a=1, trans_b=1)
    cases.add("MatMul", normals((5, 6), (5, 4)))
    cases.add("BatchMatMul", normals((3, 5, 6), (3, 6, 4)))
    cases.add("BatchMatMul", normals((3, 5, 6), (6, 4)), broadcast=1)
    cases.add("BatchMatMul", normals((3, 5, 6), (3, 4, 6)), trans_b=1)
    cases.add("BatchMatMul", normals((3, 5, 6), (6, 4)))


def _normalization(cases: Cases) -> None:
    def statistics(random: np.random.Generator) -> list[np.ndarray]:
        return [*normals((2, 3, 4, 5), (3,), (3,), (3,))(random), *positive((3,))(random)]

    cases.add("SpatialBN", statistics, is_test=1, epsilon=1e-3)
    cases.add("SpatialBN", statistics, is_test=1)
    cases.add("AffineChannel", normals((2, 3, 4, 5), (3,), (3,)))
    cases.add("GroupNorm", normals((2, 8, 4, 5), (8,), (8,)), group=4, epsilon=1e-3)
    cases.add("GroupNorm", normals((2, 8, 4, 5), (8,), (8,)), group=2, eps=0.5)  # not what it is called
    cases.add("GroupNorm", normals((0, 8, 4, 5), (8,), (8,)), group=4)
    cases.add("GroupNorm", normals((2, 8, 4, 5), (8,), (8,)), group=3)
    cases.add("InstanceNorm", normals((2, 3, 4, 5), (3,), (3,)))


def _images(cases: Cases) -> None:
    for height, width in ((2.0, 2.0), (1.5, 2.3), (0.5, 0.7), (3.0, 1.0)):
        cases.add(
            "ResizeNearest UpsampleBilinear",
            normal(2, 3, 7, 5),
            height_scale=height,
            width_scale=width,
            order="NCHW",
        )
    cases.add("ResizeNearest", followed_by(normal(2, 3, 7, 5), np.array([2.0, 3.0], F4)), order="NCHW")
    cases.add("ResizeNearest", normal(0, 3, 7, 5), height_scale=2.0, width_scale=2.0)
    cases.add("PadImage", normal(2, 3, 4, 5), pad_t=1, pad_l=2, pad_b=0, pad_r=1)
    cases.add("PadImage", normal(2, 3, 4, 5), pads=[1, 1, 1, 1], value=2.5)
    cases.add("PadImage", normal(2, 3, 4, 5), pads=[1, 2, 0, 1], mode="edge")
    for empty in (normal(0, 3, 4, 5), normal(0, 3, 0, 0), normal(2, 0, 4, 5), normal(2, 3, 0, 5)):
        cases.add("PadImage", empty, pads=[1, 1, 1, 1], mode="edge")
    cases.add("PadImage", normal(2, 3, 4, 5), pads=[1, 2, 0, 1], mode="reflect")
