"""Download the published samples of 10,000 Reddit comments: run_benchmark.py's `normal` and `filtered`.

    python data/download.py                                  # both, into this folder
    python data/download.py filtered --from ~/Downloads      # a local copy, or the http(s) address of a mirror

Each file is checked against its SHA-256 before it is put in place. Existing files that match are kept, others are
replaced, so an interrupted download can simply be started again.

Exit code: 0, 1 if a file cannot be downloaded or is not the published one, 2 for wrong usage, 130 after Ctrl-C.
"""

import hashlib
import os
import re
import sys
from argparse import Namespace
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
from bench.files import check_writable, new_file
from bench.options import Parser
from bench.tables.datasets import DATASETS
from utils import RunError, UserError, first_line, run, say

PUBLISHED = "https://github.com/joaopn/gpu_benchmark_goemotions/raw/main/data"
SHA256 = {
    "normal": "d466b63662c81f4d3371456a889bfb649e26bcf468d3ef1f2a85c1236aba4afe",
    "filtered": "beb92362908a03c646e72907cee7f4a287293108ce8533d5100ed632e964b619",
}


def locate(file: str, origin: str) -> str:
    """Return the address or path of a file; `origin` is its folder or the file itself. Raises UserError."""
    if re.match(r"https?://", origin):
        return origin if origin.endswith(".gz") else f"{origin.rstrip('/')}/{file}"
    path = Path(origin, file) if os.path.isdir(origin) else Path(origin)
    if not os.path.isfile(path):  # Path.is_file() raises an error if a name is too long
        raise UserError(f"file not found: {path}; choose another --from")
    return str(path)


def fetch(source: str, target: Path, sha256: str) -> None:
    """Copy or download a file to `target`, unless `target` already has this SHA-256.

    Raises OSError if it cannot be read or written, ValueError if it has another SHA-256.
    """
    if target.exists() and hashlib.sha256(target.read_bytes()).hexdigest() == sha256:
        return
    if os.path.exists(source):
        content = Path(source).read_bytes()
    else:
        import requests

        say(f"downloading {source}")
        response = requests.get(source, timeout=30)
        response.raise_for_status()
        content = response.content
    if hashlib.sha256(content).hexdigest() != sha256:
        raise ValueError("not the published file (its SHA-256 differs)")
    with new_file(target) as file:
        file.write(content)


def parse_arguments() -> Namespace:
    parser = Parser(__doc__)
    add = parser.add_argument
    add("dataset", nargs="?", choices=(*SHA256, "all"), default="all", help="which sample (default: all)")
    origin_help = "a folder that contains the published files, or one of these files (default: %(default)s)"
    add("--from", dest="origin", default=PUBLISHED, metavar="PATH|URL", help=origin_help)
    add("--output-dir", type=Path, default=Path(__file__).parent, help="target folder (default: this script's folder)")
    return parser.parse_args()


def main() -> int:
    args = parse_arguments()
    names = list(SHA256) if args.dataset == "all" else [args.dataset]
    sources = {name: locate(DATASETS[name][0], args.origin) for name in names}
    if len(set(sources.values())) < len(sources):
        raise UserError(f"--from is a single file; name its dataset: {' or '.join(SHA256)}")
    check_writable(args.output_dir)
    for name, source in sources.items():
        target = args.output_dir / DATASETS[name][0]
        try:
            fetch(source, target, SHA256[name])
        except (OSError, ValueError) as error:
            raise RunError(f"{source} can't be used: {first_line(error)}; try another --from") from error
        say(f"{target}: OK (SHA-256 matches)")
    return 0


if __name__ == "__main__":
    run(main)
