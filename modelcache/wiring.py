"""The only place that makes sources, resolvers and tiers.

Responsible for: which sources a file has, and which of them gets the caller's headers or the secrets of the
environment. Leaves to others: using them; what the user has set (`configuration`).
"""

import os
import threading
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING

from modelcache.errors import (
    AllSourcesFailedError,
    ModelCacheError,
    NotFoundError,
    SourceFailure,
    TransientError,
    UsageError,
)
from modelcache.model import ModelFile
from modelcache.othertools import docker_logins, garbled_logins, hub_home, hub_token, hub_token_place, is_offline
from modelcache.refs import OLLAMA_REGISTRY, Ref, repository_of, scheme_of_id
from modelcache.settings import HUGGING_FACE as HF
from modelcache.settings import OLLAMA, Settings
from modelcache.urls import checked_url, is_same_place, without_secrets

if TYPE_CHECKING:
    from modelcache.foreign.tier import Tier
    from modelcache.order import Order
    from modelcache.remotes.access import Registry
    from modelcache.remotes.connection import Connector
    from modelcache.remotes.huggingface import Hub
    from modelcache.remotes.reply import Head
    from modelcache.remotes.resolver import Resolver
    from modelcache.remotes.source import Source

HUGGING_FACE = "https://huggingface.co"


class Sources:
    """Makes the sources of files; all that are open at a time share connections."""

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self._guard = threading.Lock()
        self._connector: Connector | None = None

    def __call__(self, order: "Order", file: ModelFile) -> "list[Source]":
        """The sources of a file, in the order of its urls.

        The order's headers may hold secrets: those for a hub's model go to its hub, others to the origin of the order's
        first url, and to nobody else (I20). A url that nothing here serves, or that must not be asked, is passed over;
        UsageError or AllSourcesFailedError where there is no other.
        """
        made: list[Source] = []
        refusal: UsageError | AllSourcesFailedError | None = None
        connector, hub = self._shared(), hub_of(order.ref, order.id)
        place = order.first_url if hub is None else hub
        for url in dict.fromkeys(file.urls or _url_at(hub, order, file)):
            scheme = url.partition(":")[0].lower()
            try:
                _check_online(file, scheme, hub or "")
                make = SOURCES.get(scheme, _http)
                made.append(make(url, order.headers if is_same_place(url, place) else {}, connector))
            except (UsageError, AllSourcesFailedError) as error:
                refusal = error
        if refusal and not made:
            raise refusal
        return made

    def resolver(self, ref: Ref, headers: Mapping[str, str]) -> "Resolver":
        """Who says what the ref consists of; to be closed. `headers` are the caller's, for the hub alone."""
        make = RESOLVERS.get(ref.scheme)
        if make is None:
            raise UsageError(f"{ref.shown}: nothing here speaks with {ref.scheme}")
        return make(ref, headers, self._shared())

    def _shared(self) -> "Connector":
        from modelcache.remotes.connection import Connector, Timeouts

        with self._guard:
            if self._connector is None:
                settings = self._settings
                self._connector = Connector(Timeouts(settings.connect_timeout, settings.stall_timeout))
            return self._connector


def _http(url: str, headers: Mapping[str, str], connector: "Connector") -> "Source":
    from modelcache.remotes.http import HttpSource

    return HttpSource(url, headers=headers, connector=connector)


def _hub_source(url: str, headers: Mapping[str, str], connector: "Connector") -> "Source":
    from modelcache.remotes.huggingface import HubSource

    return HubSource(url, _hub(headers), connector)


def _hub_resolver(_ref: Ref, headers: Mapping[str, str], connector: "Connector") -> "Resolver":
    from modelcache.remotes.huggingface import HubResolver

    return HubResolver(_hub(headers), connector)


def _hub(headers: Mapping[str, str]) -> "Hub":
    """The hub of HF_ENDPOINT. A caller's own Authorization comes before the token of the environment."""
    from modelcache.remotes.http import checked_headers
    from modelcache.remotes.huggingface import Hub

    endpoint = os.environ.get("HF_ENDPOINT") or HUGGING_FACE
    try:
        checked_url(endpoint)
    except UsageError as error:
        raise UsageError(f"HF_ENDPOINT: {error.message}") from error
    if without_secrets(endpoint) != endpoint:
        raise UsageError("HF_ENDPOINT is the address of a hub, without user name, ? and #")
    secrets = checked_headers(headers)
    if "Authorization" not in secrets and (token := hub_token()):
        secrets["Authorization"] = f"Bearer {token}"
    try:
        return Hub(endpoint.rstrip("/"), checked_headers(secrets))
    except UsageError as error:
        text = f"the Hugging Face token of {hub_token_place()} holds characters that no token has"
        raise UsageError(text) from error


def ask_hub(settings: Settings, patience_s: float) -> "tuple[Hub, Head]":
    """How the hub of HF_ENDPOINT answers who has the token of this environment, and what was sent to it.

    UsageError for a wrong variable; TransientError or SourceError where there is no answer in time.
    """
    import queue

    from modelcache.remotes.connection import Connector, Timeouts
    from modelcache.remotes.huggingface import whoami
    from modelcache.remotes.reply import Head
    from modelcache.remotes.source import Abort

    hub, abort, told = _hub({}), Abort(), queue.SimpleQueue[Head | ModelCacheError]()
    connector = Connector(Timeouts(min(settings.connect_timeout, patience_s), patience_s))

    def ask() -> None:
        try:
            told.put(whoami(hub, connector, abort))
        except ModelCacheError as error:
            told.put(error)
        finally:
            connector.close()

    threading.Thread(target=ask, name="modelcache-ask", daemon=True).start()  # DNS cannot be interrupted
    try:
        answer = told.get(timeout=patience_s)
    except queue.Empty:
        abort.fire()
        raise TransientError(f"{hub.host} does not answer") from None
    if isinstance(answer, ModelCacheError):
        raise answer
    return hub, answer


def _layer(url: str, headers: Mapping[str, str], connector: "Connector") -> "Source":
    from modelcache.remotes.oci import RegistrySource, layer_of

    host, repository, sha256 = layer_of(url)
    return RegistrySource(_registry(host, headers), repository, sha256, connector)


def _inline(url: str, _headers: Mapping[str, str], _connector: "Connector") -> "Source":
    from modelcache.remotes.inline import InlineSource

    return InlineSource(url)


def _image(ref: Ref, headers: Mapping[str, str], connector: "Connector") -> "Resolver":
    from modelcache.remotes.oci import RegistryResolver

    host, repository = repository_of(ref)
    return RegistryResolver(_registry(host, headers), repository, ref.base, connector)


def _ollama_registry() -> str:
    ollama = os.environ.get("MODELCACHE_OLLAMA_REGISTRY") or OLLAMA_REGISTRY
    try:
        is_host = repository_of(Ref.parse(f"oci://{ollama}/m"))[1] == "m"
    except UsageError:
        is_host = False
    if not is_host:
        raise UsageError("MODELCACHE_OLLAMA_REGISTRY is the host of a registry, with :port if need be")
    return ollama


def hub_of(ref: str, model_id: str) -> str | None:
    """The hub that a model is of, as a url to compare with those of its files (`is_same_place`); None: of no hub.

    What calls itself by the id of a hub's model is of a hub, whatever its ref is: empty where nobody can tell of which.
    Nobody but the hub is given what a user has for it (I20), and nobody at all is asked where the hub must not be.
    """
    try:
        known = Ref.parse(ref)
    except UsageError:
        known = Ref(model_id)
    match known.scheme or scheme_of_id(model_id):
        case "":
            return None
        case "hf":
            return "hf:"
        case "oci" if not known.scheme:
            return ""
        case scheme:
            from modelcache.remotes.oci import base_of

            host = repository_of(known)[0] if scheme == "oci" else OLLAMA_REGISTRY
            return f"oci://{base_of(host).partition('//')[2]}/"


def _url_at(hub: str | None, order: "Order", file: ModelFile) -> tuple[str, ...]:
    """Where its hub has a file that nobody said a url of, if ref, version and digest tell."""
    try:
        ref = Ref.parse(order.ref)
        if ref.scheme == "hf":
            from urllib.parse import quote

            url = f"{ref.base}@{order.version}/{quote(file.path)}"
            return (url,) if Ref.parse(url).version else ()
    except UsageError:
        return ()
    sha256 = file.digest()
    return (f"{hub}{repository_of(ref)[1]}@{sha256}",) if ref.scheme and sha256 else ()


def _registry(host: str, headers: Mapping[str, str]) -> "Registry":
    """A mirror of Ollama's is asked in its place, and gets what is for it: what is kept never names the mirror."""
    from modelcache.remotes.access import Registry
    from modelcache.remotes.http import checked_headers
    from modelcache.remotes.oci import base_of

    if is_same_place(f"oci://{host}/", f"oci://{OLLAMA_REGISTRY}/"):
        host = _ollama_registry()
    logins = {base_of(login): header for login, header in docker_logins().items()}
    secrets, login = checked_headers(headers), logins.get(base_of(host), "")
    return Registry(base_of(host, has_secret=bool(secrets or login)), secrets, login, garbled_logins())


def _check_online(file: ModelFile, scheme: str, hub: str) -> None:
    """AllSourcesFailedError where the user said that the hub must not be asked: then nobody is asked for its models."""
    if scheme != "data" and (is_offline(scheme) or is_offline(hub.partition(":")[0])):
        reason = "it is not asked, for HF_HUB_OFFLINE is set"
        error = AllSourcesFailedError(file.path, (SourceFailure("Hugging Face", reason, NotFoundError.kind),))
        error.next_step = "unset it to fetch"
        raise error


# Who serves the urls of a scheme, and who resolves its refs: a new kind of source adds its lines here.
SOURCES: "Mapping[str, Callable[[str, Mapping[str, str], Connector], Source]]" = {
    "http": _http, "https": _http, "hf": _hub_source, "oci": _layer, "data": _inline,
}  # fmt: skip
RESOLVERS: "Mapping[str, Callable[[Ref, Mapping[str, str], Connector], Resolver]]" = {
    "hf": _hub_resolver, "oci": _image, "ollama": _image,
}  # fmt: skip


def tiers_for(settings: Settings, root: str) -> "tuple[Tier, ...]":
    """What is looked at before the network, in the order of the setting; the root itself is none."""
    tiers = [tier_of(each) for each in settings.tiers]
    return tuple(tier for tier in tiers if os.path.realpath(tier.name) != os.path.realpath(root))


def tier_of(place: str) -> "Tier":
    """A cache of Hugging Face or Ollama, called so, or any folder that is one, or a root of modelcache; or one
    repository of a cache of Hugging Face."""
    from modelcache.foreign.hubcache import REPOSITORY, HubCache
    from modelcache.foreign.ollama import OllamaStore
    from modelcache.foreign.root import Root

    environ = os.environ
    if place == HF:
        given = environ.get("HF_HUB_CACHE") or environ.get("HUGGINGFACE_HUB_CACHE")
        return HubCache(_absolute(given or os.path.join(hub_home(), "hub")))
    if place == OLLAMA:
        return OllamaStore(_absolute(environ.get("OLLAMA_MODELS") or os.path.join("~", ".ollama", "models")))
    folder = _absolute(place)
    if os.path.isdir(os.path.join(folder, "blobs", "sha256")):
        return Root(folder)
    if os.path.isdir(os.path.join(folder, "manifests")):
        return OllamaStore(folder)
    above, name = os.path.split(folder)
    if REPOSITORY.fullmatch(name) and os.path.isdir(os.path.join(folder, "snapshots")):
        return HubCache(above, only=name)
    hub = os.path.join(folder, "hub")  # of what HF_HOME names
    return HubCache(hub if os.path.isdir(hub) else folder)


def _absolute(folder: str) -> str:
    return os.path.abspath(os.path.expanduser(folder))
