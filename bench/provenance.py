"""Where a figure comes from: versions of packages, and the commit of this project."""

import contextlib
import hashlib
import importlib.metadata
import re
import subprocess

from bench.variants import Variant
from utils import ROOT


def versions(*packages: str) -> dict[str, str]:
    """Returns the versions of those of the packages that are installed."""
    found = {}
    for package in packages:
        with contextlib.suppress(importlib.metadata.PackageNotFoundError):
            found[package] = importlib.metadata.version(package)
    return found


def package_versions(variant: Variant) -> str:
    """Returns the versions that a variant runs with, as rows have them."""
    known = versions("torch", "transformers", *variant.packages)
    return ", ".join(f"{name} {version}" for name, version in known.items())


def project_commit() -> str:
    """Returns this project's commit; where the code is not the commit's, "+" and a digest of the code follow."""
    code = sorted([*ROOT.glob("*.py"), *ROOT.glob("bench/**/*.py"), *ROOT.glob("runtimes/*.py")])
    digest = hashlib.sha256(b"".join(path.read_bytes() for path in code)).hexdigest()[:8]
    try:
        commit = git("rev-parse", "--short=10", "HEAD")
        changed = git("status", "--porcelain", "--", *(str(path.relative_to(ROOT)) for path in code))
    except (OSError, subprocess.CalledProcessError):
        commit, changed = "", "no git"
    return f"{commit}+{digest}" if changed else commit


def project_url() -> str:
    """Returns the public address that this project was cloned from; nothing where there is none."""
    with contextlib.suppress(OSError, subprocess.CalledProcessError):
        origin = git("config", "--get", "remote.origin.url").removesuffix(".git")
        if found := re.fullmatch(r"(?:https://|(?:ssh://)?git@)([\w.-]+)[/:]([\w./-]+)", origin):
            return "https://{}/{}".format(*found.groups())
    return ""


def git(*arguments: str) -> str:
    """Asks git about this project. Raises OSError or CalledProcessError."""
    command = ["git", "-C", ROOT, *arguments]
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()
