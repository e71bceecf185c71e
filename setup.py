"""Packaging of pflalign-jax; tool settings are in pyproject.toml."""

import pathlib
import re

import setuptools

HERE = pathlib.Path(__file__).parent
VERSION = re.search(
    r'^__version__ = "([^"]+)"', (HERE / "pflalign_jax" / "__init__.py").read_text(), re.M
).group(1)

setuptools.setup(
    name="pflalign-jax",
    version=VERSION,
    description="Gradient alignment for personalised federated learning (pFLAlign) in JAX",
    long_description=(HERE / "README.md").read_text(),
    long_description_content_type="text/markdown",
    license="Apache-2.0",
    python_requires=">=3.11",
    packages=setuptools.find_packages(include=["pflalign_jax", "pflalign_jax.*"]),
    package_data={"pflalign_jax": ["py.typed"]},
    install_requires=[
        "jax>=0.10",
        "jaxlib>=0.10",
        "flax>=0.12",
        "optax>=0.2.8",
        "orbax-checkpoint>=0.12",
        # Prepares and reads FEMNIST without TensorFlow; the two others are what it needs for that.
        "tensorflow-datasets>=4.9.10",
        "array-record>=0.5; platform_system != 'Windows'",
        "importlib-resources>=6",
        "h5py>=3.11",
        "pooch>=1.8",
        "pillow>=10",
        "ml-collections>=1.1",
        "absl-py>=2.1",
        "numpy>=2.0",
        "scipy>=1.12",
        "scikit-learn>=1.5",
        "matplotlib>=3.10",
        "rich>=13.9",
    ],
    extras_require={
        "parquet": ["pyarrow>=15"],
        # What --log=tensorboard,wandb needs.
        "log": ["tensorboardX>=2.6", "wandb>=0.18"],
        # Pretrained language models: their weights, by two formats, and tokenisers.
        "lm": [
            "safetensors>=0.5",
            "gguf>=0.17",
            "tokenizers>=0.21",
            "huggingface_hub>=0.25",
            "jinja2>=3.1",
        ],
        # What they are compared with in a slow test; a PyTorch for CPUs is enough.
        "lm-reference": ["torch>=2.4", "transformers>=5", "accelerate>=1", "peft>=0.17"],
        # Clients on their own machines. Not in "test": it needs protobuf < 7 and rich < 15, and
        # brings a web server and a data base; what tests it is skipped without it.
        "flower": ["flwr>=1.42"],
        # Chooses what experiments.sweep tries with --trials.
        "optuna": ["optuna>=4.1"],
        # Accounts for differential privacy.
        "dp": ["dp-accounting>=0.6"],
        "test": [
            "pytest>=8",
            "pytest-xdist>=3.5",
            "hypothesis>=6.100",
            "ruff>=0.9",
            "mypy>=1.15",
            # Builds the wheel that is tested; new environments have none, or one too old for it.
            "setuptools>=70.1",
            "pyarrow>=15",
            "nbclient>=0.10",
            "ipykernel>=6.29",
            "dp-accounting>=0.6",
            "optuna>=4.1",
            "safetensors>=0.5",
            "gguf>=0.17",
            "tokenizers>=0.21",
            "jinja2>=3.1",
            "tensorboardX>=2.6",
            "wandb>=0.18",
            # Two kinds of models of docs/howto/own_model.md.
            "dm-haiku>=0.0.16",
            "equinox>=0.13",
        ],
        # `make docs`; l2m4m turns equations into MathML, which needs no script to be read.
        "docs": [
            "mkdocs>=1.6,<2",
            "mkdocs-material>=9.6",
            "mkdocstrings[python]>=1.0",
            "l2m4m>=1.0.4",
            # The terminal of docs/images/record.py.
            "pyte>=0.8",
        ],
        # What experiments.benchmark compares with; a PyTorch for CPUs is enough.
        "bench": ["fedjax>=0.0.17", "torch>=2.4", "transformers>=5", "peft>=0.17"],
    },
    classifiers=[
        "Development Status :: 3 - Alpha",
        "Intended Audience :: Science/Research",
        "Programming Language :: Python :: 3",
        "Topic :: Scientific/Engineering :: Artificial Intelligence",
    ],
)
