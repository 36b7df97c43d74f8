"""Packaging: the folders of the repository become one package, `ftml_bench`."""

import re
from pathlib import Path

from setuptools import setup

HERE = Path(__file__).parent
# Read, not imported: when the package is built, what it imports need not be there.
[VERSION] = re.findall(r'^__version__ = "(.+)"$', (HERE / "ftml_bench/__init__.py").read_text(encoding="utf-8"), re.M)

setup(
    name="ftml-bench",
    version=VERSION,
    description="Does a learner learn new tasks faster and faster? Online meta-learning benchmarks for Avalanche.",
    long_description=(HERE / "README.md").read_text(encoding="utf-8"),
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
        "ftml_bench.benchmarks.data",
        "ftml_bench.buffer",
        "ftml_bench.check",
        "ftml_bench.commands",
        "ftml_bench.leaderboards",
        "ftml_bench.metrics",
        "ftml_bench.models",
        "ftml_bench.recorded",
        "ftml_bench.rendering",
        "ftml_bench.report",
        "ftml_bench.results",
        "ftml_bench.runs",
        "ftml_bench.saving",
        "ftml_bench.speed",
        "ftml_bench.strategies",
        "ftml_bench.strategies.avalanche",
    ],
    package_data={
        "ftml_bench": ["py.typed"],
        "ftml_bench.leaderboards": ["*.yaml"],
        "ftml_bench.report": ["*.mplstyle", "site/*", "site/uplot/*"],
    },
    install_requires=[
        "avalanche-lib>=0.6.0",
        "higher>=0.2.1",
        "jinja2>=3.1",
        "matplotlib>=3.8",
        "numpy>=1.26",
        "pandas>=2.1",
        "pillow>=10.0",
        "portalocker>=3.0",
        "pydantic>=2.6",
        "pyyaml>=6.0",
        "scikit-learn>=1.5",
        "scipy>=1.12",
        "tensorboard>=2.17",
        "torch>=2.4",
        "torchvision>=0.19",
        "tqdm>=4.60",
        "typing_extensions>=4.8",
    ],
    # Beside it, a library to draw with: OSMesa (Debian, Ubuntu: libosmesa6) or EGL.
    extras_require={"mujoco": ["mujoco>=3.3.3"]},
    entry_points={"console_scripts": ["ftml-bench = ftml_bench.cli:main"]},
    classifiers=[
        "Development Status :: 4 - Beta",
        "Intended Audience :: Science/Research",
        "Operating System :: POSIX",
        "Programming Language :: Python :: 3",
        "Programming Language :: Python :: 3 :: Only",
        "Topic :: Scientific/Engineering :: Artificial Intelligence",
        "Typing :: Typed",
    ],
)
