"""To the hub: a finished folder, through `huggingface_hub`, whose token is the one of the usual environment (HF_TOKEN, or a login).

All that can be known beforehand is looked at before anything is made there. Whatever the network does ends in one sentence.
"""

import re
from pathlib import Path

from temporallens.activations.language.model_files import hub_is_known
from temporallens.activations.language.shipped import quiet_transformers
from temporallens.errors import TemporalLensError, first_line

REPOSITORY = re.compile(r"[A-Za-z0-9][\w.-]{0,95}/[A-Za-z0-9][\w.-]{0,95}", re.ASCII)


def check_push(repository: str) -> None:
    """Raise TemporalLensError where nothing can be uploaded to `user/name`: no such name, no library, no token, no network."""
    if not REPOSITORY.fullmatch(repository) or ".." in repository or "--" in repository or repository.endswith((".git", ".", "-")):
        raise TemporalLensError(f"'{repository}' is no name on the hub: it should be user/name, of letters, digits, '-', '_' and '.'")
    try:
        from huggingface_hub import get_token
    except ImportError as error:
        raise TemporalLensError("--push needs the package huggingface_hub, which is not installed: pip install huggingface_hub") from error
    if get_token() is None:
        raise TemporalLensError("there is no token of the hub to upload with: set HF_TOKEN, or run `hf auth login`")
    if not hub_is_known():
        raise TemporalLensError(
            f"the hub cannot be reached, so that nothing is uploaded to {repository}: there is no network, or no such host"
        )


def push(folder: Path, repository: str, private: bool = False, revision: str | None = None) -> str:
    """Upload what is in `folder` to `user/name`, which is made where it is not there yet (`private`, then), on the branch `revision`;
    returns the address of the commit.

    Raises TemporalLensError where the hub refuses it, or cannot be reached.
    """
    from huggingface_hub import HfApi
    from huggingface_hub.errors import HTTPError

    api, done = HfApi(), "nothing was uploaded"
    try:
        with quiet_transformers():
            api.create_repo(repository, private=private or None, exist_ok=True)
            if revision is not None:
                api.create_branch(repository, branch=revision, exist_ok=True)
            done = "the upload did not finish, and may have left files there"
            commit = api.upload_folder(
                repo_id=repository, folder_path=folder, revision=revision, commit_message="A dictionary, exported with TemporalLens"
            )
    except (OSError, ValueError, RuntimeError, HTTPError) as error:
        raise TemporalLensError(f"the hub did not take {repository} ({first_line(_reason(error))}): {done}") from error
    return str(commit.commit_url)


def _reason(error: BaseException) -> BaseException:
    """What an error comes from: that a file was not uploaded says nothing of why."""
    return error if error.__cause__ is None else _reason(error.__cause__)
