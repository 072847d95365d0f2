"""An export -> the Hub: who may write where, and one commit with the whole folder."""

import shlex
from argparse import Namespace
from pathlib import Path

from bench.model.hub import with_timeout
from utils import RunError, UserError, first_line, say


def hub_client(args: Namespace, name: str):
    """Returns the Hub's API with its token, and the repository to upload to.

    Raises UserError if the token is missing or not valid, or may not write there. A pull request may go anywhere.
    """
    from huggingface_hub import HfApi, get_token

    token = args.hf_token or get_token()
    if not token:
        raise UserError("no token for the upload: set HF_TOKEN or run `hf auth login`")
    api = HfApi(token=token)
    try:
        me = with_timeout(api.whoami)
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


def upload(api, repo: str, folder: Path, args: Namespace) -> None:
    """Uploads the whole folder in one commit. Raises UserError where it can't, with the command to try again."""
    options = ["--create-pr"] * args.create_pr + ["--private"] * args.private
    again = shlex.join(["hf", "upload", repo, str(folder), ".", *options])
    public = False
    try:
        if not args.create_pr:
            api.create_repo(repo, private=args.private, exist_ok=True)
            public = args.private and not api.model_info(repo).private
        if not public:
            message = f"ONNX {args.precision} export"
            commit = api.upload_folder(
                repo_id=repo, folder_path=folder, commit_message=message, create_pr=args.create_pr
            )
    except Exception as error:  # requests', the Hub's, the disk's
        raise RunError(f"the upload failed: {first_line(error)}; {folder} is kept, to try again: {again}") from error
    if public:
        raise UserError(f"nothing is uploaded: {repo} exists and is public; {folder} is kept")
    say(f"uploaded: {commit.pr_url or commit.commit_url}")


def wants_upload(repo: str) -> bool:
    try:
        return input(f"upload to {repo}? [y/N] ").strip().lower() in ("y", "yes")
    except EOFError:
        return False
