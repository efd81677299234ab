"""`asrkit import` and `asrkit export`: checkpoints from and to other toolkits."""

from __future__ import annotations

import argparse
from pathlib import Path

from rich.console import Console

from asrkit.errors import AsrkitError


def add_import(parser: argparse.ArgumentParser) -> None:
    """Add the options of `import`."""
    parser.add_argument(
        "source",
        metavar="SOURCE",
        help="a fairseq .pt file; a folder of Hugging Face, fairseq2 or torchaudio; OWNER/NAME on the Hugging Face hub; "
        "fairseq2:NAME; torchaudio:NAME",
    )
    parser.add_argument("--output", required=True, type=Path, metavar="EXP", help="the experiment folder to be made")
    parser.add_argument(
        "--dictionary",
        type=Path,
        metavar="FILE",
        help="the CTC head's symbols where the source lacks them: dict.ltr.txt, vocab.json, or a folder of units",
    )
    parser.add_argument("--encoder-only", action="store_true", help="leave the model's head and its symbols behind")


def run_import(options: argparse.Namespace, console: Console) -> int:
    """Import, and say what came and how to go on."""
    from asrkit.interop.sources import import_model

    model = import_model(options.source, options.output, options.dictionary, not options.encoder_only)
    shape = model.encoder
    millions = sum(tensor.numel() for tensor in model.weights.values()) / 1e6
    if model.units is not None:
        head = f"CTC over {len(model.units)} symbols"
    else:
        head = "wav2vec 2.0 head" if model.head is not None else "no head"
    lines = [f"{options.output}: {shape.layers} {shape.blocks} layers of {shape.dim}, {head}, {millions:.1f}M weights"]
    lines += [f"note: {note}" for note in model.notes]
    lines.append(f"start from it: asrkit train CONFIG.yaml init={options.output} exp_dir=EXP")
    if model.units is not None:
        lines.append(f"use it: asrkit transcribe --model {options.output} AUDIO")
    for line in lines:
        console.print(line, markup=False, highlight=False, soft_wrap=True)
    return 0


def add_export(parser: argparse.ArgumentParser) -> None:
    """Add the options of `export`."""
    parser.add_argument("model", type=Path, metavar="EXP", help="an experiment folder")
    formats = ("huggingface", "fairseq2", "torchaudio", "onnx")
    parser.add_argument("--format", required=True, choices=formats, help="what it becomes")
    parser.add_argument("--output", required=True, type=Path, metavar="DIR", help="the folder to be made")
    parser.add_argument("--checkpoint", default="best", choices=("best", "last"), help="which weights")
    parser.add_argument("--push", metavar="OWNER/NAME", help="huggingface: upload the folder to this repository too")
    parser.add_argument("--private", action="store_true", help="a repository that --push makes is private")


def run_export(options: argparse.Namespace, console: Console) -> int:
    """Export, push where asked, and say where it is."""
    from asrkit.interop.hub import push
    from asrkit.interop.sources import export_model

    if options.push and options.format != "huggingface":
        raise AsrkitError("--push is for --format huggingface")
    export_model(options.model, options.format, options.output, options.checkpoint)
    console.print(f"{options.output}: {options.format}", markup=False, highlight=False, soft_wrap=True)
    if options.push:
        address = push(options.output, options.push, options.private)
        console.print(address, markup=False, highlight=False, soft_wrap=True)
    return 0
