from pathlib import Path

from setuptools import find_packages, setup

TEST = ["hypothesis", "ipykernel", "mypy", "nbclient", "nbformat", "POT", "pytest", "pytest-timeout", "ruff", "scipy"]

setup(
    name="mpt_bihalf",
    version="0.1.0",
    description="Binary lottery tickets: edge-popup masks with optimal-transport binarization, in PyTorch",
    long_description=Path("README.md").read_text(encoding="utf-8"),
    long_description_content_type="text/markdown",
    license="MIT",
    packages=find_packages(include=["mpt_bihalf", "mpt_bihalf.*"]),
    package_data={"mpt_bihalf": ["py.typed"]},
    python_requires=">=3.10",
    install_requires=[
        "matplotlib>=3.7",
        "numpy>=1.26",
        "pandas>=2.0",
        "platformdirs>=3.0",
        "scikit-learn>=1.3",
        "simple-parsing>=0.1.6",
        "tabulate>=0.9",
        "tensorboard>=2.12",
        "torch>=2.6",
        "torchvision>=0.21",
        "tqdm>=4.60",
    ],
    extras_require={"test": TEST, "notebooks": ["ipykernel", "jupyterlab"]},
)
