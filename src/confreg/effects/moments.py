"""Moments of the tokens' distributions: their own, and joint ones with what neurons add.

The products of stage 1 of `confreg.effects.series`, in slices of the vocabulary that stay in the
cache: neither p nor u² is ever held whole.
"""

import torch

BLOCK = 2048  # vocabulary entries at once


class Side:
    """The tokens' side of a block: log p, and moments under p that no neuron enters.

    Attributes
    ----------
    log_p : Tensor (T, V)
    entropy, peak : Tensor (T, 1)
        H, and the largest y.
    mean, reach : list of Tensor (T, 1)
        Mean under p of each variable q, and the largest |q| once centred.
    q_y, qq, qq_y : list of, and lists of lists of, Tensor (T,)
        E[y q_j], E[q_j q_k] and E[y q_j q_k].
    """

    def __init__(self, base):
        self.base = base
        self.log_p = torch.log_softmax(base.readout.finish(base.raw), -1)
        # Without an offset the logits' variable is y.
        self.same = not base.readout.shifted
        self.blocks = [slice(v, v + BLOCK) for v in range(0, self.log_p.shape[1], BLOCK)]
        zero = torch.zeros_like(self.log_p[:, :1])
        self.entropy = zero
        for some in self.blocks:
            part = self.part(some)
            self.entropy = self.entropy - (part.exp() * part).sum(-1, True)
        self.peak = self.log_p.amax(-1, True) + self.entropy
        self.count = 1 if base.mu is None else 2
        self.mean = [zero] * self.count
        self.mean, self.reach = self.centre(zero)  # from here on `variables` is centred
        self.q_y = [zero[:, 0]] * self.count
        self.qq = [[zero[:, 0]] * self.count for _ in range(self.count)]
        self.qq_y = [[zero[:, 0]] * self.count for _ in range(self.count)]
        for some in self.blocks:
            p, py, qs = self.weights(some)
            for j, one in enumerate(qs):
                self.q_y[j] = self.q_y[j] + (py * one).sum(-1)
                for k, other in enumerate(qs):
                    both = one * other
                    self.qq[j][k] = self.qq[j][k] + (p * both).sum(-1)
                    self.qq_y[j][k] = self.qq_y[j][k] + (py * both).sum(-1)

    def centre(self, zero):
        """Means under p of the variables, and how far each reaches from its mean."""
        mean, low, high = (
            [zero] * self.count,
            [zero + 1e30] * self.count,
            [zero - 1e30] * self.count,
        )
        for some in self.blocks:
            p = self.part(some).exp()
            for j, q in enumerate(self.variables(some)):
                mean[j] = mean[j] + (p * q).sum(-1, True)
                low[j] = torch.minimum(low[j], q.amin(-1, True))
                high[j] = torch.maximum(high[j], q.amax(-1, True))
        return mean, [torch.maximum(h - m, m - x) for x, h, m in zip(low, high, mean)]

    def part(self, some):
        """log p for a slice of the vocabulary, (T, v)."""
        return self.log_p[:, some]

    def variables(self, some):
        """The centred variables q for a slice of the vocabulary, list of (T, v)."""
        scale, base = self.base.readout.scale, self.base
        if self.same:
            out = [self.log_p[:, some] - self.mean[0]]
        else:
            out = [scale * (base.raw[:, some] - base.readout.offset[some]) - self.mean[0]]
        if base.mu is not None:
            out.append(scale * base.mu[:, some] - self.mean[1])
        return out

    def weights(self, some):
        """p, p·y and the variables for a slice of the vocabulary."""
        log_p = self.log_p[:, some]
        p = log_p.exp()
        return p, p * (log_p + self.entropy), self.variables(some)

    def at(self, token, entries):
        """For one token and some entries: p, p·y and the variables, each (K,)."""
        log_p = self.log_p[token, entries]
        p = log_p.exp()
        scale, base = self.base.readout.scale, self.base
        if self.same:
            out = [log_p - self.mean[0][token]]
        else:
            clean = base.raw[token, entries] - base.readout.offset[entries]
            out = [scale * clean - self.mean[0][token]]
        if base.mu is not None:
            out.append(scale * base.mu[token, entries] - self.mean[1][token])
        return p, p * (log_p + self.entropy[token]), out

    def y_moment(self, power):
        """E_p[y^power], (T,)."""
        out = torch.zeros_like(self.entropy[:, 0])
        for some in self.blocks:
            _, py, _ = self.weights(some)
            y = self.log_p[:, some] + self.entropy
            out = out + (py * y.pow(power - 1)).sum(-1)
        return out


class Joint:
    """Joint moments under p of u, centred, with y and the variables: each (n, T).

    Attributes
    ----------
    mean : E[u]; y : E[y u]; square : E[u²]; square_y : E[y u²]
    q, q_y : lists of E[u q_j] and E[y u q_j]
    reach : largest |u|
    """

    def __init__(self, side, fan):
        u, tokens = fan.u, len(side.log_p)
        first = second = u.new_zeros(0, 0)
        for some in side.blocks:
            p, py, qs = side.weights(some)
            rows = [p, py]
            for j, q in enumerate(qs):
                # Where q is y, p·q is there already.
                rows += [py * q] if j == 0 and side.same else [p * q, py * q]
            rows = torch.cat(rows)
            part = u[:, some]
            if len(first) == 0:
                first = u.new_zeros(len(u), len(rows))
                second = u.new_zeros(len(u), 2 * tokens)
            first.addmm_(part, rows.T)
            second.addmm_(part.square(), rows[: 2 * tokens].T)
        self.mean, self.y, *rest = first.split(tokens, 1)
        square, square_y = second.split(tokens, 1)
        self.square = (square - self.mean.square()).clamp_min(0)
        self.square_y = square_y - 2 * self.mean * self.y
        self.reach = torch.maximum(fan.high[:, None] - self.mean, self.mean - fan.low[:, None])
        rest = [self.y, *rest] if side.same else rest
        self.q = rest[0::2]
        self.q_y = [x - self.mean * m for x, m in zip(rest[1::2], side.q_y)]


class Cubic:
    """Third-order moments for the neurons that most need them, where the only variable is y.

    Attributes
    ----------
    rows : Tensor (m,) int64
        The neurons.
    """

    def __init__(self, side, fan, joint, rows):
        u, tokens = fan.u.index_select(0, rows), len(side.log_p)
        cube = u.new_zeros(len(rows), 2 * tokens)
        square_yy, yyy = u.new_zeros(len(rows), tokens), u.new_zeros(len(rows), tokens)
        for some in side.blocks:
            p, py, (y,) = side.weights(some)
            part = u[:, some]
            square = part.square()
            pyy = py * y
            square_yy.addmm_(square, pyy.T)
            yyy.addmm_(part, (pyy * y).T)
            cube.addmm_(square.mul_(part), torch.cat((p, py)).T)
        self.rows = rows
        m, uy = joint.mean[rows], joint.y[rows]
        uu, uuy = joint.square[rows], joint.square_y[rows]  # centred
        uyy, yy = joint.q_y[0][rows], side.qq[0][0]
        y3, y4 = side.y_moment(3), side.y_moment(4)
        third, third_y = cube.split(tokens, 1)
        self.terms = (
            (third - 3 * m * uu - m.pow(3), 3 * uuy, 3 * uyy, y3),
            (
                third_y - 3 * m * uuy - 3 * m.square() * uy,
                3 * (square_yy - 2 * m * uyy - m.square() * yy),
                3 * (yyy - m * y3),
                y4,
            ),
        )

    def add(self, sums, gain, c):
        """Add the third order to stage 1's `Sums` (n, T)."""
        g, c = gain[self.rows], c[self.rows]
        powers = (g.pow(3), g.square() * c, g * c.square(), c.pow(3))
        f3, y3 = (sum(x * y for x, y in zip(powers, terms)) for terms in self.terms)
        sums.a[self.rows] += f3 / 6
        sums.b[self.rows] += y3 / 6
        sums.c[self.rows] += f3 / 2
        sums.cubic[self.rows] = 1.0
