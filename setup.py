"""The parts of the build that need code: the package map (kernels/triton is installed as
args_fast.kernels) and the optional C++ ops."""

from setuptools import find_packages, setup

setup(
    packages=[*find_packages(include=["args_fast", "args_fast.*"]), "args_fast.kernels"],
    package_dir={"args_fast": "args_fast", "args_fast.kernels": "kernels/triton"},
    package_data={"args_fast": ["py.typed", "tiny_pair/**/*"]},
)
