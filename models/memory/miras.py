"""The three models of Miras: other losses and other ways to forget.

Behrouz, Razaviyayn, Zhong, Mirrokni 2025, arXiv 2504.13173.
"""

from models.memory.backbone import Inner

MONETA = Inner(
    depth=2, bias="lp", power=3.0, retention="lq", dual_power=4.0,
    optimiser="descent",
)  # fmt: skip
# The norm of every residual is clipped: an outlier writes no more than a usual value.
YAAD = Inner(depth=2, bias="huber", optimiser="descent")
MEMORA = Inner(depth=2, retention="softmax", optimiser="descent")
