"""Weight-space statistics: how a neuron's output weight meets the folded unembedding.

The folded unembedding is Ŵ = C W_U diag(γ) P, (V, d): what a residual direction does to raw logits
up to the norm's scale, and up to what it adds to all of them alike, which softmax does not see. C
takes the mean row off every row; where there is a softcap, which does see it, C is left out. Only
rows that tokens own take part. The model itself is never folded. Everything follows from two d × d
matrices, accumulated in float64 over the vocabulary: Ŵᵀ Ŵ, whose eigenvalues are the squared
singular values (those below 1e-8 of the largest drown in rounding, far below any that matter),
and the same with Ŵ's rows normalised, which holds the variance of every neuron's cosines at once.
"""

import torch

SHARP = 1.5  # a drop between neighbouring singular values that marks a null space


def weight_statistics(
    site, neurons, like, null_dims=None, owned=None, memory=2**29, centre_vocabulary=True
):
    """Statistics of some neurons' output weights, by calling modules only.

    Parameters
    ----------
    site : Site
        Of the neurons' layer.
    neurons : Tensor (n,) int64
    like : Tensor (..., d)
        Any activation of the residual stream.
    null_dims : int, optional
        k; by default `choose_null_dims`.
    owned : Tensor (V,) bool, optional
        Rows of the unembedding that tokens own; others (padding) are left out. By default all.
    memory : int
        Bytes for parts of the unembedding.
    centre_vocabulary : bool
        Whether C is applied, as TransformerLens' ``center_unembed`` does and hence the paper.

    Returns
    -------
    dict of str to Tensor, on the CPU
        ``w_out_norm`` (n,) |w|; ``logit_var`` (n,), unbiased variance over the vocabulary of
        cos(w, Ŵ_t); ``null_fraction`` (n,), ρ(k) = |U_kᵀ w| / |w| over the k bottom singular
        vectors of Ŵ; ``singular_value`` (d,), descending; ``null_dims`` int, k. Here w is what the
        neuron adds to the residual as the final norm sees it: centred for LayerNorm, and γ_p∘P_p w
        under a post-norm. Stolfo et al. 2024 (arXiv 2406.16254).
    """
    with torch.no_grad():
        readout = site.readout_of(like)
        rows = Rows(readout, like, owned, memory, centre_vocabulary)
        gram, spread = rows.products()
        singular, bottom = null_space(gram, null_dims)
        w = written(readout, site, neurons, like, memory)
        norm = w.norm(dim=-1)
        out = {
            "w_out_norm": norm,
            "logit_var": ((w @ spread) * w).sum(-1) / norm.square(),
            "null_fraction": (w @ bottom).norm(dim=-1) / norm,
            "singular_value": singular,
        }
        out = {name: value.float().cpu() for name, value in out.items()}
        out["null_dims"] = bottom.shape[-1]
        return out


def output_norms(site, neurons, like, memory=2**29):
    """``w_out_norm`` (n,) float32 of `weight_statistics`, on the CPU, by itself."""
    with torch.no_grad():
        w = written(site.readout_of(like), site, neurons, like, memory)
        return {"w_out_norm": w.norm(dim=-1).float().cpu()}


def null_space(gram, null_dims=None):
    """Ŵ's singular values (d,), descending, and its k bottom right singular vectors (d, k).

    Parameters
    ----------
    gram : Tensor (d, d)
        Ŵᵀ Ŵ.
    null_dims : int, optional
        k; by default `choose_null_dims`.
    """
    singular, vectors, k = spectrum(gram, null_dims)
    return singular, vectors[-k:].T


def spectrum(gram, null_dims=None):
    """Ŵ's singular values (d,), descending, its right singular vectors, a row each, and k."""
    squares, vectors = torch.linalg.eigh(gram)
    singular = squares.clamp_min(0).sqrt()
    k = choose_null_dims(singular) if null_dims is None else int(null_dims)
    return singular.flip(0), vectors.T.flip(0), k


def choose_null_dims(singular):
    """How many bottom singular vectors count as the unembedding's null space.

    Among the lowest 5 % of the singular values, the place where they drop most steeply, as the
    paper reads it off its figure 2d (k = 12 of 768 for GPT-2 small); where no neighbours differ by
    more than a factor of 1.5 there is no such place, and k is 1 % of the width, rounded up (the
    paper's k = 40 of 4,096 for LLaMA 2). Values that are zero up to rounding, such as LayerNorm's
    constant direction, count among the k but mark no drop.

    Parameters
    ----------
    singular : Tensor (d,)
        Ascending.
    """
    d = len(singular)
    zeros = int((singular <= 1e-6 * singular[-1]).sum())
    last = max(zeros + 1, d // 20)
    ratio = singular[zeros + 1 : last + 1] / singular[zeros:last]
    if len(ratio) and ratio.max() > SHARP:
        return zeros + int(ratio.argmax()) + 1
    return max(1, zeros, -(-d // 100))


def written(readout, site, neurons, like, memory):
    """What some neurons add to the residual as the final norm sees it, (n, d) float64."""
    return readout.centre(weights_in_chunks(site.write_of(like), neurons, like, memory).double())


def weights_in_chunks(write, neurons, like, memory):
    """`Write.directions` of many neurons, (n, d), without a one-hot row for all at once."""
    size = max(1, memory // (8 * (write.width + like.shape[-1])))
    parts = [write.directions(write.weights(some, like)) for some in neurons.split(size)]
    return torch.cat(parts)


class Rows:
    """Products of the folded unembedding's rows, with no more of it in memory than allowed.

    Parameters
    ----------
    readout : Readout
    like : Tensor (..., d)
    owned : Tensor (V,) bool, or None
        Rows that take part.
    memory : int
        Bytes.
    centre_vocabulary : bool
        See `weight_statistics`.
    """

    def __init__(self, readout, like, owned, memory, centre_vocabulary):
        self.readout = readout
        self.like = like
        d = like.shape[-1]
        vocabulary = len(readout.offset)
        self.owned = slice(0, vocabulary)
        if owned is not None:
            index = owned.nonzero()[:, 0].to(like.device)
            vocabulary = len(index)
            unbroken = vocabulary == 0 or int(index[-1]) + 1 == vocabulary  # so no copy is made
            self.owned = slice(0, vocabulary) if unbroken else index
        self.vocabulary = vocabulary
        self.centring = centre_vocabulary and readout.softcap is None
        # The mean row, found block by block of its columns.
        self.common = torch.zeros(d, dtype=torch.float64, device=like.device)
        # Two blocks are held in the model's dtype, and one is being made in float32.
        width = like.element_size() * 2 + 4
        self.size = max(1, min(d, int(0.8 * memory) // (width * len(readout.offset))))
        self.blocks = torch.arange(d, device=like.device).split(self.size)
        # So many columns as caches hold, and no more than memory.
        self.step = max(1, min(vocabulary, 4096, int(0.1 * memory) // (16 * self.size)))

    def block(self, columns):
        """Columns of W_U, transposed: (k, V) in the model's own dtype, hence exactly."""
        eye = torch.zeros(len(columns), self.like.shape[-1], device=self.like.device)
        eye[torch.arange(len(columns), device=eye.device), columns] = 1
        return self.readout.unembed(eye)[:, self.owned].to(self.like.dtype)

    def folded(self, block, columns, some, mean):
        """Part of Ŵᵀ, (k, v) float64."""
        part = block[:, some].double() * self.readout.gain[columns].double()[:, None]
        if self.centring:
            part = part - self.common[columns][:, None]
        return part - mean[some] if self.readout.centred else part

    def mean_row(self, block, columns):
        """Some columns of the mean row of W_U diag(γ), (k,) float64."""
        total = sum(block[:, some].double().sum(1) for some in self.spans())
        return total * self.readout.gain[columns].double() / self.vocabulary

    def spans(self):
        """Slices of the vocabulary."""
        return [slice(v, v + self.step) for v in range(0, self.vocabulary, self.step)]

    def row_statistics(self, first):
        """Mean and norm of every row of C W_U diag(γ), the norm after P: two (V,) float64.

        Finds the mean row, too.
        """
        total = torch.zeros(self.vocabulary, dtype=torch.float64, device=self.like.device)
        squares = torch.zeros_like(total)
        for columns in self.blocks:
            block = first if columns is self.blocks[0] else self.block(columns)
            if self.centring:
                self.common[columns] = self.mean_row(block, columns)
            for some in self.spans():
                part = self.folded(block, columns, some, torch.zeros_like(total))
                total[some] += part.sum(0)
                squares[some] += part.square().sum(0)
        d = self.like.shape[-1]
        mean = total / d
        if self.readout.centred:
            squares = squares - d * mean.square()
        return mean, squares.clamp_min(1e-300).sqrt()

    def gram(self):
        """Ŵᵀ Ŵ, (d, d) float64."""
        first = self.block(self.blocks[0])
        mean, _ = self.row_statistics(first)
        return self.pairs(first, mean, None)[0]

    def products(self):
        """Ŵᵀ Ŵ, and the unbiased covariance of Ŵ's normalised rows: two (d, d) float64."""
        first = self.block(self.blocks[0])
        mean, norm = self.row_statistics(first)
        whole, _ = self.pairs(first, mean, None)
        unit, centre = self.pairs(first, mean, norm)
        centre = centre / self.vocabulary
        unit = unit - self.vocabulary * torch.outer(centre, centre)
        return whole, unit / (self.vocabulary - 1)

    def pairs(self, first, mean, norm):
        """Products of the columns of Ŵ, its rows over their ``norm`` if there is one, (d, d)
        float64; and their sums, (d,)."""
        d, device = self.like.shape[-1], self.like.device
        found = torch.zeros(d, d, dtype=torch.float64, device=device)
        sums = torch.zeros(d, dtype=torch.float64, device=device)
        for i, rows in enumerate(self.blocks):
            left = first if i == 0 else self.block(rows)
            for j, columns in enumerate(self.blocks[: i + 1]):
                right = left if i == j else self.block(columns)
                product, total = self.product(left, rows, right, columns, mean, norm)
                found[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1] = product
                if i == j:
                    sums[rows] = total
        lower = torch.tril(torch.ones(d, d, dtype=torch.bool, device=device))
        return torch.where(lower, found, found.T), sums

    def product(self, left, rows, right, columns, mean, norm):
        """One block of the products, and the sums of its rows."""
        product, total = 0, 0
        for some in self.spans():
            a = self.folded(left, rows, some, mean)
            b = a if left is right else self.folded(right, columns, some, mean)
            if norm is not None:
                a = a / norm[some]
                b = a if left is right else b / norm[some]
            product = product + a @ b.T
            total = total + a.sum(1)
        return product, total
