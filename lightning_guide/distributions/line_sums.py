"""Fast sums over Gaussians that lie on a line and share a covariance, the inner loop of `line_mixture`.

A line b has a center c_b, a vector e_b, one covariance Sigma_b and a weight w_b; its J components have the means
c_b + f_j e_b, with the same fractions f_j on every line. With u = x - c_b and P = (Sigma_b + sigma^2 I)^-1
the J quadratic forms of one point and one line share three numbers:

    (u - f e)^T P (u - f e) = R + C (f - t)^2,
    C = e^T P e,   t = e^T P u / C,   R = (u x e)^2 det P / C.

R contains the cross product of u and e, so that nothing cancels. The cost per point and component is then a square and
an exponential; everything else is computed per point and line. Let g = t clamped to the range of the f_j, and
n = t - g. Exponents are relative to the likeliest point of the line, so that none is positive, even with rounding at
far points:

    -(R + C (f - t)^2) / 2 = -(R + C n^2) / 2 - (g - f) (C n + C (g - f) / 2),      n (g - f) >= 0.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

__all__ = ["LineSums", "Lines", "WORK_ARRAYS", "line_sums"]


LOG2_E = 1 / math.log(2)


# Smallest exponent of 2 relative to the peak. 2^-85 is far below the rounding of float32, and keeps all products
# above the denormal numbers, on which a CPU is a hundred times slower.
LOWEST = -85.0


WORK_ARRAYS = 12


@dataclass(frozen=True)
class Lines:
    """N lines, coordinates first, and their common ascending `fractions`, measured from the center.

    `center` and `vector` are (2, N), `weights` (N,). The covariance is given by its `eigenvalues` (2, N) and `axes`
    (2, 2, N): axes[i] are the eigenvectors of eigenvalue i. `along` (2, N) is the vector in coordinates of the axes.
    """

    center: Tensor
    vector: Tensor
    along: Tensor
    eigenvalues: Tensor
    axes: Tensor
    weights: Tensor
    fractions: tuple[float, ...]


@dataclass(frozen=True)
class LineSums:
    """Sums over the components of each of N lines at n points, scaled by e^-peak.

    `Z` = w sqrt(det P) sum_j p_j and `F` = w sqrt(det P) sum_j f_j p_j (n, N), p_j being the exponentials above;
    `v1`, `v2` (n, N), the vector P (F e - Z u) along the two axes; `total` = sum_b Z_b (n,) and `peak` (n,).
    So p(x; sigma) = e^peak total / (2 pi J) and score = sum_b (v1 axis_1 + v2 axis_2) / total.
    """

    Z: Tensor
    F: Tensor
    v1: Tensor
    v2: Tensor
    total: Tensor
    peak: Tensor


def line_sums(x: Tensor, sigma: Tensor, lines: Lines, work: Tensor) -> LineSums:
    """Compute the sums at `x` (n, 2) and `sigma` (n,), as views of `work` (WORK_ARRAYS, n, N), which is overwritten.

    All tensors have one dtype and device; none may require a gradient. PyTorch splits `exp` and `sqrt` of 2048 numbers
    over threads, but `exp2` and `rsqrt`, like most operations, of 32768 (see ELEMENTS_CPU in `line_mixture`).
    """
    (l1, l2), (e1, e2), (cx, cy), ((a1x, a1y), (a2x, a2y)) = lines.eigenvalues, lines.along, lines.center, lines.axes
    P1, P2, u1, u2, half, g, slope, base, Z, F, a, b = work
    variance = sigma.square()[:, None]

    # Eigenvalues of P, and u along its axes.
    torch.add(l1, variance, out=P1).reciprocal_()
    torch.add(l2, variance, out=P2).reciprocal_()
    torch.sub(x[:, :1], cx, out=a)
    torch.sub(x[:, 1:], cy, out=b)
    torch.mul(a, a1x, out=u1).addcmul_(b, a1y)
    torch.mul(a, a2x, out=u2).addcmul_(b, a2y)

    # a = C, b = t, base = -R / 2.
    torch.mul(P1, e1 * e1, out=a).addcmul_(P2, e2 * e2)
    torch.mul(u1, e1, out=b).mul_(P1)
    torch.mul(u2, e2, out=g).mul_(P2)
    b.add_(g).div_(a)
    torch.mul(u1, e2, out=base).addcmul_(u2, e1, value=-1)
    base.square_().mul_(P1).mul_(P2).div_(a).mul_(-0.5 * LOG2_E)

    # half = -C / 2, slope = -C n, base = -(R + C n^2) / 2 - peak, all in units of log 2.
    torch.mul(a, -0.5 * LOG2_E, out=half)
    torch.clamp(b, lines.fractions[0], lines.fractions[-1], out=g)
    b.sub_(g)
    torch.mul(b, half, out=slope)
    base.addcmul_(slope, b)
    slope.mul_(2)
    peak = base.amax(1, keepdim=True)
    base.sub_(peak)

    Z.zero_()
    F.zero_()
    for f in lines.fractions:
        torch.sub(g, f, out=a)
        torch.addcmul(slope, half, a, out=b)
        torch.addcmul(base, a, b, out=b).clamp_(min=LOWEST).exp2_()
        Z.add_(b)
        F.add_(b, alpha=f)

    torch.mul(P1, P2, out=a).mul_(torch.rsqrt(a, out=b)).mul_(lines.weights)
    Z.mul_(a)
    F.mul_(a)
    v1 = torch.mul(F, e1, out=a).addcmul_(u1, Z, value=-1).mul_(P1)
    v2 = torch.mul(F, e2, out=b).addcmul_(u2, Z, value=-1).mul_(P2)
    return LineSums(Z=Z, F=F, v1=v1, v2=v2, total=Z.sum(1), peak=peak.squeeze(1) / LOG2_E)
