"""The variances of exponential smoothing as Hyndman, Koehler, Ord and Snyder (2008), chapter 6, write them.

For the tests and the benchmark: dense matrices and Kronecker products, which no stream could afford.
"""

import numpy as np


def by_the_book(
    form: str, p: dict[str, float], level: float, trend: float, season: np.ndarray, horizon: int
) -> np.ndarray:
    """(H,) variances by the matrices of Hyndman et al. 2008: classes 1 and 2 (6.1, 6.2), class 3 (6.3).

    Written as the book has them: dense matrices, Kronecker products, columns stacked.
    """
    m = len(season)
    alpha, beta, gamma, phi, v = (p[name] for name in ("alpha", "beta", "gamma", "phi", "sigma2"))
    a = np.array([[1, phi], [0, phi]])
    w = np.array([[1.0, phi]])
    g = np.array([[alpha], [beta]])
    shift = np.roll(np.eye(m), 1, 0)  # the newest season first, the last is next
    newest, next_ = np.eye(m)[:, :1], np.eye(m)[-1:]
    if form[-1] == "M":
        f, f1, f2, g1, g2 = np.kron(shift, a), a, shift, g @ w, gamma * newest @ next_
        h, big_g = np.kron(next_, w), np.kron(g2, g1)
        k = np.kron(g2, f1) + np.kron(f2, g1)
        mean, spread, result = np.outer([level, trend], season[::-1]), np.zeros((2 * m, 2 * m)), []
        for _ in range(horizon):
            mu = (w @ mean @ next_.T).item()
            result.append((1 + v) * (h @ spread @ h.T).item() + v * mu**2)
            stacked = np.outer(mean.flatten("F"), mean.flatten("F"))
            spread = f @ spread @ f.T + v * (
                f @ spread @ big_g.T + big_g @ spread @ f.T + k @ (spread + stacked) @ k.T
                + v * big_g @ (3 * spread + 2 * stacked) @ big_g.T
            )  # fmt: skip
            mean = f1 @ mean @ f2.T + v * g1 @ mean @ g2.T
        return np.array(result)
    zero = np.zeros((2, m))
    f = np.block([[a, zero], [zero.T, shift]])
    h = np.concatenate([w, next_], 1)
    g = np.concatenate([g, gamma * newest])
    response = [(h @ np.linalg.matrix_power(f, j - 1) @ g).item() for j in range(1, horizon)]
    if form[0] == "A":
        return v * (1 + np.concatenate([[0], np.cumsum(np.square(response))]))
    state = np.concatenate([[level, trend], season[::-1]])
    means = np.array([(h @ np.linalg.matrix_power(f, j) @ state).item() for j in range(horizon)])
    theta = []
    for step in range(horizon):
        theta.append(means[step] ** 2 + v * sum(response[j] ** 2 * theta[step - 1 - j] for j in range(step)))
    return (1 + v) * np.array(theta) - means**2
