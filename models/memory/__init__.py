"""Test-time memories: weights that go on learning while the model reads."""

from models.memory.atlas import ATLAS, DEEP_TRANSFORMER, DLA, DOT, OMEGA, SWLA
from models.memory.backbone import Inner
from models.memory.miras import MEMORA, MONETA, YAAD
from models.memory.titans import DELTANET, GATED_DELTANET, LMM, TTT_LINEAR

MEMORIES: dict[str, Inner] = {
    "titans-lmm": LMM,
    "deltanet": DELTANET,
    "gated-deltanet": GATED_DELTANET,
    "ttt-linear": TTT_LINEAR,
    "omega": OMEGA,
    "atlas": ATLAS,
    "dla": DLA,
    "swla": SWLA,
    "deep-transformer": DEEP_TRANSFORMER,
    "dot": DOT,
    "moneta": MONETA,
    "yaad": YAAD,
    "memora": MEMORA,
}
