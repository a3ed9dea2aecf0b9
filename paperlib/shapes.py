"""Shapes and dtypes of tensors, as types for signatures.

The letters stand for sizes: n images, c channels, h and w pixels, e experts, k classes, s seeds. Within one call the
same letter is the same size; the tests check that with beartype.
"""

from __future__ import annotations

from jaxtyping import Bool, Float, Int64
from torch import Tensor

Images = Float[Tensor, "n c h w"]  # pixels in [0, 1]
Labels = Int64[Tensor, " n"]  # class indices
Logits = Float[Tensor, "n k"]
ExpertLogits = Float[Tensor, "n e k"]
GateLogits = Float[Tensor, "n e"]
GateWeights = Float[Tensor, "n e"]  # non-negative, each row sums to 1
PerImage = Float[Tensor, " n"]  # one value for each image, such as a loss
Correct = Bool[Tensor, " n"]  # True where the prediction is correct
CorrectOverSeeds = Bool[Tensor, "s n"]
