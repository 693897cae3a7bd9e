"""ATLAS and its relatives: learning from a window of tokens, in polynomial features, with Muon.

Behrouz et al. 2025, arXiv 2505.23735; signs as corrected there by differentiation: what is stored is +v k'. Two of its
models ask for phi*, features of infinite degree whose kernel is exp(q . k). A deep memory needs features that can be
written down, so theirs end at degree PHI_STAR: for unit vectors the kernel misses exp(q . k) by up to 0.052.
"""

from models.memory.backbone import Inner

WINDOW = 4
DEGREE = 2  # of phi_p
PHI_STAR = 3
OMEGA = Inner(depth=2, optimiser="descent", window=WINDOW, degree=DEGREE)
ATLAS = Inner(depth=2, optimiser="muon", window=WINDOW, degree=DEGREE)
DLA = Inner(depth=2, bias="dot", optimiser="descent", degree=DEGREE)
# Sliding-window linear attention: a matrix that stores the window's pairs as they are.
SWLA = Inner(depth=0, bias="dot", optimiser="descent", window=WINDOW, degree=DEGREE)
# DLA with phi*.
DEEP_TRANSFORMER = Inner(depth=2, bias="dot", optimiser="descent", degree=PHI_STAR)
# The Omega rule with phi*.
DOT = Inner(depth=2, optimiser="descent", window=WINDOW, degree=PHI_STAR)
