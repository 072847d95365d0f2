"""Fetches the published samples of 10,000 Reddit comments: run_benchmark.py's `normal` and `filtered` from then on.

    python data/download.py                                  # both, into this folder
    python data/download.py filtered --from ~/Downloads      # a local copy, or a mirror's http(s) address

Every file is checked against its SHA-256, and only then takes its place. One that is there already is left alone, so
that an interrupted download is simply started again; one that differs is replaced.

Exit code: 0, 1 if a file can't be fetched or is not the published one, 2 for wrong usage, 130 after Ctrl-C.
"""

import os
import re
import shutil
import sys
from argparse import Namespace
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
from bench.files import check_writable
from bench.tables.datasets import DATASETS
from utils import Parser, RunError, UserError, first_line, run, say

PUBLISHED = "https://github.com/joaopn/gpu_benchmark_goemotions/raw/main/data"
SHA256 = {
    "normal": "d466b63662c81f4d3371456a889bfb649e26bcf468d3ef1f2a85c1236aba4afe",
    "filtered": "beb92362908a03c646e72907cee7f4a287293108ce8533d5100ed632e964b619",
}


def locate(file: str, origin: str) -> str:
    """Returns the address or path of a file below `origin`, which is a folder or the file itself. Raises UserError."""
    if re.match(r"https?://", origin):
        return origin if origin.endswith(".gz") else f"{origin.rstrip('/')}/{file}"
    path = Path(origin, file) if os.path.isdir(origin) else Path(origin)
    if not os.path.isfile(path):  # unlike Path's, it takes a name that is too long
        raise UserError(f"there is no file {path}")
    return str(path)


def fetch(source: str, target: Path, sha256: str) -> None:
    """Puts the file at an address or path in the place of `target`, unless `target` has this SHA-256 already.

    Raises OSError if it can't be read or written (what requests raises is one), ValueError if it is another file.
    """
    import pooch
    from tqdm import tqdm

    if target.exists() and pooch.file_hash(target) == sha256:
        return
    pooch.get_logger().setLevel("WARNING")
    local = os.path.exists(source)
    # tqdm is falsy without a total, and pooch tests its truth before it sets one
    with tqdm(desc=target.name, total=1, unit="B", unit_scale=True, disable=local) as progress:
        download = pooch.HTTPDownloader(progressbar=progress, chunk_size=2**14)
        download = (lambda path, output, _: shutil.copyfile(path, output)) if local else download
        pooch.retrieve(source, f"sha256:{sha256}", target.name, target.parent, downloader=download)
    target.chmod(0o644)  # it was a temporary file, which is for its owner only


def parse_arguments() -> Namespace:
    parser = Parser(__doc__)
    add = parser.add_argument
    add("dataset", nargs="?", choices=(*SHA256, "all"), default="all", help="default: all")
    origin_help = "a file, or a folder with the files under their own names (default: %(default)s)"
    add("--from", dest="origin", default=PUBLISHED, metavar="PATH|URL", help=origin_help)
    add("--output-dir", type=Path, default=Path(__file__).parent, help="default: this folder")
    return parser.parse_args()


def main() -> int:
    args = parse_arguments()
    names = list(SHA256) if args.dataset == "all" else [args.dataset]
    sources = {name: locate(DATASETS[name][0], args.origin) for name in names}
    if len(set(sources.values())) < len(sources):
        raise UserError("--from is one file: say whether it is normal or filtered")
    check_writable(args.output_dir)
    for name, source in sources.items():
        target = args.output_dir / DATASETS[name][0]
        try:
            fetch(source, target, SHA256[name])
        except (OSError, ValueError) as error:
            raise RunError(f"{source}: {first_line(error)}") from error
        say(f"{target}: there, and the published file")
    return 0


if __name__ == "__main__":
    run(main)
