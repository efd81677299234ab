"""Package metadata. Tool settings are in pyproject.toml, the exact versions that are installed in constraints.txt."""

from __future__ import annotations

from pathlib import Path

from setuptools import find_packages, setup

CORE = [
    "torch>=2.9",
    "torchaudio>=2.9",
    "numpy>=2.0",
    "omegaconf>=2.3",
    "lhotse>=1.32",
    "soundfile>=0.13",
    "sentencepiece>=0.2.1",
    "jiwer>=4.0",
    "rich>=14.0",
    "tensorboard>=2.19",
    "matplotlib>=3.9",
    "pillow>=11",
]

EXTRAS = {
    # For Python 3.13 flashlight-text and one of fairseq2's requirements have no wheels, and nothing here may need a
    # compiler. fairseq2 pins torch, so it stays out of `all`.
    "fairseq2": ["fairseq2>=0.8; python_version < '3.13'"],
    "decode": ["flashlight-text>=0.0.7; python_version < '3.13'"],
    "huggingface": ["transformers>=4.57,<5", "safetensors>=0.6"],
    "onnx": ["onnx>=1.19", "onnxruntime>=1.22", "onnxscript>=0.5"],
    "cloud": ["fsspec>=2025.5", "s3fs>=2025.5"],
    "mini": ["espeakng-loader>=0.2.4"],
    "dev": [
        "pytest>=8.4",
        "pytest-timeout>=2.4",
        "pytest-xdist>=3.8",
        "hypothesis>=6.130",
        "ruff>=0.14",
        "mypy>=1.18",
    ],
}
EXTRAS["all"] = sorted({requirement for name, extra in EXTRAS.items() if name != "fairseq2" for requirement in extra})

setup(
    name="asrkit",
    version="0.1.0",
    description="Speech recognisers from much untranscribed and little transcribed speech.",
    long_description=Path(__file__).with_name("README.md").read_text(encoding="utf-8"),
    long_description_content_type="text/markdown",
    license="Apache-2.0",
    license_files=["LICENSE"],
    python_requires=">=3.10",
    packages=find_packages(include=["asrkit", "asrkit.*"]),
    package_data={
        "asrkit": ["py.typed"],
        "asrkit.losses": ["*.cu"],
        "asrkit.analysis.page": ["*.html", "*.css", "*.js"],
    },
    install_requires=CORE,
    extras_require=EXTRAS,
    entry_points={"console_scripts": ["asrkit = asrkit.cli:main"]},
    classifiers=[
        "Programming Language :: Python :: 3",
        "Operating System :: POSIX :: Linux",
        "Topic :: Scientific/Engineering :: Artificial Intelligence",
    ],
)
