import platform
import zlib
from pathlib import Path

from setuptools import Extension, find_packages, setup

DOCS = ["furo>=2024.8.6", "latex2mathml>=3.81", "myst-parser>=4", "sphinx>=8.1"]
ROBUSTNESS = ["imagecorruptions-imaug>=1.1.5"]
EXPORT = ["onnx>=1.16", "onnxscript>=0.3"]
TEST = [
    *DOCS,
    *EXPORT,
    *ROBUSTNESS,
    "hypothesis",
    "import-linter>=2.8",
    "ipykernel",
    "mypy",
    "nbclient",
    "nbformat",
    "onnxruntime",
    "POT",
    "psutil",
    "pytest",
    "pytest-timeout",
    "pytest-xdist",
    "ray",
    "ruff",
]

# One library for each kind of processor, as an installation may be moved to, or shared with, another machine.
FLAVOURS = {} if platform.system() == "Windows" else {"any": []}  # the flags are those of GCC and Clang
if FLAVOURS and platform.machine() in ("x86_64", "AMD64"):
    FLAVOURS |= {"avx2": ["-march=x86-64-v3"], "avx512": ["-march=x86-64-v4", "-mprefer-vector-width=512"]}
FLAGS = ["-O3", "-std=c++17", "-fopenmp", "-fno-math-errno", "-fno-trapping-math", "-ffp-contract=off"]
SOURCES = ["mpt_bihalf/kernels.cpp", "mpt_bihalf/sparse.cpp", "mpt_bihalf/inference.cpp"]
# By this a library tells from which sources it was built: an older one beside newer Python code is not used.
FLAGS += [f"-DSOURCE={zlib.crc32(b''.join(Path(source).read_bytes() for source in SOURCES))}u"]


setup(
    name="mpt_bihalf",
    version="0.1.0",
    description="Binary lottery tickets: edge-popup masks with optimal-transport binarization, in PyTorch",
    long_description=Path("README.md").read_text(encoding="utf-8"),
    long_description_content_type="text/markdown",
    license="MIT",
    packages=find_packages(include=["mpt_bihalf", "mpt_bihalf.*"]),
    package_data={"mpt_bihalf": ["py.typed", "kernels.cpp", "sparse.cpp", "inference.cpp", "report/published.csv"]},
    # Optional: without a compiler the same is done in torch, with the same bits.
    ext_modules=[
        Extension(
            f"mpt_bihalf._kernels_{flavour}",
            SOURCES,
            extra_compile_args=[*FLAGS, *flags],
            extra_link_args=["-fopenmp"],
            language="c++",
            optional=True,
        )
        for flavour, flags in FLAVOURS.items()
    ],
    python_requires=">=3.10",
    install_requires=[
        "constriction>=0.4",
        "filelock>=3.20.1",
        "matplotlib>=3.7",
        "numpy>=1.26",
        "pandas>=2.0",
        "platformdirs>=3.0",
        "safetensors>=0.4.3",
        "scikit-learn>=1.3",
        "scipy>=1.11",
        "simple-parsing>=0.1.6",
        "tabulate>=0.9",
        "tensorboard>=2.15",
        "torch>=2.7",
        "torchvision>=0.22",
        "tqdm>=4.60",
    ],
    extras_require={
        "test": TEST,
        "docs": DOCS,
        "export": EXPORT,
        "ray": ["ray>=2.9"],
        "robustness": ROBUSTNESS,
        "loops": ["accelerate>=1.15", "lightning>=2.6", "schedulefree>=1.4", "timm>=1.0.31"],
        "notebooks": ["ipykernel", "jupyterlab"],
    },
)
