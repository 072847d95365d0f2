"""Downloads from the Hugging Face Hub."""

from collections.abc import Callable, Sequence
from glob import escape
from multiprocessing.pool import ThreadPool
from pathlib import Path

from utils import RunError, UserError, first_line, say

TIMEOUT = 10  # seconds


def with_timeout(function: Callable, *arguments, **options):
    """Call the function; raise multiprocessing.TimeoutError after TIMEOUT seconds.

    A timeout of the HTTP client would apply to each of a host's addresses in turn.
    """
    return ThreadPool(1).apply_async(function, arguments, options).get(TIMEOUT)


def list_files(repo: str, revision: str = "") -> list[str]:
    """Return the names of a repository's files; empty if the Hub can't be reached."""
    from huggingface_hub import HfApi

    try:
        info = with_timeout(HfApi().model_info, repo, revision=revision or None)
    except Exception:  # of requests, the Hub, or our timeout
        return []
    return [file.rfilename for file in info.siblings or ()]


def download(repo: str, names: Sequence[str] = (), revision: str = "") -> Path:
    """Download files of a repository, by default of its main branch; return the local folder.

    If the Hub can't be reached, an earlier download is used. Raises UserError if there is none.
    """
    from huggingface_hub import HfApi, errors, logging, snapshot_download

    logging.set_verbosity_error()  # it prints a page for each retry
    offline = False
    try:
        with_timeout(HfApi().model_info, repo, revision=revision or None)
    except errors.HFValidationError as error:
        raise UserError(f"{repo!r} is neither a local folder nor a Hub id") from error
    except errors.GatedRepoError as error:
        raise UserError(f"{repo} is gated; ask for access on its page, then run `hf auth login`") from error
    except errors.RepositoryNotFoundError as error:
        raise UserError(f"{repo} is not on the Hub, or private: see `hf auth login`") from error
    except errors.RevisionNotFoundError as error:
        raise UserError(f"{repo} has no branch, tag or commit {revision}") from error
    except Exception:  # of requests, the Hub, or our timeout
        offline = True
    try:
        options = {"etag_timeout": TIMEOUT, "local_files_only": offline, "revision": revision or None}
        folder = snapshot_download(repo, allow_patterns=[escape(name) for name in names], **options)
    except errors.LocalEntryNotFoundError as error:
        raise UserError(f"the Hub can't be reached and {repo} is not in its cache") from error
    except Exception as error:  # of the network, the Hub or the disk
        hint = "; set HF_HOME to a folder with space" if getattr(error, "filename", None) else ""
        raise RunError(f"{repo} can't be downloaded: {first_line(error)}{hint}") from error
    if offline:
        say(f"the Hub can't be reached: using the earlier download of {repo}")
    return Path(folder)
