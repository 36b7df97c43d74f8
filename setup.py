"""Packaging: the folders of the repository become one package, `ftml_bench`, with a compiled part where it compiles."""

import platform
import re
from pathlib import Path

from setuptools import Extension, setup
from setuptools.command.build_ext import build_ext
from setuptools.modified import newer_group

HERE = Path(__file__).parent
# Read, not imported: when the package is built, what it imports need not be there.
[VERSION] = re.findall(r'^__version__ = "(.+)"$', (HERE / "ftml_bench/__init__.py").read_text(encoding="utf-8"), re.M)

NATIVE = "ftml_bench/adaptation/native"
# -O3 alone; none of -ffast-math changes the order of sums here. Without errno and traps square roots and choices become
# vectors, and products are fused with sums.
FLAGS = ["-O3", "-std=gnu++17", "-fno-math-errno", "-fno-trapping-math", "-ffp-contract=fast"]
FLAGS += ["-fvisibility=hidden", "-g0", "-pthread"]
FORMS = {"baseline": []}
if platform.machine().lower() in ("x86_64", "amd64"):
    FORMS["avx2"] = ["-mavx2", "-mfma"]
    FORMS["avx512"] = [*(f"-mavx512{part}" for part in ("f", "dq", "bw", "vl")), "-mfma", "-mprefer-vector-width=512"]


def native(form: str) -> Extension:
    """The engine `native` for processors of one kind: the same source, which `library.py` loads by `ctypes`."""
    return Extension(
        f"ftml_bench.adaptation.native._{form}",
        sources=[f"{NATIVE}/src/{form}.cpp"],
        depends=[str(header.relative_to(HERE)) for header in sorted((HERE / NATIVE / "src").glob("*.hpp"))],
        language="c++",
        extra_compile_args=[*FLAGS, *FORMS[form]],
        extra_link_args=["-pthread"],
        py_limited_api=True,  # nothing of Python's is called: one wheel for all its versions
        optional=True,  # without a compiler everything else is there
    )


class BuildExt(build_ext):
    """Takes what an installation from this source tree (-e) has compiled before, if no source is newer."""

    def build_extension(self, ext: Extension) -> None:
        target = Path(self.get_ext_fullpath(ext.name))
        built = HERE / NATIVE / target.name
        sources = [str(HERE / source) for source in (*ext.sources, *ext.depends, "setup.py")]
        if not newer_group(sources, str(built)):
            self.mkpath(str(target.parent))
            self.copy_file(str(built), str(target))
        else:
            super().build_extension(ext)


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
        "ftml_bench.adaptation.native",
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
    options={"bdist_wheel": {"py_limited_api": "cp310"}, "build_ext": {"parallel": len(FORMS)}},
    cmdclass={"build_ext": BuildExt},
    ext_modules=[native(form) for form in FORMS],
    package_data={
        "ftml_bench": ["py.typed"],
        "ftml_bench.leaderboards": ["*.yaml", "ablations/*.yaml"],
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
        "pydantic>=2.11",
        "pyyaml>=6.0",
        "quadprog>=0.1.13",  # of qpsolvers', without which Avalanche warns at its import and has no GEM
        "scikit-learn>=1.5",
        "scipy>=1.12",
        "tensorboard>=2.17",
        "torch>=2.4",
        "torchvision>=0.19",
        "tqdm>=4.60",
        "typing_extensions>=4.8",
    ],
    # Beside it, a library to draw with: OSMesa (Debian, Ubuntu: libosmesa6) or EGL.
    extras_require={"mujoco": ["mujoco>=3.3.3"], "ray": ["ray>=2.60"]},
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
