"""What a URL is, and what of it may be seen: rules on text, nobody is asked.

Responsible for: refusing malformed URLs, the origin a secret is bound to (I20), cutting secrets before anything is
stored or shown (I22), following a Location header, and telling private addresses from public ones.
Leaves to others: asking DNS, sending requests, counting redirects and holding tokens (`remotes`).
"""

import re
from typing import TYPE_CHECKING

from modelcache.errors import SourceError, UsageError

if TYPE_CHECKING:
    from urllib.parse import SplitResult

MOST_CHARACTERS = 8192
DEFAULT_PORTS = {"http": 80, "https": 443}
_SHOWN_CHARACTERS = 200

_USERINFO = re.compile(r"(\Ahttps?:/?|//)[^/]*@", re.IGNORECASE)
_AUTHORITY = re.compile(r"//(?![^/:\[]*(?::[0-9]*)?(?:/|$)|\[[^/\]]*\](?::[0-9]*)?(?:/|$)).*", re.DOTALL)
_HOST = re.compile(r"[.~-]*\w[\w.~-]*")

_CREDENTIAL = re.compile(
    "expires|signature|key-pair-id|policy|auth|authorization|jwt|sig|api_?key|(?:access_|auth_|security-)?token"
    "|(?:aws|oss)accesskeyid|googleaccessid|x-(?:amz|goog|oss|cos)-.*",
    re.DOTALL,
)
_SESSION = re.compile("j?session_?id|phpsessid|sid")
_PARAMETER = re.compile(";([^=;/]*)=[^;/]*")  # of a segment of a path (RFC 3986, 3.3)
# Azure's names are short enough to mean something else elsewhere (sr=44100): they count only beside its `sig`.
_AZURE_SAS = re.compile("s[eprstv]|s(?:rt|ip|pr|es|dd|cid|koid|ktid)|sk[tesv]|saoid|suoid")


def checked_url(text: str) -> str:
    """The URL as it is; UsageError if it is not an http or https URL with a host. The message holds no secret."""
    if fault := _fault(text):
        raise UsageError(f"{_shown(text)} is not a usable URL: {fault}")
    return text


def origin_of(url: str) -> tuple[str, str, int]:
    """Scheme, host in lower case, and port: what a token is given for. UsageError for what is no URL."""
    split = _split(checked_url(url))
    return split.scheme, split.hostname or "", split.port or DEFAULT_PORTS[split.scheme]


def is_same_place(one: str, other: str) -> bool:
    """Whether headers given for one URL may go to the other: the same origin, or the same hub (I20)."""
    if one.startswith("hf:") and other.startswith("hf:"):
        return True  # there is one endpoint
    try:
        return _place(one) == _place(other)
    except (UsageError, ValueError):
        return False


def _place(url: str) -> tuple[str, str, int]:
    if not url.startswith("oci://"):
        return origin_of(url)
    _, host, port = origin_of("https" + url.removeprefix("oci"))
    return "oci", host, port


def without_secrets(url: str) -> str:
    """The URL without userinfo, query, fragment and what a session puts into its path (`;jsessionid=…`), fit to be
    stored and shown. The rest of a path names a file: it is kept, whatever it holds. Never raises.

    Whatever is no URL is kept as it is (an id, `oci://...`), unless something in it could be a secret.
    """
    joined = re.sub("[\t\r\n]", "", url)  # as URL parsers do: a line break hides no "//"
    seen = without_session(_USERINFO.sub(r"\1", re.split("[?#]", joined, maxsplit=1)[0]))
    # What is no host and port may be half a password that had a "/", "?" or "#" in it: nothing after it is shown.
    return _AUTHORITY.sub("//...", seen)


def without_session(path: str) -> str:
    """A path without parameters that are credentials by their name; others may be part of the name of a file."""

    def kept(found: re.Match[str]) -> str:
        name = found[1].lower()
        return "" if _SESSION.fullmatch(name) or _CREDENTIAL.fullmatch(name) else found[0]

    return _PARAMETER.sub(kept, path)


def identity_of(url: str) -> str:
    """What stays the same when a URL is signed again: for hashing into an id, never to be shown."""
    from urllib.parse import urlunsplit

    try:
        split = _split(url)
        port = split.port
    except ValueError:
        return url
    host = split.netloc.rpartition("@")[2].lower()
    if port in (None, DEFAULT_PORTS.get(split.scheme)):
        host = re.sub(r":[0-9]*$", "", host)
    return urlunsplit((split.scheme, host, without_session(split.path) or "/", _unsigned(split.query), ""))


def redirect_target(url: str, location: str) -> str:
    """Where a Location header leads (RFC 9110, 10.2.2); SourceError if it must not be followed (I20)."""
    from urllib.parse import urljoin

    where = _decoded(location.strip(" \t")).replace(" ", "%20")
    if fault := _text_fault(where) or _reference_fault(where):
        raise _refusal(url, where, fault)
    base = _split(url)
    # Userinfo of the present URL is for its origin alone; whoever sends the next request decides about it.
    target = urljoin(base._replace(netloc=base.netloc.rpartition("@")[2]).geturl(), where)
    if base.fragment and "#" not in target:
        target += "#" + base.fragment
    if fault := _fault(target):
        raise _refusal(url, where, fault)
    if base.scheme == "https" and _split(target).scheme != "https":
        raise _refusal(url, where, "it leads from https to http")
    return target


def is_private(address: str) -> bool:
    """Whether an IP address is not on the public internet. Text that is no address counts as private: fail closed."""
    import ipaddress

    try:
        ip = ipaddress.ip_address(address.strip("[]"))
    except ValueError:
        return True
    if isinstance(ip, ipaddress.IPv6Address):
        carried = ip.ipv4_mapped or ip.sixtofour
        if ip in ipaddress.ip_network("64:ff9b::/96"):  # NAT64, RFC 6052: how an IPv6-only network sees IPv4 hosts
            carried = ipaddress.IPv4Address(int(ip) & 0xFFFFFFFF)
        if carried is not None:
            return is_private(str(carried))
        if ip.is_site_local:  # fec0::/10, which `is_global` lets pass
            return True
    return not ip.is_global or ip.is_multicast or ip.is_reserved


def _split(url: str) -> "SplitResult":
    from urllib.parse import urlsplit

    return urlsplit(url)


def _fault(text: str) -> str:
    """Why it is no URL to ask; empty if it is one."""
    if fault := _text_fault(text):
        return fault
    try:
        split = _split(text)
        port = split.port
    except ValueError:
        return "its host or port is malformed"
    if split.scheme not in DEFAULT_PORTS:
        return "only http:// and https:// are served"
    host = split.hostname or ""
    if not host:
        return "it names no host"
    if port == 0 or not ("[" in split.netloc or _HOST.fullmatch(host)):
        return "its host or port is malformed"
    return ""


def _text_fault(text: str) -> str:
    if len(text) > MOST_CHARACTERS:
        return f"it is longer than {MOST_CHARACTERS} characters"
    if not text.isprintable() or " " in text or "\\" in text:
        return "it holds white space, a backslash or a character that cannot be seen"
    return ""


def _reference_fault(where: str) -> str:
    """What a lenient parser would repair and RFC 3986 does not: `http:x`, `///x`, and secrets in a target."""
    if not where:
        return "it is empty"
    try:
        split = _split(where)
    except ValueError:
        return "its host or port is malformed"
    if split.scheme not in ("", *DEFAULT_PORTS):
        return "only http:// and https:// are served"
    if not split.netloc and (split.scheme or where.startswith("//")):
        return "it names no host"
    return "it holds a user name" if "@" in split.netloc else ""


def _decoded(location: str) -> str:
    """Header bytes come as Latin-1; servers that send more than ASCII there mean UTF-8."""
    try:
        return location.encode("latin-1").decode()
    except UnicodeError:
        return location


def _unsigned(query: str) -> str:
    from urllib.parse import unquote_plus

    fields = [(unquote_plus(field.partition("=")[0]).lower(), field) for field in query.split("&")]
    is_azure = any(name == "sig" for name, _ in fields)
    return "&".join(
        field
        for name, field in fields
        if not _CREDENTIAL.fullmatch(name) and not (is_azure and _AZURE_SAS.fullmatch(name))
    )


def _refusal(url: str, where: str, fault: str) -> SourceError:
    return SourceError(f"{_shown(url)} redirects to {_shown(where)}, which is not followed: {fault}")


def _shown(text: str) -> str:
    """For a message: no secrets, control characters escaped."""
    seen = without_secrets(text)
    return repr(seen if len(seen) <= _SHOWN_CHARACTERS else seen[:_SHOWN_CHARACTERS] + "...")
