"""The Hugging Face Hub: downloads."""

from collections.abc import Callable
from multiprocessing.pool import ThreadPool
from pathlib import Path

from utils import RunError, UserError, first_line, say

TIMEOUT = 10  # seconds


def with_timeout(function: Callable, *arguments):
    """Calls the function; raises multiprocessing.TimeoutError after TIMEOUT seconds.

    (A host with several dead addresses would be waited for once each.)
    """
    return ThreadPool(1).apply_async(function, arguments).get(TIMEOUT)


def download(repo: str, **patterns) -> Path:
    """Returns the local folder of a Hub repository, after downloading what fits snapshot_download's patterns.

    Without the Hub, what was downloaded before is used. Raises UserError where there is neither.
    """
    from huggingface_hub import HfApi, errors, logging, snapshot_download

    logging.set_verbosity_error()  # it prints a page for each of its retries
    offline = False
    try:
        with_timeout(HfApi().model_info, repo)
    except errors.HFValidationError as error:
        raise UserError(f"{repo!r} is neither a local folder nor a Hub id") from error
    except errors.GatedRepoError as error:
        raise UserError(f"{repo} is gated: ask for access on its page, then run `hf auth login`") from error
    except errors.RepositoryNotFoundError as error:
        raise UserError(f"no model {repo} on the Hub (or it is private, see `hf auth login`)") from error
    except Exception:  # requests', the Hub's, ours
        offline = True
    try:
        folder = snapshot_download(repo, etag_timeout=TIMEOUT, local_files_only=offline, **patterns)
    except errors.LocalEntryNotFoundError as error:
        raise UserError(f"the Hub is out of reach and {repo} is not in its cache") from error
    except Exception as error:  # the network's, the Hub's, the disk's
        raise RunError(f"{repo} can't be downloaded: {first_line(error)}") from error
    if offline:
        say(f"the Hub is out of reach: taking what was downloaded before of {repo}")
    return Path(folder)
