"""Titans' long-term memory, and the linear memories that it generalises.

Titans: Behrouz, Zhong, Mirrokni 2024, arXiv 2501.00663. DeltaNet: Yang et al. 2024, arXiv 2406.06484; Gated DeltaNet:
Yang et al. 2024, arXiv 2412.06464; TTT-Linear: Sun et al. 2024, arXiv 2407.04620.
"""

from models.memory.backbone import Inner

LMM = Inner(depth=2, optimiser="momentum")
# The delta rule with step 2 * rate: no momentum, no forgetting; exact with a chunk of 1.
DELTANET = Inner(depth=0, optimiser="descent", forgets=False)
# Forgets before it corrects.
GATED_DELTANET = Inner(depth=0, optimiser="descent", decay_first=True)
# Mini-batches of a linear model with residual and norm.
TTT_LINEAR = Inner(depth=1, optimiser="descent", forgets=False)
