"""The logistic regression of SAEBench's probes, to the last bit, whatever NumPy is installed.

It is scikit-learn's `LogisticRegression(C=1, max_iter=1000)` on float32 features: its loss, minimised by SciPy's L-BFGS-B. What NumPy 1,
the only one that sae_bench runs on, computes in float64 and NumPy 2 in float32 is made float64 here: the mean of the losses and the
penalty, both a float32 number times a Python one. On raw channels, which are badly scaled, the search would else end elsewhere.
"""

from collections.abc import Callable
from typing import Any

import numpy as np
from jaxtyping import Bool, Float32

from temporallens.errors import TemporalLensError, first_line

ITERATIONS, LINE_SEARCHES, GRADIENT_TOLERANCE = 1000, 50, 1e-4
LOSS_TOLERANCE = 64 * float(np.finfo(float).eps)
"""scikit-learn's settings of the search, but for the number of iterations, which is SAEBench's."""


def fit_logistic(x: Float32[np.ndarray, "m k"], positive: Bool[np.ndarray, " m"]) -> Float32[np.ndarray, " k1"]:
    """Weights and, last, the intercept of an L2-regularised logistic regression, converged or not.

    Raises TemporalLensError where the installed scikit-learn has no such losses.
    """
    from scipy.optimize import minimize

    raw_predictions, loss_gradient = _losses()
    x, target = np.ascontiguousarray(x), positive.astype(x.dtype)
    strength = 1.0 / len(x)

    def objective(coefficients: Float32[np.ndarray, " k1"]) -> tuple[float, Any]:
        weights, _, raw = raw_predictions(coefficients, x)  # SciPy hands them over in float32, as they began
        losses, slopes = loss_gradient(y_true=target, raw_prediction=raw)
        slopes /= len(x)
        gradient = np.append(x.T @ slopes + strength * weights, slopes.sum())
        return float(losses.sum()) / len(x) + 0.5 * strength * float(weights @ weights), gradient

    options = {"maxiter": ITERATIONS, "maxls": LINE_SEARCHES, "gtol": GRADIENT_TOLERANCE, "ftol": LOSS_TOLERANCE}
    found = minimize(objective, np.zeros(x.shape[1] + 1, x.dtype), method="L-BFGS-B", jac=True, options=options)
    return found.x.astype(x.dtype)


def _losses() -> tuple[Callable[..., Any], Callable[..., Any]]:
    """What scikit-learn computes of coefficients, and of their raw predictions: private to it, so any version may move them."""
    try:
        from sklearn._loss import HalfBinomialLoss
        from sklearn.linear_model._linear_loss import LinearModelLoss

        linear = LinearModelLoss(base_loss=HalfBinomialLoss(), fit_intercept=True)
        return linear.weight_intercept_raw, HalfBinomialLoss().loss_gradient
    except (ImportError, AttributeError) as error:
        raise TemporalLensError(
            "sparse probing computes with private losses of scikit-learn, which the installed version lacks "
            f"({first_line(error)}); install a version that TemporalLens names: pip install 'scikit-learn>=1.9,<1.10'"
        ) from error


def predict_logistic(coefficients: Float32[np.ndarray, " k1"], x: Float32[np.ndarray, "n k"]) -> Bool[np.ndarray, " n"]:
    """Whether the model takes each row for positive."""
    with np.errstate(invalid="ignore"):  # vectorised products raise the flag of lanes that they do not use
        return (np.ascontiguousarray(x) @ coefficients[:-1, None] + coefficients[-1:])[:, 0] > 0
