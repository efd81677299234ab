"""CTC loss and gradient on a CPU: both walks over the frames at once, as products and sums of whole batches.

Torch's own recursion takes logarithms state by state. Here a frame is six products and sums over all utterances and states in
float64, forwards and backwards in one tensor. A pair (a blank and the label behind it) has a power of two of its own, chosen anew
every few frames, so that a probability may be as small as it likes. Where that cannot be promised (a wanted label has hardly any
probability at all, or the two walks disagree about the total), torch's recursion does it in float64.

The walks meet in the middle: up to there they store what they see, from there on each turns what the other has stored into
posteriors, as described in ctc.cu.

Shapes: N batch, T frames, V units (with blank), L labels, P = L + 1 pairs, R = 2 N rows (first forwards, then backwards), F frames
of a block.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor

from asrkit.errors import AsrkitError
from asrkit.losses.feasible import infeasible
from asrkit.nn.lengths import inside

HEADROOM = 400
"""Bits by which a number may grow or shrink between two choices of exponents; two such products fit into float64."""
MOST_FRAMES = 32
"""Frames between two choices at most."""
NEVER = -(1 << 40)
"""Exponent of zero."""
TORCH_PER_STATE, PER_STATE, PER_FRAME = 150.0, 20.0, 60000.0
"""Nanoseconds, loss and gradient together: of torch's recursion in float64, of this one, and of this one for whatever size."""
AGREEMENT = 1e-8
"""By how much of itself (and of 1) a log-likelihood may depend on where the walks are compared."""


def forward(
    logits: Tensor,
    targets: Tensor,
    frames: Tensor,
    labels: Tensor,
    blank: int,
    zero_infinity: bool,
    differentiate: bool,
) -> tuple[Tensor, Tensor]:
    """Return the losses (N,) and their derivatives with respect to the logits (N, T, V; empty where not asked for).

    Both are float32, or float64 for float64 logits.

    Args:
        logits: floating type, (N, T, V).
        targets: unit indices, int64 (N, L).
        frames: int64 (N,), 0 to T.
        labels: int64 (N,), 0 to L.
        blank: index of the blank.
        zero_infinity: whether what has no alignment loses nothing; otherwise its derivative is NaN, as torch's.
        differentiate: whether derivatives are wanted.

    Raises:
        AsrkitError: a length beyond the tensor, or a label that is no unit.
    """
    _check(logits, targets, frames, labels)
    log_probs = logits.to(torch.float64 if logits.dtype == torch.float64 else torch.float32).log_softmax(-1)
    impossible = infeasible(targets, frames, labels)
    outside = ~inside(frames, log_probs.shape[1])
    if not log_probs.numel():
        losses = log_probs.new_zeros(len(labels)).masked_fill(impossible & (not zero_infinity), torch.inf)
        return losses, log_probs.new_zeros(log_probs.shape if differentiate else 0)
    walks = None
    if pays_off(*targets.shape):
        with _one_thread():
            walks = _Walks(log_probs, targets, labels, outside, blank)
            if walks.span:
                walks.run(differentiate)
    if walks is None or not (walks.span and bool((walks.agree | impossible).all())):
        return _by_torch(log_probs, targets, frames, labels, blank, zero_infinity, differentiate)
    losses = torch.where(impossible, 0.0 if zero_infinity else torch.inf, -walks.log_totals).to(log_probs.dtype)
    if not differentiate:
        return losses, log_probs.new_empty(0)
    slopes = walks.slopes.masked_fill_(impossible[:, None, None], 0.0 if zero_infinity else torch.nan)
    return losses, slopes.masked_fill_(outside[:, :, None], 0.0).contiguous()


def pays_off(batch: int, length: int) -> bool:
    """Return whether whole-batch operations, one after the other, beat torch's loop over states with a thread per utterance."""
    states, threads = batch * (2 * length + 1), max(1, min(torch.get_num_threads(), batch))
    return states * (TORCH_PER_STATE / threads - PER_STATE) > PER_FRAME


@contextmanager
def _one_thread() -> Iterator[None]:
    """Thousands of small operations are no work for several threads: each would wait for the last of them."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)


def _check(logits: Tensor, targets: Tensor, frames: Tensor, labels: Tensor) -> None:
    most, length = logits.shape[1], targets.shape[1]
    if bool(((frames < 0) | (frames > most)).any()):
        raise AsrkitError(f"logit_lengths are {frames.tolist()}", where="ctc_loss", mend=f"0 to {most}")
    if bool(((labels < 0) | (labels > length)).any()):
        raise AsrkitError(f"target_lengths are {labels.tolist()}", where="ctc_loss", mend=f"0 to {length}")
    wrong = ((targets < 0) | (targets >= logits.shape[2])) & inside(labels, length)
    if bool(wrong.any()):
        raise AsrkitError(
            f"label {int(targets[wrong][0])} is not one of the {logits.shape[2]} units",
            where="ctc_loss",
            mend="see targets",
        )


def _by_torch(
    log_probs: Tensor,
    targets: Tensor,
    frames: Tensor,
    labels: Tensor,
    blank: int,
    zero_infinity: bool,
    differentiate: bool,
) -> tuple[Tensor, Tensor]:
    # Its two halves, as torch's own derivative uses them: an operator's inside is not differentiated.
    exact = log_probs.double().transpose(0, 1)
    known = torch.where(inside(labels, targets.shape[1]), targets, blank)
    arguments = exact, known, frames.tolist(), labels.tolist()
    losses, alphas = torch.ops.aten._ctc_loss(*arguments, blank, zero_infinity)
    slopes = exact.new_empty(0)
    if differentiate:
        ones = torch.ones_like(losses)
        slopes = torch.ops.aten._ctc_loss_backward(ones, *arguments, losses, alphas, blank, zero_infinity).transpose(
            0, 1
        )
    if zero_infinity:
        losses = losses.masked_fill(losses == torch.inf, 0.0)
    return losses.to(log_probs.dtype), slopes.to(log_probs.dtype).contiguous()


class _Walks:
    """The two walks of a batch.

    Walks backwards are walks forwards over frames and labels from the last of the batch's to the first, so that what is behind an
    utterance's end comes before its beginning. There the blank has probability 1 and labels have none: where all weight is in one
    blank it stays there, and at an end it gathers in the last blank.
    """

    def __init__(self, log_probs: Tensor, targets: Tensor, labels: Tensor, outside: Tensor, blank: int) -> None:
        batch, most, units = log_probs.shape
        length = targets.shape[1]
        self.blank = blank
        # Such labels get a unit of their own that has no probability.
        targets = torch.where(inside(labels, length), targets, units)
        none = torch.full_like(labels, units)[:, None]
        self.rows = torch.cat((torch.cat((targets, none), 1), torch.cat((targets.flip(1), none), 1)))  # (R, P)
        # An even number of frames, so that both halves are equal.
        self.probs = log_probs.new_zeros(batch, most + most % 2, units + 1)
        known = self.probs[:, :most, :units]
        torch.exp(log_probs.masked_fill(outside[:, :, None], 0.0), out=known)
        self.blanks = torch.ones(most + most % 2, 2 * batch, 1, dtype=torch.float64)
        self.blanks[:most, :batch, 0] = known[:, :, blank].t()
        self.blanks[:, batch:] = self.blanks[:, :batch].flip(0)
        self.slopes = known
        self.span = self.slope = 0
        least = torch.cat((known.amin(1), torch.ones_like(known[:, 0, :1])), 1).gather(1, self.rows[:batch])
        smallest = float(torch.minimum(least.amin(), known[:, :, blank].amin()))
        if smallest >= torch.finfo(log_probs.dtype).tiny:  # not for NaN either
            # What a pair is short of can have come to it over two frames, each with the smallest probability.
            self.slope = max(8, 2 * (1 - math.frexp(smallest)[1]))
            self.span = min(HEADROOM // self.slope, MOST_FRAMES)
        known.masked_fill_(outside[:, :, None], 0.0)
        self.skip = torch.zeros(2 * batch, length + 1, dtype=torch.float64)
        self.skip[:, 1:] = (self.rows[:, 1:] != self.rows[:, :-1]).double()
        self.start = torch.cat((torch.zeros_like(labels), length - labels))[:, None]
        self.stop = torch.cat((labels, torch.full_like(labels, length)))[:, None]

    def run(self, differentiate: bool) -> None:
        """Walk: to the middle, or all the way where derivatives are wanted, which take the place of the probabilities."""
        middle, (rows, pairs) = self.probs.shape[1] // 2, self.rows.shape
        blank = torch.zeros(rows, pairs, dtype=torch.float64).scatter_(1, self.start, 1.0)
        label = torch.zeros(rows, pairs + 1, dtype=torch.float64)  # a zero in front, so that a shift is a view
        left, own = label[:, :-1], label[:, 1:]
        into_blank = torch.empty_like(blank)
        exponents = torch.zeros(rows, pairs, dtype=torch.int64)
        blocks = [(begin, min(begin + self.span, middle)) for begin in range(0, middle, self.span)]
        stored: list[tuple[Tensor, Tensor]] = []
        into_labels = torch.empty(self.span, rows, pairs, dtype=torch.float64)
        for begin, end in blocks:
            exponents, flow = self._renormalise(blank, own, exponents)
            if differentiate:
                into_labels = torch.empty(end - begin, rows, pairs, dtype=torch.float64)
                stored.append((into_labels, exponents))
            self._walk(begin, end, blank, left, own, flow, into_blank, into_labels)
        exponents, flow = self._renormalise(blank, own, exponents)
        self._meet(blank, left, own, flow, exponents)
        if not differentiate:
            return
        for begin, end in reversed(blocks):
            begin, end = 2 * middle - end, 2 * middle - begin
            exponents, flow = self._renormalise(blank, own, exponents)
            into_labels = torch.empty(end - begin, rows, pairs, dtype=torch.float64)
            weights = self._walk(begin, end, blank, left, own, flow, into_blank, into_labels)
            self._posteriors(begin, end, into_labels.mul_(weights), exponents, *stored.pop())
        exponents, flow = self._renormalise(blank, own, exponents)
        # What a frame more would bring to the last blank.
        mantissas, shifts = torch.frexp(torch.addcmul(blank, flow, left).gather(1, self.stop)[:, 0])
        ends = _log(mantissas, exponents.gather(1, self.stop)[:, 0] + shifts).view(2, -1)
        self.agree &= ((ends - self.log_totals).abs() < AGREEMENT * (1 + self.log_totals.abs())).all(0)

    def _walk(
        self,
        begin: int,
        end: int,
        blank: Tensor,
        left: Tensor,
        own: Tensor,
        flow: Tensor,
        into_blank: Tensor,
        into_labels: Tensor,
    ) -> Tensor:
        """Go through the frames of a block; return the labels' probabilities there, (F, R, P)."""
        weights = self._weights(begin, end)
        jump = flow * self.skip
        blanks, into, label_weights = self.blanks[begin:end].unbind(0), into_labels.unbind(0), weights.unbind(0)
        for step, into_label in enumerate(into[: end - begin]):
            torch.addcmul(blank, flow, left, out=into_blank)
            torch.add(own, blank, out=into_label)
            into_label.addcmul_(jump, left)
            torch.mul(into_blank, blanks[step], out=blank)
            torch.mul(into_label, label_weights[step], out=own)
        return weights

    def _weights(self, begin: int, end: int) -> Tensor:
        batch, most, _ = self.probs.shape
        pairs = self.rows.shape[1]
        weights = torch.empty(end - begin, 2 * batch, pairs, dtype=torch.float64)
        forwards, backwards = self.rows.view(2, batch, 1, pairs).expand(2, batch, end - begin, pairs)
        weights[:, :batch] = self.probs[:, begin:end].gather(2, forwards).transpose(0, 1)
        weights[:, batch:] = self.probs[:, most - end : most - begin].flip(1).gather(2, backwards).transpose(0, 1)
        return weights

    def _renormalise(self, blank: Tensor, label: Tensor, exponents: Tensor) -> tuple[Tensor, Tensor]:
        """Scale blanks and labels (R, P) in place; return the pairs' new exponents, and what a left neighbour counts in them."""
        sizes = torch.maximum(blank, label)
        own = torch.where(sizes > 0, exponents + (sizes.view(torch.int64) >> 52) - 1023, NEVER)
        # No pair is smaller than its left neighbour by more than the slope: what flows on cannot grow too large.
        ramp = torch.arange(own.shape[1]) * self.slope
        chosen = (own + ramp).cummax(1).values - ramp
        scale = _power(exponents - chosen)
        blank *= scale
        label *= scale
        flow = torch.zeros_like(scale)
        flow[:, 1:] = _power(chosen[:, :-1] - chosen[:, 1:])
        return chosen, flow

    def _meet(self, blank: Tensor, left: Tensor, own: Tensor, flow: Tensor, exponents: Tensor) -> None:
        """Find the totals: the walks forwards' weights times what a frame more would bring to those backwards, summed."""
        batch = len(blank) // 2
        into_blank = torch.addcmul(blank, flow, left)[batch:].flip(1)
        into_label = (own + blank).addcmul_(flow * self.skip, left)[batch:, :-1].flip(1)
        powers = torch.cat(
            (exponents[:batch] + exponents[batch:].flip(1), exponents[:batch, :-1] + exponents[batch:, :-1].flip(1)), 1
        )
        terms, shifts = torch.frexp(torch.cat((blank[:batch] * into_blank, own[:batch, :-1] * into_label), 1))
        powers = torch.where(terms > 0, powers + shifts, NEVER)
        largest = powers.amax(1, keepdim=True)
        self.totals, self.powers = (terms * _power(powers - largest)).sum(1), largest[:, 0]
        self.log_totals = _log(self.totals, self.powers)
        self.agree = self.log_totals.isfinite() & (self.powers > NEVER)

    def _posteriors(
        self, begin: int, end: int, weights: Tensor, exponents: Tensor, stored: Tensor, stored_exponents: Tensor
    ) -> None:
        """Take the posteriors of both walks' frames (labels' weights (F, R, P)) from the probabilities."""
        batch, most, _ = self.probs.shape
        labels = slice(0, self.rows.shape[1] - 1)
        powers = (
            exponents[:, labels] + stored_exponents.roll(batch, 0)[:, labels].flip(1) - self.powers.repeat(2)[:, None]
        )
        posteriors = weights[:, :, labels] * stored.roll(batch, 1)[:, :, labels].flip((0, 2))
        posteriors *= _power(powers) / self.totals.repeat(2)[:, None]
        totals = 1 - posteriors.sum(2)
        found = posteriors.neg_().to(self.probs.dtype)
        for walk, part in enumerate((slice(0, batch), slice(batch, 2 * batch))):
            slopes = self.probs[:, begin:end] if walk == 0 else self.probs[:, most - end : most - begin]
            taken, rest = found[:, part], totals[:, part]
            if walk:
                taken, rest = taken.flip(0), rest.flip(0)
            index = self.rows[part, None, labels].expand(batch, end - begin, taken.shape[2])
            slopes.scatter_add_(2, index, taken.transpose(0, 1))
            slopes[:, :, self.blank] -= rest.t().to(slopes.dtype)


def _log(mantissas: Tensor, powers: Tensor) -> Tensor:
    return mantissas.log() + powers.double() * math.log(2)


def _power(exponents: Tensor) -> Tensor:
    """Return 2 to the power of int64 exponents as float64; 0 and the largest power where there is none."""
    return ((exponents + 1023).clamp_(0, 2046) << 52).view(torch.float64)
