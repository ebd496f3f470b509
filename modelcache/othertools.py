"""What the tools of Hugging Face and Docker have set or left on this machine, for whoever speaks with the same servers.

Responsible for: their variables, folders, tokens and logins, read as they read them. Nothing is run, and nothing that
is wrong there raises anything: then there is no token. Leaves to others: to whom a token goes (`wiring`).
"""

import json
import os
import re

from modelcache.store.disk import at_once

MOST_TOKEN_BYTES = 4096
MOST_LOGIN_BYTES = 1 << 20


def is_offline(scheme: str) -> bool:
    """Whether the user said that this kind of hub must not be asked."""
    return scheme == "hf" and _is_on("HF_HUB_OFFLINE")


def hub_home() -> str:
    """The folder of Hugging Face's own tools."""
    caches = os.environ.get("XDG_CACHE_HOME") or os.path.join("~", ".cache")
    return os.environ.get("HF_HOME") or os.path.join(caches, "huggingface")


def hub_token() -> str:
    """HF_TOKEN, else what `hf auth login` has left, unless that must not be used."""
    if token := os.environ.get("HF_TOKEN", "").strip():
        return token
    if _is_on("HF_HUB_DISABLE_IMPLICIT_TOKEN"):
        return ""
    try:
        with open(_hub_token_file(), "rb", opener=at_once) as stream:
            return stream.read(MOST_TOKEN_BYTES).decode().strip()
    except (OSError, ValueError):
        return ""


def hub_token_place() -> str:
    """Which variable, or which file, the token is from."""
    return "HF_TOKEN" if os.environ.get("HF_TOKEN", "").strip() else _hub_token_file()


def docker_logins() -> dict[str, str]:
    """What `docker login` has left, by host: the headers that they stand for.

    Nothing is run to get them: a login that a helper keeps (`credsStore`) is not found.
    """
    found = _docker_auths() or {}
    return {
        (key.partition("://")[2] or key).partition("/")[0].lower(): f"Basic {auth}"
        for key, auth in found.items()
        if isinstance(auth, str) and re.fullmatch("[A-Za-z0-9+/]+=*", auth)
    }


def garbled_logins() -> str:
    """The file of docker's logins, where it holds something else; else empty."""
    return _docker_file() if _docker_auths() is None else ""


def _docker_auths() -> dict[str, object] | None:
    """None where the file is garbled."""
    try:
        with open(_docker_file(), "rb", opener=at_once) as stream:
            said = json.loads(stream.read(MOST_LOGIN_BYTES))
        return {key: entry.get("auth") for key, entry in said.get("auths", {}).items()}
    except OSError:  # it is not there, or another account's
        return {}
    except (ValueError, TypeError, AttributeError, RecursionError):
        return None


def secret_files() -> list[str]:
    """Files that hold tokens, as far as they are there."""
    found = [_hub_token_file(), *([_docker_file()] if docker_logins() else [])]
    return [path for path in found if os.path.isfile(path)]


def _hub_token_file() -> str:
    return os.path.expanduser(os.environ.get("HF_TOKEN_PATH") or os.path.join(hub_home(), "token"))


def _docker_file() -> str:
    folder = os.environ.get("DOCKER_CONFIG") or os.path.join("~", ".docker")
    return os.path.join(os.path.expanduser(folder), "config.json")


def _is_on(variable: str) -> bool:
    """As Hugging Face's own tools read a switch of the environment."""
    return os.environ.get(variable, "").strip().upper() in ("1", "ON", "YES", "TRUE")
