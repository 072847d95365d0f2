"""Upload an export to the Hub, in one commit."""

from glob import escape
from pathlib import Path

from bench.export.ensure import foreign_files
from bench.model.hub import with_timeout
from bench.model_files import export_files, inside
from bench.options import command
from bench.variants import CARD, REPORTS, THRESHOLDS
from utils import RunError, UserError, clean, first_line, say


def find_repository(repo_id: str | None, name: str, create_pr: bool) -> tuple:
    """Return the Hub's API with the user's token, and the repository: `repo_id`, or the one called `name` of the user.

    Raises UserError if the token can't upload there.
    """
    from huggingface_hub import HfApi, get_token
    from huggingface_hub.errors import HFValidationError
    from huggingface_hub.utils import validate_repo_id

    token = get_token()
    if not token:
        raise UserError("no access token for the upload; set HF_TOKEN or run `hf auth login`")
    api = HfApi(token=token)
    try:
        user = with_timeout(api.whoami)
    except Exception as error:  # of requests, the Hub or with_timeout
        raise UserError(f"can't check the token: {first_line(error)}; set another HF_TOKEN") from error
    access = user.get("auth", {}).get("accessToken", {})
    if access.get("role") == "read":
        raise UserError("the token is read-only; create one with write access: https://huggingface.co/settings/tokens")
    repo_id = repo_id or f"{user['name']}/{name}"
    try:
        validate_repo_id(repo_id)
    except HFValidationError as error:
        raise UserError(f"{repo_id} can't be a repository: {first_line(error)}; choose another --repo-id") from error
    owner = repo_id.split("/")[0]
    if not create_pr and not {owner, repo_id} & writable_names(user, access):
        raise UserError(f"the token of {user['name']} can't write to {owner}; use another --repo-id or --create-pr")
    return api, repo_id


def writable_names(user: dict, access: dict) -> set[str]:
    """Return the users, organizations and repositories that a token can write to. `access`: the token's part of `user`.

    The name of a repository contains its owner's.
    """
    owners = {user["name"], *(org["name"] for org in user.get("orgs", []) if org.get("roleInOrg") != "read")}
    if access.get("role") != "fineGrained":
        return owners
    scopes = access.get("fineGrained", {}).get("scoped", [])
    names = {str(scope["entity"].get("name")) for scope in scopes if "repo.write" in scope["permissions"]}
    return {name for name in names if name in owners or "/" in name}


def upload(api, repo: str, report: Path, private: bool, create_pr: bool) -> None:
    """Upload an export with this report, in one commit. Raises RunError that says how to try again."""
    folder, again = report.parent, "--check-only --upload"
    if not foreign_files(folder) and {*folder.glob(REPORTS)} <= {report}:  # others may have excerpts of texts
        again = command("hf", "upload", repo, folder, ".", create_pr=create_pr, private=private)
    options = {"commit_message": f"Add {folder.name}", "create_pr": create_pr}
    names = [str(file.relative_to(folder)) for file in export_files(folder)]
    names += [name for name in (report.name, CARD, THRESHOLDS) if inside(folder, name).is_file()]
    options["allow_patterns"] = [escape(name) for name in names]
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
