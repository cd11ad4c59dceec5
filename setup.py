"""The part of packaging that pyproject.toml cannot express: the folder configs is installed inside the package."""

from setuptools import find_packages, setup

setup(
    packages=[*find_packages(include=["lightning_guide*", "callbacks*", "datamodules*"]), "lightning_guide.configs"],
    package_dir={"lightning_guide.configs": "configs"},
    package_data={"": ["py.typed"], "lightning_guide.configs": ["**/*.yaml", "README.md"]},
    include_package_data=False,
)
