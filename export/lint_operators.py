"""What TensorRT's ONNX parser reads, by version.

From the operator table that comes with the parser of 10.15 and the changelog that says what was added since 10.3. An
operator that is not here is refused by the parser, or is one of those that it reads without doing what they say: random
numbers, whose seeds it ignores.
"""

from __future__ import annotations

Version = tuple[int, int]

OLDEST: Version = (10, 3)
NEWEST_MAJOR = 11

_TABLE = """
Abs Acos Acosh Add And ArgMax ArgMin Asin Asinh Atan Atanh AveragePool BatchNormalization Cast CastLike Ceil Celu
Clip Concat Constant ConstantOfShape Conv ConvTranspose Cos Cosh CumSum DeformConv DepthToSpace DequantizeLinear Div
Dropout Einsum Elu Equal Erf Exp Expand EyeLike Flatten Floor GRU Gather GatherElements GatherND Gelu Gemm
GlobalAveragePool GlobalLpPool GlobalMaxPool Greater GreaterOrEqual GridSample GroupNormalization HardSigmoid HardSwish
Hardmax Identity If InstanceNormalization IsInf IsNaN LRN LSTM LayerNormalization LeakyRelu Less LessOrEqual Log
LogSoftmax Loop LpNormalization LpPool MatMul Max MaxPool Mean MeanVarianceNormalization Min Mish Mod Mul Neg
NonMaxSuppression NonZero Not OneHot Or PRelu Pad ParametricSoftplus Pow QuantizeLinear RNN Range Reciprocal ReduceL1
ReduceL2 ReduceLogSum ReduceLogSumExp ReduceMax ReduceMean ReduceMin ReduceProd ReduceSum ReduceSumSquare Relu Reshape
Resize ReverseSequence RoiAlign Round ScaledTanh Scan Scatter ScatterElements ScatterND Selu Shape Shrink Sigmoid Sign
Sin Sinh Size Slice Softmax Softplus Softsign SpaceToDepth Split Sqrt Squeeze Sub Sum Tan Tanh ThresholdedRelu Tile TopK
Transpose Trilu Unsqueeze Upsample Where Xor
"""
_SINCE: dict[str, Version] = {
    "BlackmanWindow": (10, 4),
    "HammingWindow": (10, 4),
    "HannWindow": (10, 4),
    "STFT": (10, 5),
    "Attention": (10, 14),
    "RMSNormalization": (10, 15),
    "RotaryEmbedding": (10, 15),
    "TensorScatter": (10, 15),
}
_OPSETS: tuple[tuple[Version, int], ...] = (((11, 0), 25), ((10, 15), 24), ((10, 14), 23), ((10, 3), 20))
"""Newest opset by oldest version; between 10.3 and 10.13 the documents leave it open, so the one of 10.3 holds."""

_DRAW = "Bernoulli Multinomial RandomNormal RandomNormalLike RandomUniform RandomUniformLike"
_ALWAYS, RANDOM = frozenset(_TABLE.split()), frozenset(_DRAW.split())


def newest_opset(version: Version) -> int:
    """The newest opset that the parser of a version reads."""
    return next(opset for since, opset in _OPSETS if version >= since)


def known_since(operator: str) -> Version | None:
    """The version from which the parser reads an operator; None for one that no version reads."""
    return OLDEST if operator in _ALWAYS else _SINCE.get(operator)
