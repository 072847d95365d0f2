"""The Hugging Face Hub: downloads, and uploads of an export."""

import shlex
from argparse import Namespace
from collections.abc import Callable
from multiprocessing.pool import ThreadPool
from pathlib import Path

from utils import RunError, UserError, first_line, say

TIMEOUT = 10  # seconds


def within(seconds: float, function: Callable, *arguments):
    """Calls the function; raises multiprocessing.TimeoutError after `seconds`.

    (A host with several dead addresses would be waited for once each.)
    """
    return ThreadPool(1).apply_async(function, arguments).get(seconds)


def download(repo: str, **patterns) -> Path:
    """Returns the local folder of a Hub repository, after downloading what fits snapshot_download's patterns.

    Without the Hub, what was downloaded before is used. Raises UserError where there is neither.
    """
    from huggingface_hub import HfApi, errors, logging, snapshot_download

    logging.set_verbosity_error()  # it prints a page for each of its retries
    ways_on = "name a local folder or random-roberta-base instead"
    offline = False
    try:
        within(TIMEOUT, HfApi().model_info, repo)
    except errors.HFValidationError as error:
        raise UserError(f"{repo!r} is neither a local folder nor a Hub id") from error
    except errors.GatedRepoError as error:
        raise UserError(f"{repo} is gated: ask for access on its page, then run `hf auth login`") from error
    except errors.RepositoryNotFoundError as error:
        raise UserError(f"no model {repo} on the Hub (or it is private, see `hf auth login`); {ways_on}") from error
    except Exception:  # requests', the Hub's, ours
        offline = True
    try:
        folder = snapshot_download(repo, etag_timeout=TIMEOUT, local_files_only=offline, **patterns)
    except errors.LocalEntryNotFoundError as error:
        raise UserError(f"the Hub is out of reach and {repo} is not in its cache; {ways_on}") from error
    except Exception as error:  # the network's, the Hub's, the disk's
        raise RunError(f"{repo} can't be downloaded: {first_line(error)}") from error
    if offline:
        say(f"the Hub is out of reach: taking what was downloaded before of {repo}")
    return Path(folder)


def find_destination(args: Namespace, name: str):
    """Returns the Hub's API with its token, and the repository to upload to.

    Raises UserError if the token is missing or not valid, or may not write there. A pull request may go anywhere.
    """
    from huggingface_hub import HfApi, get_token

    token = args.hf_token or get_token()
    if not token:
        raise UserError("no token for the upload: set HF_TOKEN or run `hf auth login`")
    api = HfApi(token=token)
    try:
        me = within(TIMEOUT, api.whoami)
    except Exception as error:  # requests', the Hub's, ours
        raise UserError(f"no upload with this token: {first_line(error)}") from error
    repo = args.repo_id or f"{me['name']}/{name}"
    owner = repo.split("/")[0]
    owners = [me["name"], *(org["name"] for org in me.get("orgs", []) if org.get("roleInOrg") != "read")]
    access = me.get("auth", {}).get("accessToken", {})
    scopes = access.get("fineGrained", {}).get("scoped", [])
    writable = [scope["entity"].get("name") for scope in scopes if "repo.write" in scope["permissions"]]
    if access.get("role") == "read":
        raise UserError("the token may only read: make one that may write, https://huggingface.co/settings/tokens")
    if not args.create_pr and (owner not in owners or (access.get("role") == "fineGrained" and owner not in writable)):
        raise UserError(f"the token may not write to {owner} (user {me['name']}); see --repo-id and --create-pr")
    return api, repo


def upload(api, repo: str, folder: Path, args: Namespace) -> int:
    """Uploads the whole folder in one commit; returns the exit code."""
    try:
        if not args.create_pr:
            api.create_repo(repo, private=args.private, exist_ok=True)
            if args.private and not api.model_info(repo).private:
                raise UserError(f"{repo} exists and is public")
        message = f"ONNX {args.precision} export"
        commit = api.upload_folder(repo_id=repo, folder_path=folder, commit_message=message, create_pr=args.create_pr)
    except Exception as error:  # requests', the Hub's, the disk's
        options = ["--create-pr"] * args.create_pr + ["--private"] * args.private
        again = shlex.join(["hf", "upload", repo, str(folder), ".", *options])
        say(f"the upload failed: {first_line(error)}; the folder is kept, to try again: {again}")
        return 1
    say(f"uploaded: {commit.pr_url or commit.commit_url}")
    return 0
