"""Names of the autograd nodes that hold an attention softmax."""

SOFTMAX = frozenset(
    {
        "SoftmaxBackward0",
        "SafeSoftmaxBackward0",  # F.scaled_dot_product_attention where it is not fused
    }
)
FUSED_ATTENTION = frozenset(
    {
        "ScaledDotProductFlashAttentionForCpuBackward0",
        "ScaledDotProductFlashAttentionBackward0",
        "ScaledDotProductEfficientAttentionBackward0",
        "ScaledDotProductCudnnAttentionBackward0",
        "ScaledDotProductFusedAttentionOverrideableBackward0",
    }
)
