"""Getting into a registry: what a 401 asks for, and the tokens that answer it.

Responsible for: reading challenges (RFC 9110, 11.6.1), asking a token service (the Docker and OCI token protocol),
how long a token is good for, and who may see which secret. Leaves to others: asking for the content (`oci`), keeping
the tokens of all sources together (`Connector.tokens`), where credentials come from (`wiring`).

Rules:
- Nothing but the registry's own origin sees a token; its credentials go there and to the token service that it names.
- A token service is reached over https, unless both are on this machine or, where no login goes there, in a private
  network; it is not in one unless the registry is, by the addresses that are connected to.
- A token is asked for once for all that need it, and again when a 401 says that it has ended.
"""

import ipaddress
import re
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, TypeVar
from urllib.parse import parse_qsl, urlencode, urlsplit

from modelcache.errors import NotFoundError, SourceError, UsageError
from modelcache.remotes.connection import Connector
from modelcache.remotes.document import get
from modelcache.remotes.reply import Head
from modelcache.remotes.source import Abort
from modelcache.remotes.tokens import Tokens
from modelcache.urls import checked_url, is_private

DEFAULT_LIFE_S = 60.0  # of a token that does not say (Docker token specification)
SHARE_OF_LIFE = 0.9  # what of it is used: clocks and ways differ
LONGEST_LIFE_S = 86_400.0
MOST_CHALLENGE = 4096
MOST_TOKEN_BYTES = 64 << 10
LOOK_S = 0.2
_SCHEME_OR_PARAMETER = re.compile(r'([A-Za-z][\w.-]*)(?:\s*=\s*(?:"([^"]*)"|([^\s,"]*)))?')

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Registry:
    """Where a registry is, and what is for its origin alone: the caller's headers, and a login (`Basic …`). `garbled`
    is a file that may hold a login and cannot be read."""

    base: str
    secrets: Mapping[str, str] = field(default_factory=dict, repr=False)
    login: str = field(default="", repr=False)
    garbled: str = ""

    @property
    def host(self) -> str:
        return urlsplit(self.base).netloc


class ChallengedError(SourceError):
    """401: `challenges` are the parameters of each scheme that would do, by its name in lower case. `is_inside`: who
    says so is on this machine or in a private network."""

    def __init__(self, challenges: Mapping[str, Mapping[str, str]], *, is_inside: bool = False) -> None:
        super().__init__("401: it asks who we are")
        self.challenges = challenges
        self.is_inside = is_inside
        self.status = 401


class Access:
    """To one repository of a registry; `called` is that in messages. Threads may use it at the same time."""

    def __init__(self, registry: Registry, repository: str, connector: Connector, called: str) -> None:
        self._called = called
        self._registry = registry
        self._repository = repository
        self._connector = connector
        given = registry.secrets.get("Authorization", "")
        self._login = given if given.lower().startswith("basic ") else registry.login if not given else ""
        self._fixed = given if given and not self._login else ""
        self._key = (registry.base, repository, self._login)

    def run(self, ask: Callable[[Mapping[str, str]], T], abort: Abort) -> T:
        """What `ask` gives with the right headers; it is called a second time after it raised ChallengedError.

        NotFoundError where no login helps, and whatever else `ask` or the token service raises.
        """
        used = self._fixed or self._tokens.of(self._key)
        try:
            return ask(self._headers(used))
        except ChallengedError as refused:
            now = self._answer(refused, used, abort)
        try:
            return ask(self._headers(now))
        except ChallengedError as error:
            self._tokens.forget(self._key)
            raise self.refused() from error

    @property
    def _tokens(self) -> Tokens:
        return self._connector.tokens

    def _headers(self, authorization: str) -> Mapping[str, str]:
        others = {name: value for name, value in self._registry.secrets.items() if name != "Authorization"}
        return others | ({"Authorization": authorization} if authorization else {})

    def _answer(self, refused: ChallengedError, used: str, abort: Abort) -> str:
        """What the registry wants to see: obtained now, unless another thread just did."""
        if self._fixed:
            raise self.refused()
        with _held(self._tokens, abort):
            known = self._tokens.of(self._key)
            if known not in ("", used):
                return known
            if "bearer" in refused.challenges:
                return self._token(refused.challenges["bearer"], abort, from_inside=refused.is_inside)
            if "basic" in refused.challenges and self._login and self._login != used:
                self._tokens.keep(self._key, self._login)
                return self._login
            raise self.refused()

    def _token(self, wanted: Mapping[str, str], abort: Abort, *, from_inside: bool) -> str:
        url = self._token_url(wanted, from_inside=from_inside)
        secrets = {"Authorization": self._login} if self._login else {}
        said = get(
            self._connector, url, abort, secrets=secrets, explain=self._token_refused, most_bytes=MOST_TOKEN_BYTES,
            public_only=not from_inside,
        ).json()  # fmt: skip
        said = said if isinstance(said, dict) else {}
        token = said.get("token") or said.get("access_token")
        if not isinstance(token, str) or not re.fullmatch(r"[\x21-\x7e]+", token):
            raise SourceError(f"{urlsplit(url).netloc} gave no token for {self._registry.host}")
        header = f"Bearer {token}"
        self._tokens.keep(self._key, header, time.monotonic() + SHARE_OF_LIFE * _life_s(said))
        return header

    def _token_url(self, wanted: Mapping[str, str], *, from_inside: bool) -> str:
        """SourceError for a token service that is not to be asked. A name is not looked up here: whether it leads into
        a private network is seen when it is connected to."""
        realm = wanted.get("realm", "")
        try:
            there, own = urlsplit(checked_url(realm)), urlsplit(self._registry.base)
        except UsageError as error:
            raise SourceError(f"{self._registry.host} names a token service that is no URL") from error
        host = there.hostname or ""
        may_be_plain = own.scheme == "http" and (is_here(host) if self._login else is_inside(host))
        if "@" in there.netloc or not (there.scheme == "https" or may_be_plain):
            raise SourceError(f"{self._registry.host} wants its token fetched without https, which is not done")
        if is_inside(host) and not from_inside:
            raise SourceError(f"{self._registry.host} names a token service in a private network, which is not asked")
        query = dict(parse_qsl(there.query)) | {name: wanted[name] for name in ("service",) if name in wanted}
        scope = wanted.get("scope") or f"repository:{self._repository}:pull"
        return there._replace(query=urlencode([*query.items(), ("scope", scope)]), fragment="").geturl()

    def _token_refused(self, head: Head) -> SourceError | None:
        return self.refused() if head.status in (400, 401, 403, 404) else None

    def refused(self) -> NotFoundError:
        """What is said where no token is given, or none helps."""
        host = self._registry.host
        if self._fixed or self._login:
            why, advice = "your login has no access to it, or it is not there", "check the name and the login"
        else:
            why, advice = "private, or not there", f"check the name, or log in: `docker login {host}`, or --header"
            if garbled := self._registry.garbled:
                advice = f"mend {garbled}, which cannot be read, or {advice}"
        refusal = NotFoundError(f"{self._called} is not to be had from {host}: {why}", next_step=advice)
        refusal.status = 401
        return refusal


def challenge_of(head: Head) -> ChallengedError | None:
    """What a 401 asks for; None for any other reply."""
    if head.status != 401:
        return None
    return ChallengedError(challenges(head.text("www-authenticate")), is_inside=head.is_inside)


def challenges(text: str) -> dict[str, dict[str, str]]:
    """The parameters of each scheme, names in lower case; what is malformed is left out."""
    found: dict[str, dict[str, str]] = {}
    scheme: dict[str, str] = {}
    for match in _SCHEME_OR_PARAMETER.finditer(text[:MOST_CHALLENGE]):
        name, quoted, plain = match.groups()
        if quoted is None and plain is None:
            scheme = found.setdefault(name.lower(), {})
        else:
            scheme[name.lower()] = quoted or plain or ""
    return found


def is_inside(host: str) -> bool:
    """Whether a host is this machine or, by its address, in a private network."""
    return is_here(host) or (_address(host) is not None and is_private(host))


def is_here(host: str) -> bool:
    """Whether a host is this machine."""
    name, address = host.lower(), _address(host)
    return name == "localhost" or name.endswith(".localhost") or (address is not None and address.is_loopback)


def _address(host: str) -> ipaddress.IPv4Address | ipaddress.IPv6Address | None:
    try:
        return ipaddress.ip_address(host.strip("[]"))
    except ValueError:
        return None  # a name may mean anything


def _life_s(said: Mapping[str, Any]) -> float:
    match said.get("expires_in"):
        case bool():
            return DEFAULT_LIFE_S
        case int(life_s) | float(life_s) if life_s > 0:
            return min(life_s, LONGEST_LIFE_S)
    return DEFAULT_LIFE_S


@contextmanager
def _held(tokens: Tokens, abort: Abort) -> Iterator[None]:
    """One asks for tokens at a time; who waits for him can be stopped."""
    while not tokens.asking.acquire(timeout=LOOK_S):
        abort.check()
    try:
        yield
    finally:
        tokens.asking.release()
