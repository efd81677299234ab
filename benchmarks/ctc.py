"""What CTC's loss and gradient cost beside torch's own, and beside cuDNN's where that one applies.

    python benchmarks/ctc.py                          on the GPU, or the CPU where there is none; every shape
    python benchmarks/ctc.py --shape 32,750,32,200    one shape: N, T, V, L
    python benchmarks/ctc.py --pairs 2                other blocks than the kernels' own choice
    python benchmarks/ctc.py --verify                 on a GPU: holds the kernels to everything that is claimed of them

A call is forward and backward from logits of one precision, log-softmax included. Beside the times each contender's gradient is
compared with float64's.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from ctc_checks import by_torch, error, gradient_of, make, verify
from harness import Ratio, compare, memory_ratio, ratio, report
from torch import Tensor

from asrkit.losses import ctc_kernel, ctc_loss, ctc_route

TITLE = "CTC loss, forward and backward"
SHAPES = {
    "cuda": ((32, 750, 32, 200), (32, 750, 5000, 200), (32, 2500, 32, 1000), (8, 20_000, 32, 500)),
    "cpu": ((32, 750, 32, 200), (11, 186, 29, 30)),
}
FASTER_THAN_TORCH = {(32, 750, 32, 200): 5.0, (32, 750, 5000, 200): 3.0, (32, 2500, 32, 1000): 3.0}
FASTER_THAN_CUDNN = {(32, 750, 32, 200): 2.0}


def contenders(
    shape: tuple[int, int, int, int], dtype: torch.dtype, device: torch.device
) -> dict[str, Callable[[], Tensor]]:
    """Functions that give the gradient of the mean loss, by name."""
    logits, targets, frames, labels = make(*shape, dtype=dtype, device=device)
    lengths = tuple(frames.tolist()), tuple(labels.tolist())

    def asrkit() -> Tensor:
        return gradient_of(ctc_loss, logits, targets, frames, labels)[1]

    def torch_loss(logits: Tensor, *rest: Any) -> Tensor:
        return by_torch(logits.float(), *rest, reduction="mean")

    def native() -> Tensor:
        return gradient_of(torch_loss, logits, targets, *lengths)[1]

    # What cuDNN's asks for: targets one behind the other, int32, on the host.
    plain = targets.flatten().int().cpu()

    def cudnn_loss(logits: Tensor) -> Tensor:
        log_probs = logits.float().log_softmax(-1).transpose(0, 1).contiguous()
        return torch.nn.functional.ctc_loss(log_probs, plain, *lengths, zero_infinity=True)

    def cudnn() -> Tensor:
        return gradient_of(cudnn_loss, logits)[1]

    found = {"asrkit": asrkit, "torch": native}
    if device.type == "cuda":
        log_probs = logits.float().log_softmax(-1).transpose(0, 1).contiguous()
        if shape[3] < 256 and torch._use_cudnn_ctc_loss(log_probs, plain, *lengths, 0):
            try:
                cudnn()
                found["cuDNN"] = cudnn
            except RuntimeError as error:
                print(f"cuDNN is left out: {str(error).splitlines()[0]}")
    return found


def measure(
    shape: tuple[int, int, int, int], dtype: torch.dtype, device: torch.device, rounds: int, output: Path | None
) -> bool:
    """Measure one shape, print, write; return whether limits are kept."""
    runs = contenders(shape, dtype, device)
    logits, *rest = make(*shape, dtype=dtype, device=device)
    exact = gradient_of(by_torch, logits.double(), *rest, reduction="mean")[1]
    errors = {f"gradient of {name}, off by": f"{error(run(), exact):.1e}" for name, run in runs.items()}
    del exact
    found = compare(runs, device=device, rounds=rounds)
    gpu = device.type == "cuda"
    ratios: list[Ratio] = [
        ratio(
            found,
            "asrkit",
            ["torch"],
            limit=1 / FASTER_THAN_TORCH[shape] if gpu and shape in FASTER_THAN_TORCH else None,
        ),
        memory_ratio(found, "asrkit", ["torch"], limit=0.5 if gpu and shape in FASTER_THAN_CUDNN else None),
    ]
    if "cuDNN" in runs:
        limit = 1 / FASTER_THAN_CUDNN[shape] if shape in FASTER_THAN_CUDNN else None
        ratios.append(ratio(found, "asrkit", ["cuDNN"], limit=limit))
    names = dict(zip(("utterances", "frames", "units", "labels"), shape, strict=True))
    settings = {
        **names,
        "logits": str(dtype).removeprefix("torch."),
        **({"build": str(ctc_kernel.build_for(logits, shape[3]))} if gpu else {}),
        "asrkit is": ctc_route(device),
        **errors,
    }
    return report(TITLE, settings, found, ratios, device=device, output=output)


def main() -> int:
    """Measure or verify, print, and fail where a limit is exceeded or a claim does not hold."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shape", help="N,T,V,L; all of this benchmark's without it")
    parser.add_argument("--dtype", choices=("bfloat16", "float16", "float32"), help="of the logits; bfloat16 on a GPU")
    parser.add_argument("--rounds", type=int, default=20)
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--output", type=Path, help="a folder for JSON, a file per shape")
    parser.add_argument("--pairs", type=int, help="labels to a thread, to find out what suits a GPU; 1, 2, 4 or 8")
    parser.add_argument("--verify", action="store_true", help="check instead of measure")
    options = parser.parse_args()
    if options.verify:
        if not torch.cuda.is_available():
            print("There is no GPU to verify anything on.")
            return 2
        return 0 if verify() else 1
    if options.pairs:
        ctc_kernel.BLOCKS = ((512 * options.pairs, options.pairs, 512), *ctc_kernel.BLOCKS)
    device = torch.device(options.device)
    dtype = getattr(torch, options.dtype or ("bfloat16" if device.type == "cuda" else "float32"))
    shapes = [tuple(map(int, options.shape.split(",")))] if options.shape else SHAPES[device.type]
    kept = True
    for shape in shapes:
        name = f"ctc-{device.type}-{'x'.join(map(str, shape))}.json"
        kept &= measure(shape, dtype, device, options.rounds, options.output / name if options.output else None)
        print()
    return 0 if kept else 1


if __name__ == "__main__":
    sys.exit(main())
