"""Packaging: imports are declared, and what is installed from a wheel does what a checkout does."""

from __future__ import annotations

import ast
import os
import re
import subprocess
import sys
import sysconfig
import tarfile
import tomllib
import venv
from collections.abc import Iterator
from importlib import metadata
from pathlib import Path

import pytest
import yaml

import lightning_guide
from lightning_guide.utils.files import read_yaml

ROOT = Path(__file__).resolve().parents[1]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
PACKAGES = ("lightning_guide", "callbacks", "datamodules")
OWN = (*PACKAGES, "scripts", "tests", "setup")
# Distributions that are not installed for the tests, so that their modules cannot be looked up.
NOT_INSTALLED = {name: name for name in ("azula", "diffusers", "fastapi", "gradio", "peft", "playwright", "uvicorn")}


def distribution(requirement: str) -> str:
    """The normalized name of the distribution in a requirement."""
    return re.sub(r"[-_.]+", "-", re.split(r"[^\w.-]", requirement)[0]).lower()


NEEDED = {distribution(requirement) for requirement in PROJECT["dependencies"]}
EXTRA = {distribution(requirement) for extra in PROJECT["optional-dependencies"].values() for requirement in extra}


def imports(path: Path) -> Iterator[tuple[str, bool]]:
    """Yield each third-party module that a file imports, and whether the file does so while it is imported."""
    tree = ast.parse(path.read_text(encoding="utf-8"))
    inside = {id(node) for part in ast.walk(tree) if isinstance(part, ast.FunctionDef) for node in ast.walk(part)}
    for node in ast.walk(tree):
        names = []
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom) and node.level == 0 and node.module:
            names = [node.module]
        elif isinstance(node, ast.Call) and ast.unparse(node.func).endswith(("import_module", "importorskip")):
            names = [word.value for word in node.args[:1] if isinstance(word, ast.Constant)]
        for name in (name.partition(".")[0] for name in names):
            if name not in sys.stdlib_module_names and name not in OWN:
                yield name, id(node) not in inside


# Files of an extra, which a command imports when it has been started.
OF_EXTRA = ("lightning_guide/playground/page.py", "lightning_guide/playground/server.py")

# Packages of rewards, which users install by themselves, since their requirements agree with few others.
ON_REQUEST = {"ImageReward", "hpsv2"}

# Loggers that tests try if they happen to be installed (`importorskip`).
TRIED = {"mlflow", "wandb"}


def undeclared(folder: str) -> set[str]:
    """Imports of a folder that no requirement brings: at the top of a file those of extras count as missing, too."""
    brings = {module: {distribution(name) for name in names} for module, names in DISTRIBUTIONS.items()}
    found = set()
    for path in (ROOT / folder).rglob("*.py"):
        for module, at_once in imports(path):
            if module in ON_REQUEST and not at_once or folder == "tests" and module in TRIED:
                continue
            optional = not at_once or folder not in PACKAGES or path.relative_to(ROOT).as_posix() in OF_EXTRA
            declared = NEEDED | EXTRA if optional else NEEDED
            if not declared & brings.get(module, {NOT_INSTALLED.get(module, "")}):
                found.add(f"{path.relative_to(ROOT)}: {module}")
    return found


DISTRIBUTIONS = metadata.packages_distributions()


@pytest.mark.parametrize("folder", [*PACKAGES, "scripts", "tests"])
def test_imports_are_declared(folder: str) -> None:
    assert not (found := undeclared(folder)), f"imported, but in no requirement of pyproject.toml: {sorted(found)}"


def test_requirements_are_imported_and_pinned() -> None:
    used = {module for package in PACKAGES for path in (ROOT / package).rglob("*.py") for module, _ in imports(path)}
    brought = {distribution(name) for module in used for name in DISTRIBUTIONS.get(module, [])}
    assert NEEDED <= brought, f"required, but never imported: {sorted(NEEDED - brought)}"
    pinned = {distribution(line) for line in (ROOT / "constraints.txt").read_text().splitlines() if "==" in line}
    assert NEEDED <= pinned, f"not in constraints.txt: {sorted(NEEDED - pinned)}"


def test_citation_is_of_this_version() -> None:
    cited = yaml.safe_load((ROOT / "CITATION.cff").read_text(encoding="utf-8"))
    assert cited["version"] == lightning_guide.__version__ and cited["license"] == PROJECT["license"]
    assert cited["repository-code"] == PROJECT["urls"]["Repository"]


def call(*words: str | Path, cwd: Path, **environment: str) -> str:
    """Run a program without the variables that lead to this checkout; return what it prints."""
    kept = {key: value for key, value in os.environ.items() if key not in ("PYTHONPATH", "VIRTUAL_ENV")}
    done = subprocess.run(words, cwd=cwd, env=kept | environment, text=True, stdout=-1, stderr=-2)  # noqa: PLW1510
    assert done.returncode == 0, f"{' '.join(map(str, words))}\n{done.stdout}"
    return done.stdout


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """The source distribution of the tracked and new files of this checkout, and the wheel that is built from it."""
    folder = tmp_path_factory.mktemp("built")
    source = folder / "checkout"
    listed = ["git", "ls-files", "--cached", "--others", "--exclude-standard"]
    for name in call(*listed, cwd=ROOT).splitlines() if (ROOT / ".git").exists() else []:
        if (ROOT / name).is_file():
            (source / name).parent.mkdir(parents=True, exist_ok=True)
            (source / name).write_bytes((ROOT / name).read_bytes())
    source = source if source.is_dir() else ROOT  # the tests of a source distribution
    backend = "import sys; from setuptools import build_meta as b; print(getattr(b, sys.argv[1])(sys.argv[2]))"
    archive = call(sys.executable, "-c", backend, "build_sdist", folder, cwd=source).splitlines()[-1]
    with tarfile.open(folder / archive) as members:
        members.extractall(folder, filter="data")
    unpacked = folder / archive.removesuffix(".tar.gz")
    wheel = call(sys.executable, "-c", backend, "build_wheel", folder, cwd=unpacked).splitlines()[-1]
    return unpacked, folder / wheel


@pytest.fixture(scope="module")
def installed(built: tuple[Path, Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The programs of an environment with the wheel, which borrows all other packages from this environment."""
    folder = tmp_path_factory.mktemp("environment")
    venv.create(folder)
    site = Path(sysconfig.get_path("purelib", "venv", {"base": str(folder), "platbase": str(folder)}))
    (site / "borrowed.pth").write_text(sysconfig.get_path("purelib") + "\n")  # whose own .pth files are not read
    pip = [sys.executable, "-m", "pip", "--python", str(folder / "bin" / "python")]
    call(*pip, "install", "-q", "--no-deps", "--no-index", "--ignore-installed", built[1], cwd=folder)
    return folder / "bin"


@pytest.mark.slow
def test_the_source_distribution_is_complete(built: tuple[Path, Path]) -> None:
    """It has what `make test` and the documentation need."""
    for folder in (*PACKAGES, "configs", "docs", "scripts", "tests"):
        expected = {path.relative_to(ROOT) for path in (ROOT / folder).rglob("*") if path.is_file()}
        expected = {path for path in expected if "__pycache__" not in path.parts}
        assert expected <= {path.relative_to(built[0]) for path in (built[0] / folder).rglob("*")}
    for name in ("Makefile", "constraints.txt", "mkdocs.yml", "CHANGELOG.md", "CONTRIBUTING.md", "LICENSE"):
        assert (built[0] / name).is_file()


@pytest.mark.slow
def test_the_wheel_does_what_the_readme_says(installed: Path, tmp_path: Path) -> None:
    """The demo, shrunk, from an empty folder; configs are found in the package and written out."""
    where = "import lightning_guide as a, callbacks as b, datamodules as c; print(a.__file__, b.__file__, c.__file__)"
    assert all(str(installed.parent) in word for word in call(installed / "python", "-c", where, cwd=tmp_path).split())
    commands = re.findall(r"\$\(GUIDE\) (.+)", (ROOT / "Makefile").read_text(encoding="utf-8"))
    assert [line.split()[0] for line in commands] == ["fit", "fit", "fit", "test"]
    evaluations = read_yaml(ROOT / "configs/fractal2d/report.yaml")["model"]["init_args"]["evaluations"]
    small = {"trainer": {"max_steps": 32, "limit_val_batches": 0, "logger": False, "enable_progress_bar": False}}
    small |= {"data": {"init_args": {"batch_size": 64}}}
    small_test = {"model": {"init_args": {"evaluations": {name: {"num_samples": 64} for name in evaluations}}}}
    (tmp_path / "fit.yaml").write_text(yaml.safe_dump(small))
    (tmp_path / "test.yaml").write_text(yaml.safe_dump(small | small_test))
    for line in commands:
        command, *words = line.split()
        call(installed / "lightning-guide", command, *words, "-c", f"{command}.yaml", cwd=tmp_path)
    assert list((tmp_path / "runs/fractal2d/report").glob("*.png"))
    call(installed / "lightning-guide", "init", "configs", cwd=tmp_path)
    assert (tmp_path / "configs/digits/main.yaml").is_file()
