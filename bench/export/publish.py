"""Upload an export to the Hub, in one commit."""

from pathlib import Path

from bench.model.hub import with_timeout
from bench.options import command
from utils import RunError, UserError, clean, first_line, say


def find_repository(token: str | None, repo_id: str | None, name: str, create_pr: bool) -> tuple:
    """Return the Hub's API with its token, and the repository: `repo_id`, or the one called `name` of the user.

    Raises UserError if the token is missing, is invalid, or has no write access. Pull requests need none.
    """
    from huggingface_hub import HfApi, get_token

    token = token or get_token()
    if not token:
        raise UserError("no access token for the upload; set HF_TOKEN or run `hf auth login`")
    api = HfApi(token=token)
    try:
        user = with_timeout(api.whoami)
    except Exception as error:  # of requests, the Hub or with_timeout
        raise UserError(f"can't check the token: {first_line(error)}; see --hf-token") from error
    access = user.get("auth", {}).get("accessToken", {})
    if access.get("role") == "read":
        raise UserError("the token is read-only; create one with write access: https://huggingface.co/settings/tokens")
    repo_id = repo_id or f"{user['name']}/{name}"
    if not create_pr and (owner := repo_id.split("/")[0]) not in writable_owners(user, access):
        raise UserError(f"the token of {user['name']} can't write to {owner}; use another --repo-id or --create-pr")
    return api, repo_id


def writable_owners(user: dict, access: dict) -> set[str]:
    """Return the users and organizations that a token can write to. `access`: the token's part of `user`."""
    owners = {user["name"], *(org["name"] for org in user.get("orgs", []) if org.get("roleInOrg") != "read")}
    if access.get("role") != "fineGrained":
        return owners
    scopes = access.get("fineGrained", {}).get("scoped", [])
    return owners & {scope["entity"].get("name") for scope in scopes if "repo.write" in scope["permissions"]}


def upload(api, repo: str, folder: Path, private: bool, create_pr: bool) -> None:
    """Upload a whole folder in one commit. Raises RunError with a command that tries again."""
    again = command("hf", "upload", repo, folder, ".", create_pr=create_pr, private=private)
    options = {"commit_message": f"Add {folder.name}", "create_pr": create_pr}
    try:
        if not create_pr:
            api.create_repo(repo, private=private, exist_ok=True)
        is_public = private and not create_pr and not api.model_info(repo).private
        if not is_public:
            commit = api.upload_folder(repo_id=repo, folder_path=folder, **options)
    except Exception as error:  # of requests, the Hub or the disk
        raise RunError(f"upload failed: {first_line(error)}; {folder} is kept. Try again with: {again}") from error
    if is_public:
        raise UserError(f"--private: {repo} exists and is public; choose another --repo-id")
    say(f"uploaded: {commit.pr_url or commit.commit_url}")


def wants_upload(repo: str) -> bool:
    try:
        return input(clean(f"upload to {repo}? [y/N] ")).strip().lower() in ("y", "yes")
    except EOFError:
        return False
