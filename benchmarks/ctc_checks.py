"""What is claimed of the CUDA kernels of CTC, as checks that need nothing but torch and a GPU.

    python benchmarks/ctc.py --verify

`tests/losses/test_ctc_gpu.py` runs the same, where there is a GPU.
"""

from __future__ import annotations

import math
import time
import traceback
from collections.abc import Callable
from typing import Any

import torch
from harness import peak_bytes
from torch import Tensor

from asrkit.losses import ctc, ctc_cuda, ctc_loss, ctc_ops

Example = tuple[Tensor, Tensor, Tensor, Tensor]


def make(
    batch: int,
    frames: int,
    units: int,
    labels: int,
    *,
    dtype: torch.dtype = torch.float32,
    device: str | torch.device = "cuda",
    whole: bool = True,
    seed: int = 0,
) -> Example:
    """Logits (N, T, V), targets (N, L), frames (N,), labels (N,): all of one length, or of any where not ``whole``."""
    generator = torch.Generator().manual_seed(seed)
    logits = torch.randn(batch, frames, units, generator=generator).to(dtype)
    targets = torch.randint(1, units, (batch, labels), generator=generator)
    frame_counts, label_counts = torch.full((batch,), frames), torch.full((batch,), labels)
    if not whole:
        frame_counts = torch.randint(frames // 2, frames + 1, (batch,), generator=generator)
        label_counts = torch.randint(0, labels + 1, (batch,), generator=generator)
        frame_counts[0], label_counts[0] = frames, labels
    return tuple(tensor.to(device) for tensor in (logits, targets, frame_counts, label_counts))  # type: ignore[return-value]


def gradient_of(loss: Callable[..., Tensor], logits: Tensor, *rest: Any, **settings: Any) -> tuple[Tensor, Tensor]:
    """The loss, and the gradient of its sum."""
    logits = logits.detach().requires_grad_()
    value = loss(logits, *rest, **settings)
    return value.detach(), torch.autograd.grad(value.sum(), logits)[0]


def by_torch(
    logits: Tensor,
    targets: Tensor,
    frames: Tensor,
    labels: Tensor,
    *,
    blank: int = 0,
    reduction: str = "none",
    zero_infinity: bool = True,
) -> Tensor:
    """Torch's own, in the logits' precision."""
    log_probs = logits.log_softmax(-1).transpose(0, 1)
    with torch.backends.cudnn.flags(enabled=False):
        return torch.nn.functional.ctc_loss(log_probs, targets, frames, labels, blank, reduction, zero_infinity)


def error(got: Tensor, wanted: Tensor) -> float:
    """Norm of the difference over the norm of what is wanted."""
    return float((got.double() - wanted).norm() / wanted.norm())


def _precise(example: Example, within: float) -> str:
    losses, gradient = gradient_of(ctc_loss, *example, reduction="none")
    wanted_losses, wanted = gradient_of(by_torch, example[0].double(), *example[1:])
    torch.testing.assert_close(losses.double(), wanted_losses, rtol=1e-5, atol=1e-4)
    found = error(gradient, wanted)
    assert found < within, f"gradient off by {found:.2e}"
    return f"gradient off by {found:.1e}"


def check_kernels_are_used() -> str:
    assert ctc_cuda.obstacle() is None, ctc_cuda.obstacle()
    return ctc.ctc_route(torch.device("cuda"))


def check_precision() -> str:
    return _precise(make(32, 750, 32, 200), 1e-4)


def check_precision_of_many_lengths() -> str:
    return _precise(make(16, 700, 40, 300, whole=False), 1e-4)


def check_precision_of_20000_frames() -> str:
    return _precise(make(2, 20_000, 32, 500), 1e-4)


def check_precision_of_bfloat16_logits() -> str:
    return _precise(make(8, 400, 32, 60, dtype=torch.bfloat16), 4e-3)


def check_precision_of_float16_logits() -> str:
    return _precise(make(8, 400, 32, 60, dtype=torch.float16), 5e-4)


def check_4000_labels() -> str:
    return _precise(make(2, 9000, 32, 4000), 1e-4)


def check_17000_labels() -> str:
    return _precise(make(1, 36_000, 8, 17_000), 1e-4)


def check_50000_units() -> str:
    return _precise(make(4, 200, 50_000, 40), 1e-4)


def check_units_that_do_not_align() -> str:
    return _precise(make(4, 200, 5003, 40), 1e-4)


def check_1024_utterances() -> str:
    return _precise(make(1024, 200, 32, 40, whole=False), 1e-4)


def check_every_size_of_block() -> str:
    for labels in (1, 31, 32, 200, 255, 256, 700, 1023, 1024, 2047, 2048):
        _precise(make(2, 2 * labels + 50, 16, labels, whole=False, seed=labels), 1e-4)
    return "from 1 to 2048 labels"


def check_bitwise_equal_in_20_runs() -> str:
    example = make(32, 750, 32, 200, dtype=torch.bfloat16, whole=False)
    first = gradient_of(ctc_loss, *example, reduction="none")
    for _ in range(20):
        again = gradient_of(ctc_loss, *example, reduction="none")
        assert torch.equal(first[0], again[0])
        assert torch.equal(first[1], again[1])
    return "losses and gradients"


def check_what_torch_gives() -> str:
    logits, targets, frames, labels = make(6, 40, 9, 12, whole=False)
    labels[1], labels[2] = 0, 12
    targets[3] = 4  # repeated; some of these do not fit
    frames[2] = frames[4] = 9
    compared = 0
    for zero_infinity in (True, False):
        for reduction in ("none", "sum", "mean"):
            for blank in (0, 8):
                rest = (targets - (1 if blank else 0), frames, labels)
                settings: dict[str, Any] = {"blank": blank, "reduction": reduction, "zero_infinity": zero_infinity}
                mine = gradient_of(ctc_loss, logits, *rest, **settings)
                theirs = gradient_of(by_torch, logits.double(), *rest, **settings)
                for one, other in zip(mine, theirs, strict=True):
                    torch.testing.assert_close(one.double(), other, rtol=1e-4, atol=1e-5, equal_nan=True)
                    compared += 1
    return f"{compared} comparisons"


def check_nothing_waits_for_the_device() -> str:
    example = make(8, 100, 32, 20, whole=False)
    gradient_of(ctc_loss, *example)
    torch.cuda.set_sync_debug_mode("error")
    try:
        logits = example[0].detach().requires_grad_()
        torch.autograd.grad(ctc_loss(logits, *example[1:]), logits)
        torch.autograd.grad(ctc_loss(logits, example[1], [100] * 8, [0] * 8), logits)
    finally:
        torch.cuda.set_sync_debug_mode("default")
    return "lengths on the device, or Python's"


def check_graph_capture() -> str:
    example = make(8, 100, 32, 20, whole=False)
    logits = example[0].detach().requires_grad_()

    def step() -> tuple[Tensor, Tensor]:
        loss = ctc_loss(logits, *example[1:], reduction="sum")
        return loss, torch.autograd.grad(loss, logits)[0]

    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        for _ in range(3):
            step()
    torch.cuda.current_stream().wait_stream(side)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        captured = step()
    for seed in (5, 6):
        for own, new in zip(example, make(8, 100, 32, 20, whole=False, seed=seed), strict=True):
            own.copy_(new)
        with torch.no_grad():
            logits.copy_(example[0])
        graph.replay()
        torch.cuda.synchronize()
        expected = step()
        assert torch.equal(captured[0], expected[0])
        assert torch.equal(captured[1], expected[1])
    return "replayed with other logits, targets and lengths"


def _compiles(backend: str) -> str:
    compiled = torch.compile(ctc_loss, backend=backend, fullgraph=True)
    for dtype in (torch.float32, torch.bfloat16):
        example = make(8, 100, 32, 20, whole=False, dtype=dtype)
        mine, theirs = gradient_of(compiled, *example), gradient_of(ctc_loss, *example)
        torch.testing.assert_close(mine[0], theirs[0])
        torch.testing.assert_close(mine[1], theirs[1])
    return f"by {backend}, in one graph"


def check_compiles() -> str:
    return _compiles("aot_eager")


def check_compiles_with_inductor() -> str:
    import shutil

    if not any(map(shutil.which, ("cc", "gcc", "clang"))):
        return "not tried: no C compiler"
    return _compiles("inductor")


def check_operators() -> str:
    logits, *rest = make(3, 40, 9, 12, whole=False)
    utilities = ("test_schema", "test_autograd_registration", "test_faketensor")
    for differentiate in (True, False):
        arguments = (logits.requires_grad_(differentiate), *rest, 0, True, differentiate)
        torch.library.opcheck(ctc_ops.on_cuda, arguments, test_utils=utilities)
    return ", ".join(utilities)


def check_backward_twice() -> str:
    example = make(8, 300, 32, 60, whole=False)
    logits = example[0].detach().requires_grad_()
    losses = ctc_loss(logits, *example[1:], reduction="none")
    weights = torch.rand(8, device="cuda")
    first, second, third = (
        torch.autograd.grad((losses * by).sum(), logits, retain_graph=True)[0] for by in (weights, weights * 2, weights)
    )
    assert torch.equal(first, third)
    assert torch.equal(first * 2, second)
    return "with the graph kept"


def check_other_streams() -> str:
    example = make(8, 300, 32, 60, whole=False)
    expected = gradient_of(ctc_loss, *example)[1]
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        found = gradient_of(ctc_loss, *example)[1]
    stream.synchronize()
    assert torch.equal(found, expected)
    return "the current one is used"


def check_views() -> str:
    logits, *rest = make(8, 300, 32, 60, whole=False)
    expected = gradient_of(ctc_loss, logits, *rest)[1]
    swapped = logits.transpose(0, 1).contiguous().transpose(0, 1)
    assert torch.equal(gradient_of(ctc_loss, swapped, *rest)[1], expected)
    spread = torch.stack((logits, logits), -1)[..., 0]
    assert torch.equal(gradient_of(ctc_loss, spread, *rest)[1], expected)
    return "frames first, units apart"


def check_what_is_no_number() -> str:
    logits, *rest = make(2, 50, 8, 6)
    logits[0, 7, 3] = math.nan
    losses, gradient = gradient_of(ctc_loss, logits, *rest, reduction="none")
    assert losses.isnan().tolist() == [True, False]
    assert gradient[0].isnan().all()
    assert gradient[1].isfinite().all()
    return "NaN stays with its utterance"


def check_half_the_memory_of_torch() -> str:
    example = make(32, 750, 32, 200, dtype=torch.bfloat16)
    device = torch.device("cuda")

    def ours() -> None:
        gradient_of(ctc_loss, *example)

    def theirs() -> None:
        gradient_of(lambda logits, *rest: by_torch(logits.float(), *rest, reduction="mean"), *example)

    ours(), theirs()
    share = peak_bytes(ours, device) / peak_bytes(theirs, device)
    assert share <= 0.5, f"{share:.2f}"
    return f"{share:.2f} of torch's"


def check_fallback() -> str:
    example = make(8, 300, 32, 60, whole=False)
    expected = gradient_of(ctc_loss, *example)
    usable, ctc_cuda.usable = ctc_cuda.usable, lambda: False
    try:
        found = gradient_of(ctc_loss, *example)
    finally:
        ctc_cuda.usable = usable
    torch.testing.assert_close(found[0], expected[0])
    assert error(found[1], expected[1].double()) < 1e-2
    return "torch's own where kernels cannot run"


CHECKS = {name[len("check_") :]: check for name, check in list(globals().items()) if name.startswith("check_")}


def verify() -> bool:
    """Run all checks on the GPU, print a line for each; return whether all hold."""
    failed = []
    for name, check in CHECKS.items():
        began = time.perf_counter()
        try:
            said = f"holds   {check()}"
        except Exception as reason:  # each says what it found; the others shall run as well
            failed.append(name)
            said = f"FAILED  {reason}\n{traceback.format_exc(limit=-3)}"
        print(f"{name.replace('_', ' '):36} {said}   ({time.perf_counter() - began:.1f} s)", flush=True)
        torch.cuda.empty_cache()
    print(f"{len(CHECKS) - len(failed)} of {len(CHECKS)} hold" + (f"; not: {', '.join(failed)}" if failed else ""))
    return not failed
