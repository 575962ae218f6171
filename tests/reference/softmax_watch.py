"""The softmaxes of forward passes, seen where Python calls them, row by row.

`F.softmax`, `torch.softmax`, `Tensor.softmax` and `F.scaled_dot_product_attention` are replaced
for a while. A softmax's gradient comes from a plain tensor hook on its result; fused attention
is written out from its arguments and a tensor hook on its result.
"""

from contextlib import ExitStack
from itertools import chain
from unittest.mock import patch

import torch
from torch.nn import functional as F

from tests.reference.gradients import ModuleCalls, attention_rows, rows_along, softmax_values


class SoftmaxWatch:
    """Use as a context around forward passes of `model`; `values()` after the backward pass."""

    def __init__(self, model):
        self.paused = False  # while set, gradients don't count
        self._model = model
        # (forward pass, name of the running module, its gradients, rows(gradient))
        self._seen = []
        self._forwards = 0
        self._busy = False

    def __enter__(self):
        self._patches = ExitStack()
        for owner in (F, torch, torch.Tensor):
            self._patches.enter_context(patch.object(owner, "softmax", self._softmax(owner)))
        self._patches.enter_context(
            patch.object(F, "scaled_dot_product_attention", self._attention())
        )
        self._calls = ModuleCalls(self._model, lambda *_: None, self._begin)
        return self

    def __exit__(self, *_):
        self._patches.close()
        self._calls.remove()

    def values(self):
        """site -> entropy, max_prob, jacobian_norm, gain, of those that got a gradient.

        All rows of all backward passes together.
        """
        found, taken = {}, {}
        for forward, name, gradients, rows in self._seen:
            if not gradients:
                continue
            name = "(output):softmax" if name == "(output)" else name
            number = taken.get((forward, name), 0)
            taken[forward, name] = number + 1
            kept = name if ":" in name else f"{name}:softmax"
            pairs = found.setdefault(f"{kept}#{number}" if number else name, [])
            pairs += chain.from_iterable(map(rows, gradients))
        return {site: softmax_values(pairs) for site, pairs in found.items()}

    def clear(self):
        """A new optimizer step begins."""
        self._seen = []

    def _begin(self):
        self._forwards += 1

    def _note(self, out, rows):
        gradient = []
        if out.requires_grad and self._calls.stack:
            out.register_hook(lambda g: None if self.paused else gradient.append(g))
            self._seen.append((self._forwards, self._calls.stack[-1], gradient, rows))

    def _softmax(self, owner):
        plain = owner.softmax

        def softmax(input, dim=None, *args, **kwargs):
            if self._busy:
                return plain(input, dim, *args, **kwargs)
            self._busy = True
            try:
                p = plain(input, dim, *args, **kwargs)
            finally:
                self._busy = False
            kept = p.detach().clone()
            self._note(p, lambda g: rows_along(kept, g, dim))
            return p

        return softmax

    def _attention(self):
        plain = F.scaled_dot_product_attention

        def attention(q, k, v, attn_mask=None, dropout_p=0.0, is_causal=False, **kwargs):
            before = torch.get_rng_state()
            out = plain(q, k, v, attn_mask, dropout_p, is_causal, **kwargs)
            given = [t.detach().clone() for t in (q, k, v)]

            def rows(g):
                pairs = attention_rows(*given, g, kwargs.get("scale"), attn_mask, is_causal)
                if not dropout_p:
                    return pairs
                kept = self._kept(before, given, attn_mask, dropout_p, is_causal, kwargs)
                return ((p, gp * row) for (p, gp), row in zip(pairs, kept, strict=True))

            self._note(out, rows)
            return out

        return attention

    @staticmethod
    def _kept(before, qkv, mask, dropout_p, causal, kwargs):
        """What dropout multiplied every row of the weights by: drawn again, as it was."""
        now = torch.get_rng_state()
        torch.set_rng_state(before)
        with torch.no_grad():
            _, dropped = torch.ops.aten._scaled_dot_product_attention_math(
                *qkv, mask, dropout_p, causal, None, **kwargs
            )
        torch.set_rng_state(now)
        kept = (dropped != 0).double() / (1 - dropout_p)
        return kept.reshape(-1, kept.shape[-1])
