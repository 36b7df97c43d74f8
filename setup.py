"""Packaging: the folders of the repository become one package, `ftml_bench`."""

from pathlib import Path

from setuptools import setup

setup(
    name="ftml-bench",
    version="0.1.0",
    description="Does a learner learn new tasks faster and faster? Online meta-learning benchmarks for Avalanche.",
    long_description=Path(__file__).with_name("README.md").read_text(encoding="utf-8"),
    long_description_content_type="text/markdown",
    license="MIT",
    python_requires=">=3.10",
    package_dir={
        "ftml_bench.strategies": "strategies",
        "ftml_bench.benchmarks": "benchmarks",
        "ftml_bench.leaderboards": "leaderboards",
    },
    packages=[
        "ftml_bench",
        "ftml_bench.adaptation",
        "ftml_bench.benchmarks",
        "ftml_bench.check",
        "ftml_bench.leaderboards",
        "ftml_bench.metrics",
        "ftml_bench.models",
        "ftml_bench.rendering",
        "ftml_bench.report",
        "ftml_bench.speed",
        "ftml_bench.strategies",
    ],
    package_data={"ftml_bench": ["py.typed"], "ftml_bench.leaderboards": ["*.yaml"]},
    install_requires=[
        "avalanche-lib>=0.6.0",
        "higher>=0.2.1",
        "matplotlib>=3.8",
        "numpy>=1.26",
        "pillow>=10.0",
        "pyyaml>=6.0",
        "scikit-learn>=1.5",
        "tensorboard>=2.17",
        "torch>=2.4",
        "torchvision>=0.19",
        "tqdm>=4.60",
    ],
    # Beside it, a library to draw with: OSMesa (Debian, Ubuntu: libosmesa6) or EGL.
    extras_require={"mujoco": ["mujoco>=3.3.3"]},
    entry_points={"console_scripts": ["ftml-bench = ftml_bench.cli:main"]},
    classifiers=[
        "Programming Language :: Python :: 3",
        "Topic :: Scientific/Engineering :: Artificial Intelligence",
    ],
)
