"""The origin of a figure: versions of packages, and the commit of this project."""

import contextlib
import re
import subprocess
from pathlib import Path

from bench.files import digest
from bench.variants import Variant
from utils import ROOT


def versions(*packages: str) -> dict[str, str]:
    """Return package -> version for the installed ones among `packages`."""
    from importlib import metadata

    installed = {}
    for package in packages:
        with contextlib.suppress(metadata.PackageNotFoundError):
            installed[package] = metadata.version(package)
    return installed


def package_versions(variant: Variant) -> str:
    """Return the versions of a variant's packages, as a result row shows them."""
    installed = versions("torch", "transformers", *variant.packages, *variant.further_packages)
    return ", ".join(f"{name} {version}" for name, version in installed.items())


def missing_packages(variant: Variant) -> list[str]:
    """Return the packages that a variant needs and that are not installed."""
    missing = [package for package in variant.further_packages if not versions(package)]
    return missing if versions(*variant.packages) else [variant.packages[0], *missing]


def project_commit() -> str:
    """Return this project's commit; if the code was changed since, append "+" and a digest of the code."""
    code = sorted([*ROOT.glob("*.py"), *ROOT.glob("bench/**/*.py"), *ROOT.glob("runtimes/*.py")])
    try:
        commit = git("rev-parse", "--short=10", "HEAD")
        changed = git("status", "--porcelain", "--", *(str(path.relative_to(ROOT)) for path in code))
    except (OSError, subprocess.CalledProcessError):
        commit, changed = "", "no git"
    return f"{commit}+{digest(code)[:8]}" if changed else commit


def answering_code(root: Path = ROOT) -> str:
    """Return a digest of the code that computes answers; another version of it may give others."""
    return digest(sorted([*root.glob("runtimes/*.py"), *root.glob("bench/model/*.py")]))


def project_url() -> str:
    """Return the public address that this project was cloned from, or an empty string."""
    with contextlib.suppress(OSError, subprocess.CalledProcessError):
        origin = git("config", "--get", "remote.origin.url").removesuffix(".git")
        if match := re.fullmatch(r"(?:https://|(?:ssh://)?git@)([\w.-]+)[/:]([\w./-]+)", origin):
            return "https://{}/{}".format(*match.groups())
    return ""


def git(*arguments: str) -> str:
    """Return the output of a git command in this project. Raises OSError or CalledProcessError."""
    command = ["git", "-C", ROOT, *arguments]
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()
