"""Planted faults: one-line bugs that the tests must notice, each by tests of two kinds.

Most of them were made, by others or by us; where an issue elsewhere reports one, it is named. A fault replaces a part
of one line, `old`, which must occur exactly once in the file, by `new`. `plant_faults.py` applies and judges them.
"""

from __future__ import annotations

import re
from typing import NamedTuple


class Fault(NamedTuple):
    """One bug: what it is called, what it is about, where it goes, and which test files should notice."""

    name: str
    about: str
    file: str  # in minisimclr/
    old: str
    new: str
    tests: str  # names of test files, without "test_" and ".py"


# fmt: off
FAULTS = [
    # ── The loss, plain ───────────────────────────────────────────────────────────────────────────
    Fault("composed-neighbours-as-positives", "loss", "ntxent/plain.py",
          "positive = (xp.arange(2 * N) + N) % (2 * N)", "positive = xp.arange(2 * N) ^ 1", "ntxent ops"),
    Fault("composed-self-similarity-zero", "loss", "ntxent/plain.py",  # e⁰ = 1 stays in the sum
          "ops.cross_entropy(logits + not_itself,", "ops.cross_entropy(logits * (1 - xp.eye(2 * N)),", "ntxent ops"),
    Fault("composed-without-temperature", "loss", "ntxent/plain.py",
          "logits = u @ u.T / temperature  # (2N,2N), all", "logits = u @ u.T  # (2N,2N), all", "ntxent ops"),
    Fault("plain-neighbours-as-positives", "loss", "ntxent/plain.py",
          "positive = (anchor + N) % (2 * N)", "positive = anchor ^ 1", "ntxent ops"),
    Fault("plain-one-role-forgotten", "loss", "ntxent/plain.py",
          "du = (dlogits + dlogits.T) @ u", "du = dlogits @ u", "ntxent ops"),
    Fault("plain-mean-over-images", "loss", "ntxent/plain.py",
          "dlogits *= g / (2 * N)", "dlogits *= g / N", "ntxent ops"),
    Fault("plain-seed-ignored", "loss", "ntxent/plain.py",
          "dlogits *= g / (2 * N)", "dlogits *= 1 / (2 * N)", "ntxent ops"),
    Fault("plain-gradient-without-temperature", "loss", "ntxent/plain.py",
          "(dlogits + dlogits.T) @ u / temperature", "(dlogits + dlogits.T) @ u", "ntxent ops"),
    Fault("plain-norm-not-differentiated", "loss", "ntxent/plain.py",
          "dz = (du - u * (u * du).sum(axis=1, keepdims=True)) / length", "dz = du / length", "ntxent ops"),
    Fault("plain-chooses-itself", "loss", "ntxent/plain.py",
          "logits[anchor, anchor] = -xp.inf", "logits[anchor, anchor] += 0", "ntxent ops"),
    Fault("plain-positive-not-pulled", "loss", "ntxent/plain.py",
          "dlogits[anchor, positive] -= 1", "dlogits[anchor, positive] -= 0", "ntxent ops"),
    Fault("plain-no-shift", "loss", "ntxent/plain.py",  # exp overflows at a low temperature
          "logits -= logits.max(axis=1, keepdims=True)", "logits -= 0", "ntxent ops"),
    # ── The loss, exact ───────────────────────────────────────────────────────────────────────────
    Fault("neighbours-as-positives", "loss", "ntxent/exact.py",  # Spijkervet/SimCLR#30, #37, #46
          "partner = (anchor + len(za)) % n ", "partner = anchor ^ 1 ", "ntxent"),
    Fault("self-similarity-zero", "loss", "ntxent/exact.py",  # google-research/simclr#20: 0 instead of left out
          "margin[anchor, anchor] += -xp.inf", "margin[anchor, anchor] = -positive[:, 0] / temperature", "ntxent"),
    Fault("positive-among-negatives", "loss", "ntxent/exact.py",
          "margin[anchor, partner] += -xp.inf", "margin[anchor, partner] += 0", "ntxent"),
    Fault("columns-forgotten", "loss", "ntxent/exact.py",  # half the norm, almost the right direction
          "return negatives, (p + p.T) @ u, q", "return negatives, p @ u, q / 2", "ntxent"),
    Fault("columns-doubled-rows", "loss", "ntxent/exact.py", "(p + p.T) @ u", "(p + p) @ u", "ntxent"),
    Fault("gradient-of-the-sum-of-views", "loss", "ntxent/exact.py",
          "du / (n * temperature)", "du / (len(za) * temperature)", "ntxent"),
    Fault("gradient-without-temperature", "loss", "ntxent/exact.py", "du / (n * temperature)", "du / n", "ntxent"),
    Fault("loss-twice", "loss", "ntxent/exact.py",  # the mean over N in place of 2N anchors
          "log_one_plus(negatives, shift).mean()", "log_one_plus(negatives, shift).mean() * 2", "ntxent"),
    Fault("positive-among-the-common-part", "loss", "ntxent/exact.py",  # at a high temperature
          "negatives / total + common", "negatives / total", "ntxent"),
    Fault("sum-of-differences-without-the-ones", "loss", "ntxent/exact.py",
          "negatives = (n - 2) + e.sum(", "negatives = (n - 1) + e.sum(", "ntxent"),
    Fault("norm-not-differentiated", "loss", "ntxent/exact.py",
          "tangent = du - u * (u * du).sum(axis=1, keepdims=True)", "tangent = du", "ntxent"),
    Fault("log-of-one-plus", "loss", "ntxent/exact.py",
          "xp.log1p(negatives + xp.expm1(-shift))", "xp.log(negatives + xp.exp(-shift))", "ntxent"),
    Fault("no-shift", "loss", "ntxent/exact.py",  # Lightning-Universe/lightning-bolts#811: NaN at a low temperature
          "shift = xp.maximum(margin.max(axis=1, keepdims=True), 0)", "shift = 0 * positive", "ntxent"),
    Fault("zero-row-exploding", "loss", "ntxent/exact.py",
          "tangent / norm / xp.where(scale == 0, xp.inf, scale)", "tangent / norm / (scale + 1e-12)", "ntxent"),
    # ── The loss, tiled, and its doors ────────────────────────────────────────────────────────────
    Fault("tile-serves-rows-only", "loss", "ntxent/tiled.py",
          " negatives[J] += _column_sums(e)", " negatives[J] += _column_sums(0 * e)", "ntxent"),
    Fault("tile-gradient-to-rows-only", "loss", "ntxent/tiled.py",
          "(J, I, m.T)) if", "(J, I, 0 * m.T)) if", "ntxent"),
    Fault("tile-weighs-rows-twice", "loss", "ntxent/tiled.py",
          "np.add(self.weight[I][:, None], self.weight[J],", "np.add(self.weight[I][:, None], self.weight[I][:, None],",
          "ntxent"),
    Fault("tile-keeps-the-positive", "loss", "ntxent/tiled.py",
          "if j in (i, i + self.half):", "if j == i:", "ntxent"),
    Fault("tile-shift-of-rows-only", "loss", "ntxent/tiled.py",
          "np.maximum(self.top[J], cosine.max(axis=0)", "np.maximum(self.top[J], -1", "ntxent"),
    Fault("another-temperature", "loss", "ntxent/__init__.py",  # value and gradient alike: no differences see it
          "copy=False), float(temperature)", "copy=False), 2 * float(temperature)", "ntxent"),
    Fault("seed-ignored", "loss", "ntxent/__init__.py", "return g * dza, g * dzb", "return dza, dzb", "ntxent ops"),

    # ── The loss, on a GPU ────────────────────────────────────────────────────────────────────────
    Fault("last-anchors-without-a-block", "loss", "ntxent/cuda.py",
          "blocks = -(-n // precision.rows)", "blocks = max(1, n // precision.rows)", "ntxent_cuda"),
    Fault("last-columns-without-a-block", "loss", "ntxent/cuda.py",
          "return share * tile, -(-tiles // share)", "return share * tile, tiles // share", "ntxent_cuda"),
    Fault("no-block-for-the-mean", "loss", "ntxent/cuda.py", "(blocks + 1, shares)", "(blocks, shares)", "ntxent_cuda"),
    Fault("gradient-of-the-first-share", "loss", "ntxent/common.cuh",
          "part < gridDim.y; part++) du +=", "part < 1; part++) du +=", "ntxent_cuda"),
    Fault("kernel-keeps-the-positive", "loss", "ntxent/common.cuh",
          "j != i && j != partner_of(i, n)", "j != i", "ntxent_cuda"),
    Fault("partners-to-the-right-overlooked", "loss", "ntxent/common.cuh",
          "from <= top + n / 2;", "from <= top;", "ntxent_cuda"),
    Fault("kernel-pulls-by-its-own-loss", "loss", "ntxent/common.cuh",
          "-expm1f(-loss[i]) - expm1f(-loss[partner])", "-2 * expm1f(-loss[i])", "ntxent_cuda"),
    Fault("operand-halves-swapped", "loss", "ntxent/tensor.cu",
          "row = lane / 8 % 2 * 8 + lane % 8, side = lane / 16 * 8",
          "row = lane / 16 * 8 + lane % 8, side = lane / 8 % 2 * 8", "ntxent_cuda"),
    Fault("second-part-forgotten", "loss", "ntxent/tensor.cu",
          "rounded += low_half(next)", "rounded = low_half(next)", "ntxent_cuda"),
    Fault("tensor-columns-forgotten", "loss", "ntxent/tensor.cu",
          "(x - tile.positive[j]) * invtau - tile.loss[j]", "(x - here[r]) * invtau - loss[r]", "ntxent_cuda"),

    # ── The engine ────────────────────────────────────────────────────────────────────────────────
    Fault("last-contribution-wins", "engine", "engine/autograd.py",
          "gradients[parent] = as_array(gradients[parent] + part)", "gradients[parent] = part", "autograd"),
    Fault("contributions-added-in-place", "engine", "engine/autograd.py",
          "gradients[parent] = as_array(gradients[parent] + part)", "gradients[parent] += part", "autograd simclr"),
    Fault("mean-over-stretched-axes", "engine", "engine/autograd.py",
          "gradient.sum(axis=(*range(lead), *stretched))", "gradient.mean(axis=(*range(lead), *stretched))",
          "autograd ops"),
    Fault("no-order-of-age", "engine", "engine/autograd.py",
          "heapq.heappop(waiting)", "waiting.pop()", "autograd simclr"),
    Fault("graph-never-freed", "engine", "engine/autograd.py",
          "parents, node.parents, node.vjp, node.hold = node.parents, (), None, None", "parents = node.parents",
          "autograd guard"),
    Fault("gradient-overwritten", "engine", "engine/autograd.py",
          "gradient.copy() if leaf.grad is None else as_array(leaf.grad + gradient)", "gradient.copy()",
          "autograd gradcheck"),
    Fault("gradient-is-the-seed", "engine", "engine/autograd.py",
          "leaf.grad = gradient.copy() if", "leaf.grad = gradient if", "autograd ops"),
    Fault("gradients-promoted", "engine", "engine/autograd.py",
          "return gradient.astype(parent.dtype, copy=False)", "return gradient.astype('f8')", "autograd ops"),
    Fault("saved-arrays-unguarded", "engine", "engine/autograd.py",
          "vjp, Hold(inputs, guard))", "vjp, Hold((), Guard(value)))", "guard"),

    # ── What a graph keeps ────────────────────────────────────────────────────────────────────────
    Fault("needed-at-most-once", "kept", "engine/guard.py",
          "guard.needed_by.pop(key, None)", "guard.needed_by.clear()", "guard"),
    Fault("view-locked-but-not-its-owner", "kept", "engine/guard.py",
          "while array.base is not None and is_array(array.base):", "while False:", "guard autograd"),
    Fault("locked-for-ever", "kept", "engine/guard.py",
          "array.setflags(write=free)", "array.setflags(write=False)", "guard optim"),
    Fault("looked-at-once", "kept", "engine/guard.py",  # a thread that comes between leaves the flag wrong
          "while free != (free := self.open", "if free != (free := self.open", "guard"),
    Fault("change-unnoticed", "kept", "engine/guard.py",
          "if guard.needed_by[key] != guard.version:", "if False:", "guard"),
    Fault("change-uncounted", "kept", "engine/guard.py",
          "guard.version += 1", "guard.version += 0", "guard"),
    Fault("door-left-open", "kept", "engine/guard.py", "guard.open = False", "pass", "guard"),
    Fault("door-closed-to-optimizers", "kept", "engine/guard.py", "guard.open = True", "pass", "guard"),
    Fault("shared-array-counted-twice", "kept", "engine/ledger.py", "counted.add(id(array))", "pass", "autograd"),

    # ── The gradient checks ───────────────────────────────────────────────────────────────────────
    Fault("last-input-alone-checked", "gradcheck", "checks/gradcheck.py", "found += [", "found = [",
          "gradcheck"),
    Fault("difference-of-the-wrong-order", "gradcheck", "checks/gradcheck.py", "(8 * near - far)", "(8 * near + far)",
          "gradcheck"),
    Fault("path-twice-as-long", "gradcheck", "checks/gradcheck.py",
          "np.tile(weights / 2, panels)", "np.tile(weights, panels)", "gradcheck"),
    Fault("nan-is-no-error", "gradcheck", "checks/gradcheck.py",
          "key=lambda c: (np.isnan(c.error), c.error)", "key=lambda c: (not np.isnan(c.error), c.error)",
          "gradcheck ops"),
    Fault("slope-along-nothing", "gradcheck", "checks/gradcheck.py",
          "self.points[k] + h * direction,", "self.points[k] + h * abs(direction),", "gradcheck"),

    # ── Operations ────────────────────────────────────────────────────────────────────────────────
    Fault("minus-with-plus", "operations", "ops/basic.py", "(g, lambda: -g)", "(g, lambda: g)", "ops autograd"),
    Fault("quotient", "operations", "ops/basic.py", "-g * (x / y) / y", "-g * (x / y)", "ops autograd"),
    Fault("exponent-not-lowered", "operations", "ops/basic.py",
          "(exponent * x ** (exponent - 1))", "(exponent * x ** exponent)", "ops autograd"),
    Fault("relu-open-at-zero", "operations", "ops/basic.py", "g * (y > 0)", "g * (x >= 0)", "ops autograd"),
    Fault("mean-by-all", "operations", "ops/basic.py",
          "count = x.size // (math.prod(kept) or 1)", "count = x.size or 1", "ops autograd"),
    Fault("transposed-forth-not-back", "operations", "ops/shapes.py", "g.transpose(back)", "g.transpose(axes)",
          "ops autograd"),
    Fault("repeated-index-once", "operations", "ops/shapes.py", "        if repeats:", "        if False:",
          "ops autograd"),
    Fault("ties-each-get-all", "operations", "ops/basic.py",
          "largest.sum(axis=axis, keepdims=True).astype(x.dtype)", "xp.ones((), x.dtype)", "ops autograd"),
    Fault("cross-entropy-not-meant", "operations", "ops/loss.py", "dlogits * (g / len(rows))", "dlogits * g", "ops"),
    Fault("cross-entropy-overflows", "operations", "ops/loss.py",
          "shifted = logits - logits.max(axis=1, keepdims=True)", "shifted = logits - 0", "ops"),
    Fault("kernel-turned-round", "operations", "ops/conv/slabs.py",  # forward and back alike: no differences see it
          "reads.append((k, range", "reads.append((kernel - 1 - k, range", "ops winograd"),
    Fault("thin-kernel-gradient", "operations", "ops/conv/slabs.py",
          "parts.sum(axis=0).reshape(w.shape)", "parts[:1].sum(axis=0).reshape(w.shape)", "ops simclr"),
    Fault("kernel-gradient-last-row", "operations", "ops/conv/slabs.py",
          "sums[worker, i, j] += product", "sums[worker, i, j] = product", "ops simclr"),
    Fault("tied-pixels-each-get-all", "operations", "ops/pool/threaded.py",
          "waiting[windows] &= ~first", "waiting[windows] &= True", "ops plain"),
    Fault("padding-counts-in-max-pool", "operations", "ops/pool/threaded.py",
          "*x.shape[2:]), -xp.inf, x.dtype)", "*x.shape[2:]), 0, x.dtype)", "ops"),
    Fault("length-not-differentiated", "operations", "ops/norm/__init__.py",
          "across = g - u * (u * g).sum(axis=1, keepdims=True)", "across = g", "ops"),

    # ── The plain forms ───────────────────────────────────────────────────────────────────────────
    Fault("plain-kernel-turned-round", "operations", "ops/conv/plain.py",
          "@ w[i, j] for i, j in taps", "@ w[-1 - i, -1 - j] for i, j in taps", "ops plain"),
    Fault("plain-gradient-of-the-last-tap", "operations", "ops/conv/plain.py",
          "dpadded[below(i, j)] += g", "dpadded[below(i, j)] = g", "ops plain"),
    Fault("plain-gradient-of-the-padding", "operations", "ops/conv/plain.py",
          "dpadded[padding : padding + H, padding : padding + W]", "dpadded[:H, :W]", "ops plain"),
    Fault("plain-stride-forgotten", "operations", "ops/conv/plain.py",
          "slice(i, i + stride * out_h, stride)", "slice(i, i + out_h)", "ops plain"),
    Fault("plain-padding-counts-in-max-pool", "operations", "ops/pool/plain.py",
          "constant_values=-xp.inf", "constant_values=0", "ops plain"),
    Fault("plain-tied-pixels-each-get-all", "operations", "ops/pool/plain.py",
          "waiting &= ~first", "waiting &= True", "ops plain"),
    Fault("plain-windows-overwrite-each-other", "operations", "ops/pool/plain.py",
          "dpadded[below(i, j)] += g * first", "dpadded[below(i, j)] = g * first", "ops plain"),
    Fault("nan-swallows-the-gradient", "operations", "ops/pool/plain.py",
          "(pixels == y) | xp.isnan(pixels)", "pixels == y", "ops plain"),

    Fault("winograd-wrong-denominators", "operations", "ops/conv/winograd.py",
          "g.append([p**k / denominator", "g.append([p**k * denominator", "winograd"),
    Fault("winograd-seams-overwritten", "operations", "ops/conv/winograd.py",
          "part[here] += _square(window)[inside]", "part[here] = _square(window)[inside]", "winograd"),
    Fault("winograd-last-block-of-kernel-gradient", "operations", "ops/conv/winograd.py",
          "du[p] += product", "du[p] = product", "winograd"),
    Fault("winograd-window-not-cleared", "operations", "ops/conv/winograd.py",
          "        place[...] = 0", "        pass", "winograd"),

    # ── Layers ────────────────────────────────────────────────────────────────────────────────────
    Fault("batch-mean-is-a-constant", "layers", "ops/norm/fused.py",
          "part += dshift", "part += 0", "ops simclr"),
    Fault("variance-by-squares", "layers", "ops/norm/fused.py",
          "_sum(xp, centred) / len(part)", "_sum(xp, part * part) / len(part) - means[chunk] ** 2", "ops plain"),
    Fault("variance-within-the-chunks-only", "layers", "ops/norm/fused.py",
          "share @ (variances + (means - mean) ** 2)", "share @ variances", "ops plain"),
    Fault("eps-outside-the-root", "layers", "ops/norm/fused.py",
          "xp.sqrt(variance + eps)", "(xp.sqrt(variance) + eps)", "ops nn"),
    Fault("relu-opened-by-its-input", "layers", "ops/norm/fused.py",
          "xp.multiply(g[rows], y[rows] > 0,", "xp.multiply(g[rows], table[rows] > 0,", "ops simclr"),
    Fault("plain-batch-mean-is-a-constant", "layers", "ops/norm/plain.py",
          "(dshift + xhat * dscale) / M", "xhat * dscale / M", "ops plain"),
    Fault("plain-batch-variance-is-a-constant", "layers", "ops/norm/plain.py",
          "(dshift + xhat * dscale) / M", "dshift / M", "ops plain"),
    Fault("plain-variance-by-squares", "layers", "ops/norm/plain.py",
          "return mean, (centred * centred).mean(axis=rows)", "return mean, (x * x).mean(axis=rows) - mean * mean",
          "ops plain"),
    Fault("plain-eps-outside-the-root", "layers", "ops/norm/plain.py",
          "xp.sqrt(variance + eps)", "(xp.sqrt(variance) + eps)", "ops plain"),
    Fault("plain-relu-before-the-shortcut", "layers", "ops/norm/__init__.py",
          "y = y + other  # (…,C)", "y = basic.relu(y) + other if relu else y + other", "ops plain"),
    Fault("batch-statistics-are-constants", "layers", "nn.py", "batch=train, relu=relu", "batch=False, relu=relu",
          "nn simclr"),
    Fault("running-variance-biased", "layers", "nn.py", "variance * (count / (count - 1))", "variance", "nn"),
    Fault("momentum-the-other-way", "layers", "nn.py",
          "(1 - self.momentum) * running + self.momentum * new", "self.momentum * running + (1 - self.momentum) * new",
          "nn"),
    Fault("state-transposed", "layers", "module.py",
          "transpose(np.argsort(axes))", "transpose(axes)", "nn resnet"),
    Fault("sequential-never-trains", "layers", "nn.py", "x = layer(x, train=train)", "x = layer(x)",
          "nn resnet simclr"),
    Fault("way-around-detached", "layers", "resnet.py",
          'if hasattr(block, "downsample") else x', 'if hasattr(block, "downsample") else x.detach()',
          "resnet simclr"),
    Fault("largest-instead-of-mean-of-the-map", "layers", "resnet.py",
          "in_dtype(x, self.conv1.weight.dtype).mean(axis=(0, 1))",
          "ops.max(in_dtype(x, self.conv1.weight.dtype), axis=(0, 1))", "resnet"),
    Fault("views-forwarded-apart", "layers", "simclr.py",  # lightly-ai/lightly#2031
          "_, z = self(array_module(views_a).concatenate([views_a, views_b]), train=True)",
          "z = ops.concatenate(self(views_a, train=True)[1], self(views_b, train=True)[1])", "simclr"),
    Fault("loss-of-h", "layers", "simclr.py", "_, z = self(", "z, _ = self(", "simclr"),
    Fault("relu-after-the-head", "layers", "simclr.py", "if k < self.layers:", "if k <= self.layers:", "simclr"),
    Fault("head-evaluates", "layers", "simclr.py", "return h, self.head(h, train)", "return h, self.head(h)", "simclr"),

    Fault("method-lost-before-the-blocks", "layers", "resnet.py",
          "blocks.append(block(in_dim, dim, stride, rng, method, product_dtype))",
          "blocks.append(block(in_dim, dim, stride, rng, METHOD, product_dtype))", "config resnet"),
    Fault("dtype-of-products-lost", "layers", "resnet.py",
          "product_dtype=product_dtype, rng=rng)", "rng=rng)", "config precision"),
    Fault("method-of-the-loss-ignored", "layers", "simclr.py",
          "temperature, method=self.method)", "temperature)", "simclr plain_run"),

    # ── Optimizers ────────────────────────────────────────────────────────────────────────────────
    Fault("lars-freezes-zeros", "optimizer", "training/optim.py",  # Spijkervet/SimCLR#27
          "(weight_norm > 0) & (gradient_norm > 0)", "(weight_norm >= 0) & (gradient_norm >= 0)", "optim"),
    Fault("lars-exclusions-ignored", "optimizer", "training/optim.py",  # Spijkervet/SimCLR#34
          "if w.ndim > 1:", "if w.ndim > 0:", "optim"),
    Fault("lars-off-without-decay", "optimizer", "training/optim.py",
          "if w.ndim > 1:", "if w.ndim > 1 and self.weight_decay:", "optim"),
    Fault("lars-rate-outside-momentum", "optimizer", "training/optim.py",
          "v += lr * trust * g", "v += trust * g; w -= (lr - 1) * v", "optim"),
    Fault("sgd-dampened", "optimizer", "training/optim.py",
          "        v += g", "        v += (1 - self.momentum) * g", "optim"),
    Fault("nesterov-without-momentum", "optimizer", "training/optim.py",
          "(g + self.momentum * v if self.nesterov", "(g + v if self.nesterov", "optim"),
    Fault("gradients-kept", "optimizer", "training/optim.py",
          "            p.grad = None", "            pass", "optim train"),
    Fault("gradients-left-scaled", "optimizer", "training/optim.py",
          "            scale.unscale(gradients)", "            pass", "precision"),
    Fault("overflowed-step-taken", "optimizer", "training/precision.py",
          "xp.copyto(array, old, where=left_out)", "pass", "precision"),
    Fault("size-of-the-largest-parameter-only", "optimizer", "training/optim.py",
          ".sum(dtype=xp.float64)", ".max()", "optim precision"),

    # ── Schedule ──────────────────────────────────────────────────────────────────────────────────
    Fault("cosine-of-another-length", "schedule", "training/optim.py",
          "/ (total_steps - warmup_steps)))", "/ total_steps))", "optim train"),
    Fault("warm-up-one-step-early", "schedule", "training/optim.py",
          "peak * step / warmup_steps", "peak * (step + 1) / warmup_steps", "optim train"),
    Fault("schedule-by-epoch", "schedule", "training/train.py",  # sthalles/SimCLR#43
          "warmup_cosine(step, total_steps", "warmup_cosine(step // 2, total_steps", "train"),
    Fault("rate-not-scaled", "schedule", "training/train.py", "config.lr * config.batch / 256", "config.lr", "train"),

    # ── Augmentation ──────────────────────────────────────────────────────────────────────────────
    Fault("one-view-twice", "augmentation", "views/augment.py",
          "source, a + b, size, method)", "source, a + a, size, method)", "views train"),
    Fault("orders-confused", "augmentation", "views/augment.py", "4 ** np.arange(4)", "np.arange(4)", "views"),
    Fault("blur-radius-is-its-size", "augmentation", "views/transforms.py",  # lightly-ai/lightly#1051
          "radius = size // 10 // 2", "radius = size // 10", "views"),
    Fault("never-mirrored", "augmentation", "views/transforms.py", "(i + flip * (1 - 2 * i))", "i", "views"),
    Fault("shrinking-skips-pixels", "augmentation", "views/transforms.py",
          "weights /= reach", "weights /= 1", "views"),
    Fault("reads-beyond-the-crop", "augmentation", "views/transforms.py",
          "weights *= (start < j) & (j < start + length)", "weights *= 1", "views"),
    Fault("hue-turned-too-little", "augmentation", "views/transforms.py", "6 * shift - 2", "shift - 2", "views"),
    Fault("contrast-about-each-channel", "augmentation", "views/transforms.py",
          "grey_of(xp, mean)[:, None]", "mean[..., None]", "views"),
    Fault("crops-miss-the-border", "augmentation", "views/parameters.py",
          "top = rng.integers(0, height - h + 1)", "top = rng.integers(0, np.maximum(height - h, 1))", "views"),
    Fault("aspect-not-logarithmic", "augmentation", "views/parameters.py",
          "np.exp(rng.uniform(np.log(CROP_ASPECT[0]), np.log(CROP_ASPECT[1]), tries))",
          "rng.uniform(*CROP_ASPECT, tries)", "views"),
    Fault("one-colour-for-the-batch", "augmentation", "views/parameters.py",  # as workers that draw alike: pytorch#3880
          "rng.uniform(low, high, (count, 4))", "rng.uniform(low, high, (1, 4)).repeat(count, 0)", "views"),
    Fault("blur-left-on", "augmentation", "views/parameters.py", "blur=blurred & blur,", "blur=blurred,", "views"),
    Fault("strength-ignored", "augmentation", "views/parameters.py",
          "spread = strength * np.array(JITTER_SPREAD)", "spread = np.array(JITTER_SPREAD)", "views"),

    Fault("mirror-shows-the-border-twice", "augmentation", "views/transforms.py",
          "wide[:, :, radius - beyond]", "wide[:, :, radius - beyond + 1]", "views"),
    Fault("grey-for-another-eye", "augmentation", "views/transforms.py",
          "GREY_WEIGHTS, dtype=x.dtype)", "GREY_WEIGHTS[::-1], dtype=x.dtype)", "views"),
    Fault("colours-turned-the-other-way", "augmentation", "views/transforms.py",
          "xp.copysign(h, g - b, out=h)", "xp.copysign(h, b - g, out=h)", "views"),
    Fault("blur-brightens", "augmentation", "views/transforms.py",
          "kernel /= kernel.sum(axis=1, keepdims=True)", "kernel /= 1", "views"),

    Fault("plain-shrinking-skips-pixels", "augmentation", "views/plain.py",
          "reach = max(len(x) / size, 1)", "reach = 1", "views"),
    Fault("plain-mirrored-upside-down", "augmentation", "views/plain.py", "x = x[:, ::-1]", "x = x[::-1]", "views"),
    Fault("plain-centres-in-the-corners", "augmentation", "views/plain.py",
          "centre = (xp.arange(size) + 0.5)", "centre = xp.arange(size)", "views"),
    Fault("plain-border-darkens", "augmentation", "views/plain.py",
          "weights /= weights.sum(axis=1, keepdims=True)", "weights /= reach", "views"),
    Fault("plain-always-in-one-order", "augmentation", "views/plain.py",
          "for change in p.order:", "for change in sorted(p.order):", "views"),
    Fault("plain-contrast-about-each-pixel", "augmentation", "views/plain.py",
          "CONTRAST: own.mean()", "CONTRAST: own", "views"),
    Fault("plain-hue-turned-the-other-way", "augmentation", "views/plain.py",
          "h + 6 * turn - own", "h - 6 * turn - own", "views"),
    Fault("plain-mirror-shows-the-border-twice", "augmentation", "views/plain.py",
          'mode="reflect"', 'mode="symmetric"', "views"),
    Fault("plain-grey-for-another-eye", "augmentation", "views/plain.py",
          "0.2989 * x[..., 0] + 0.587 * x[..., 1]", "0.587 * x[..., 0] + 0.2989 * x[..., 1]", "views"),

    # ── Checkpoints ───────────────────────────────────────────────────────────────────────────────
    Fault("written-in-place", "checkpoint", "storage.py",
          "os.replace(temporary, path)", "path.write_bytes(Path(temporary).read_bytes())", "checkpoint"),
    Fault("not-on-the-disk", "checkpoint", "storage.py", "os.fsync(file.fileno())", "pass", "checkpoint"),
    Fault("links-replaced", "checkpoint", "storage.py",
          "if not stat.S_ISREG(mode):", "if stat.S_ISDIR(mode):", "run_folder"),
    Fault("pipes-opened", "checkpoint", "storage.py",
          "if not stat.S_ISREG(found.st_mode):", "if stat.S_ISDIR(found.st_mode):", "run_folder"),
    Fault("two-processes-in-a-folder", "checkpoint", "storage.py", "fcntl.LOCK_EX | fcntl", "0 | fcntl",
          "run_folder"),
    Fault("momentum-of-any-shape", "checkpoint", "training/archive.py", "if header.shape != rule.shape:", "if False:",
          "run_folder"),
    Fault("any-dtype-read", "checkpoint", "training/archive.py", "if header.dtype != rule.dtype:", "if False:",
          "run_folder"),
    Fault("nan-weights-evaluated", "checkpoint", "training/archive.py", "if not np.isfinite(block).all():",
          "if False:", "run_folder"),
    Fault("arrays-nobody-asked-for-read", "checkpoint", "training/archive.py",
          "self.headers.keys() - rules)):", "set())):", "run_folder"),
    Fault("bombs-unpacked", "checkpoint", "training/archive.py",
          "if member.compress_type != zipfile.ZIP_STORED or member.compress_size != member.file_size:", "if False:",
          "run_folder checkpoint"),
    Fault("a-network-of-any-size-built", "checkpoint", "training/stored.py", "if self.left < 0:", "if False:",
          "run_folder"),
    Fault("steps-beyond-the-end", "checkpoint", "training/stored.py", "or not 0 <= steps <= most:", "or steps < 0:",
          "run_folder"),
    Fault("files-of-somebody-else-replaced", "checkpoint", "training/folders.py", "if there and not is_ours(folder):",
          "if False:", "run_folder"),
    Fault("damaged-line-erased", "checkpoint", "training/record.py",
          "return line.step < steps", "return line.step < steps and line.metrics is not None", "run_folder"),
    Fault("statistics-of-a-broken-step-saved", "checkpoint", "training/session.py",
          "            setattr(module, name, array)", "            pass", "run_folder"),
    Fault("half-written-weights-saved", "checkpoint", "training/session.py",
          "        self.whole = False  #", "        pass  #", "run_folder"),
    Fault("nohup-ignored", "checkpoint", "training/session.py",
          "if before.get(STOPPING[-1]) == signal.SIG_IGN", "if before.get(STOPPING[-1]) == -1", "run_folder"),
    Fault("momentum-not-restored", "checkpoint", "training/optim.py",
          "velocity[...] = to_device(stored, device_of(velocity))", "velocity[...] = 0", "optim precision"),
    Fault("begins-again", "checkpoint", "training/run.py", "run.steps = found.steps", "run.steps = 0", "train"),
    Fault("metrics-twice", "checkpoint", "training/record.py",
          "return line.step < steps", "return True", "train run_folder"),
    Fault("not-finite-but-saved", "checkpoint", "training/run.py",
          "if not np.isfinite(array).all():", "if False:", "train"),

    Fault("settings-not-compared", "checkpoint", "training/run.py",
          "if before[name] != value and name", "if False and name", "train cli"),
    Fault("runs-overwritten", "checkpoint", "training/folders.py",
          'if "checkpoint.npz" in there:', "if False:", "train cli"),
    Fault("stopped-without-saving", "checkpoint", "training/session.py",
          "must = bool(self.stop) or done == total", "must = done == total", "train cli"),
    Fault("not-saved-at-the-end", "checkpoint", "training/session.py",
          "must = bool(self.stop) or done == total", "must = bool(self.stop)", "train cli"),
    Fault("saved-although-not-finite", "checkpoint", "training/session.py",
          "if not math.isfinite(value):", "if False:", "train cli"),
    Fault("numerics-not-compared", "checkpoint", "training/run.py",
          "for name in now if then", "for name in now if name != 'numerics' and then", "train cli"),
    Fault("old-direct-read-as-auto", "checkpoint", "training/config.py",
          '"direct": "conv=slabs"', '"direct": "conv=auto"', "config train"),
    Fault("loss-scale-not-kept", "checkpoint", "training/optim.py",
          "return state | {", "return state if scale else state | {", "precision"),

    # ── Training ──────────────────────────────────────────────────────────────────────────────────
    Fault("gradients-pile-up", "training", "training/train.py", "            optimizer.zero_grad()", "            pass",
          "train"),
    Fault("same-views-at-every-step", "training", "training/batches.py",
          "config.rng(VIEWS, step)", "config.rng(VIEWS, 0)", "train batches"),
    Fault("same-order-in-every-epoch", "training", "training/batches.py",
          "config.rng(ORDER, epoch)", "config.rng(ORDER, 0)", "train batches"),
    Fault("same-batch-at-every-step", "training", "training/batches.py",
          "batches(epoch)[k]", "batches(epoch)[0]", "train"),
    Fault("method-of-the-views-ignored", "training", "training/batches.py",
          "config.min_area, method=method)", "config.min_area)", "config plain_run"),
    Fault("temperature-ignored", "training", "training/train.py",
          "model.loss(a, b, config.temperature)", "model.loss(a, b)", "train"),
    Fault("images-never-shuffled", "training", "training/batches.py",
          "rng.permutation(count)", "np.arange(count)", "data train"),

    # ── Evaluation ────────────────────────────────────────────────────────────────────────────────
    Fault("z-for-h", "evaluation", "evaluation/embed.py",  # google-research/simclr#47
          "hs.append(to_numpy(h.data))", "hs.append(to_numpy(z.data))", "evaluate"),
    Fault("embedding-in-training-mode", "evaluation", "evaluation/embed.py",
          "images[part], device)), train=False)", "images[part], device)), train=True)", "evaluate"),
    Fault("last-batch-dropped", "evaluation", "evaluation/embed.py",
          "in blocks(len(images), batch):", "in blocks(len(images) // batch * batch or len(images), batch):",
          "evaluate"),
    Fault("length-of-rows-counts", "evaluation", "evaluation/knn.py",
          "train_u, test_u = unit_rows(xp, train_h), unit_rows(xp, test_h)", "train_u, test_u = train_h, test_h",
          "evaluate"),
    Fault("votes-unweighted", "evaluation", "evaluation/knn.py",
          "np.exp((similarities - similarities[:, :1]) / temperature)", "np.ones_like(similarities)", "evaluate"),
    Fault("bias-penalised", "evaluation", "evaluation/probe.py",
          "gradient[:-1] += l2 * weights[:-1]", "gradient += l2 * weights", "evaluate"),
    Fault("standardized-by-the-test-set", "evaluation", "evaluation/probe.py",
          "_standardized(h, self.mean, self.std)", "_standardized(h, h.mean(axis=0), h.std(axis=0) + 1e-6)",
          "evaluate"),
    Fault("last-penalty-taken", "evaluation", "evaluation/probe.py",
          "if accuracy > best:", "if accuracy >= 0:", "evaluate"),
    Fault("farthest-first", "evaluation", "evaluation/knn.py",
          "order = xp.argsort(-xp.take_along_axis", "order = xp.argsort(xp.take_along_axis", "evaluate"),
    Fault("penalty-doubled-in-the-value", "evaluation", "evaluation/probe.py",
          "0.5 * l2 * float(", "l2 * float(", "evaluate"),
    Fault("probe-without-the-held-out-rows", "evaluation", "evaluation/probe.py",
          "_fit(x, y, start, l2, iterations), l2)", "start, l2)", "evaluate"),
    Fault("ties-to-the-last-class", "evaluation", "evaluation/knn.py",
          "(votes.argmax(axis=1) == test_y)", "(votes.shape[1] - 1 - votes[:, ::-1].argmax(axis=1) == test_y)",
          "evaluate"),

    # ── The command line ──────────────────────────────────────────────────────────────────────────
    Fault("refusals-end-with-1", "command line", "cli/__init__.py",
          "isinstance(error, OSError) else 2", "isinstance(error, OSError) else 1", "cli"),
    Fault("unreadable-is-a-usage-error", "command line", "cli/__init__.py",
          "else 4 if isinstance", "else 2 if isinstance", "cli"),
    Fault("not-finite-is-a-usage-error", "command line", "cli/__init__.py", "code = 3 if", "code = 2 if", "cli"),
    Fault("stopped-looks-done", "command line", "cli/__init__.py", "return 128 + error.signum", "return 0", "cli"),
    Fault("a-gone-reader-is-an-error", "command line", "cli/streams.py",
          "gone = (errno.EPIPE,", "gone = (0,", "console"),
    Fault("names-drive-the-terminal", "command line", "storage.py", "c if c.isprintable() else", "c if c else",
          "run_folder console"),
    Fault("ctrl-c-is-a-traceback", "command line", "cli/__init__.py", "            except KeyboardInterrupt:",
          "            except ZeroDivisionError:", "console"),
]
# fmt: on

AREAS = (
    "loss",
    "engine",
    "kept",
    "gradcheck",
    "operations",
    "layers",
    "optimizer",
    "schedule",
    "augmentation",
    "checkpoint",
    "training",
    "evaluation",
    "command line",
)

# ── What kind of test is it? By what it holds the code against ────────────────────────────────────

# The first rule that is found in "file::Class::name" decides.
KINDS = [
    ("differences", r"three_checks|finite_differences|along_a_path|integrates|the_checks|passes_for_every"),
    ("wrong gradient", r"rejects|sees_one|is_found_among|should_be_is_not|is_caught|own_scale|not_excused"),
    ("right gradient", r"false_alarm|outputs_of_any_shape|may_be_float32"),
    (
        "oracle",
        r"_loops|reference|formula|equation_1|forward_mode|numpys|pillow|composed|written_out|"
        r"one_batch_of_both|minimum_of_its_loss|distributions|means_and_deviations",
    ),
    (
        "closed form",
        r"ClosedForms|closed_values|value_that_other|kinks|of_equal_pixels|no_negatives|near_chance|"
        r"zero_row|all_zero|warms_up_to|once_around|uniform_image|one_near_neighbour|near_neighbour|"
        r"over_all_rows_at_once|normalizes_by|tenth_of_the_way|tenth_of_the_side|largest_cosine|"
        r"silent|has_its_exit_code|keeps_what_its_gradient_needs|checkerboard|mean_grey|drawn_at_the_middle|class_frequencies|on_one_side|"
        r"closed_form|tie_goes_to_the_first|first_nan",
    ),
    ("round trip", r"come_back|puts_back|loads_bit|survive_json|the_one_that_was_saved"),
    ("disaster", r"kill_9|failure_while_writing|cut_off|damaged|random_bytes|diverges|killed_run|survived_by"),
    (
        "two ways",
        r"EqualToTheExact|one_value_and_one_gradient|each_rung|agree|accuracy|same_bits|recomputed|resume|bit_equal|nine_products|"
        r"does_not_depend|do_not_depend|dtype_throughout|in_disguise|float32|"
        r"may_be_done_along|embed_gives",
    ),
    (
        "identity",
        r"Identities|matter|changes_nothing|mirrors|uncropped|equal_channels|layout|adjoint|alone|"
        r"centred|apart|twice|both_gradients|both_terms|any_input|tangent|stays|whoever_ties|"
        r"scale_with",
    ),
    ("statistics", r"how_often|cover|reach_every|smallest_area|epoch|same_views_and|learns"),
    ("refusal", r"refuse|guarded|raises|report|error|must|makes_no_sense|no_number|cannot|says|not_finite"),
]


def kind_of(test: str) -> str:
    """The kind of a test named as pytest names it, "tests/test_x.py::Class::name[case]"."""
    name = test.partition("[")[0].replace("tests/", "").replace(".py", "")
    for kind, pattern in KINDS:
        if re.search(pattern, name):
            return kind
    return "structure of " + name.partition("::")[0].removeprefix("test_")
