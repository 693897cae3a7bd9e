"""Test-time memories: weights that go on learning while the model reads."""

from models.memory.atlas import ATLAS, DEEP_TRANSFORMER, DLA, DOT, OMEGA, SWLA
from models.memory.backbone import Inner
from models.memory.miras import MEMORA, MONETA, YAAD
from models.memory.titans import DELTANET, GATED_DELTANET, LMM, TTT_LINEAR

NAMED: dict[str, tuple[str, Inner]] = {
    "titans-lmm": ("Titans: learns from surprise, with momentum", LMM),
    "deltanet": ("matrix that learns by the delta rule", DELTANET),
    "gated-deltanet": ("delta rule that forgets first", GATED_DELTANET),
    "ttt-linear": ("linear model trained as it reads", TTT_LINEAR),
    "omega": ("learns from a window of tokens", OMEGA),
    "atlas": ("window of tokens, learned with Muon", ATLAS),
    "dla": ("deep linear attention", DLA),
    "swla": ("linear attention over windows", SWLA),
    "deep-transformer": ("deep attention, kernel exp cut at degree 3", DEEP_TRANSFORMER),
    "dot": ("Omega rule, kernel exp cut at degree 3", DOT),
    "moneta": ("cubic loss, weights in an lq ball", MONETA),
    "yaad": ("Huber loss: outliers write little", YAAD),
    "memora": ("weights that share a fixed mass", MEMORA),
}
MEMORIES: dict[str, Inner] = {name: inner for name, (_, inner) in NAMED.items()}
