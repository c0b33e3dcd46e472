"""Package metadata comes from settings.ini; the extras are listed here."""
from configparser import ConfigParser
from pathlib import Path
import shlex

from setuptools import find_packages, setup

ini = ConfigParser(delimiters=["="])
ini.read(Path(__file__).with_name("settings.ini"), encoding="utf-8")
cfg = ini["DEFAULT"]

EXTRAS = {
    "dev": shlex.split(cfg["dev_requirements"]),
    "gpu": ["xgboost==3.2.0"],  # the CUDA build of the same library; uninstall xgboost-cpu first
    "data": ["yfinance"],
    "regime": ["jumpmodels", "hmmlearn", "ruptures"],
    "cv": ["skfolio", "purgedcv"],
    "postgres": ["psycopg[binary]"],
    "s3": ["fsspec", "s3fs"],
    "brokers": ["alpaca-py"],
    "dashboard": ["panel"],
    "dask": ["dask[distributed]", "cryptography"],
    "ta": ["ta-lib"],
}

setup(
    name=cfg["lib_name"],
    version=cfg["version"],
    description=cfg["description"],
    long_description=Path(__file__).with_name("README.md").read_text(encoding="utf-8"),
    long_description_content_type="text/markdown",
    license="Apache-2.0",
    python_requires=f">={cfg['min_python']}",
    packages=find_packages(include=[cfg["lib_path"], cfg["lib_path"] + ".*"]),
    install_requires=shlex.split(cfg["requirements"]),
    extras_require=EXTRAS,
    entry_points={
        "console_scripts": [line for line in cfg["console_scripts"].splitlines() if line.strip()],
        "nbdev": [f"{cfg['lib_path']}={cfg['lib_path']}._modidx:d"],
    },
)
