"""ATLAS and its relatives: learning from a window of tokens, in polynomial features, with Muon.

Behrouz et al. 2025, arXiv 2505.23735; signs as corrected there by differentiation: what is stored is +v k'.
"""

from models.memory.backbone import Inner

WINDOW = 4
OMEGA = Inner(depth=2, optimiser="descent", window=WINDOW, degree=2)
ATLAS = Inner(depth=2, optimiser="muon", window=WINDOW, degree=2)
# DeepTransformer with the exponential features cut off at degree 2: a dot-product bias, deep memory, no window.
DEEP_TRANSFORMER = Inner(depth=2, bias="dot", optimiser="descent", degree=2)
# The same over a window of tokens with a matrix: sliding-window linear attention.
SWLA = Inner(depth=0, bias="dot", optimiser="descent", window=WINDOW, degree=2)
