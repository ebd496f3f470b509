"""What a URL is, what of it is shown, where a redirect may lead (I20, I22)."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from modelcache.errors import SourceError, UsageError
from modelcache.urls import checked_url, identity_of, is_private, origin_of, redirect_target, without_secrets

NO_URL = [
    "", "host/x", "ftp://host/x", "file:///etc/passwd", "gopher://host", "http:", "http://", "https:///x", "http:x",
    "http://host:0/", "http://host:65536/", "http://host:x/", "http://host:-1/", "http://[::1/", "http://[nonsense]/",
    "http://./", "http://a b/", "http://ho%73t/", "http://host/a b", "http://host/a\nb", "http://host/\r\nX: y",
    "http://host/\0",
    "http://host\\@evil/", "http://host/\ud800", "http://host/\u202e", " http://host/", "http://host/" + "a" * 8192,
    "http://user:secret@/x", "http://" + "-" * 8000 + "!",
]  # fmt: skip
URL = "https://host.example/dir/file.bin?sig=secret"
ANY_URL = st.text(alphabet=st.one_of(st.characters(), st.sampled_from("https://@:?#[]\\\n\t%")))


@pytest.mark.parametrize("text", NO_URL)
def test_what_is_no_http_url_is_refused_without_its_secrets(text: str) -> None:
    with pytest.raises(UsageError) as refused:
        checked_url(text)
    assert refused.value.message.isprintable()
    assert "secret" not in refused.value.message


@pytest.mark.parametrize(
    "text",
    [
        "http://host",
        "HTTPS://Host.Example:8443/a?b#c",
        "http://[::1]:80/x",
        "http://u:p@127.0.0.1/",
        "http://é.example/ü",
    ],
)
def test_a_url_is_kept_as_it_is(text: str) -> None:
    assert checked_url(text) == text


@given(ANY_URL)
def test_any_text_is_a_url_or_a_usage_error(text: str) -> None:
    for url in (text, "https://" + text):
        try:
            scheme, host, port = origin_of(url)
        except UsageError as error:
            assert error.message.isprintable()
        else:
            assert scheme in ("http", "https")
            assert host == host.lower()
            assert 1 <= port <= 65535


@pytest.mark.parametrize(
    ("url", "origin"),
    [
        ("http://Host/x", ("http", "host", 80)),
        ("HTTPS://host", ("https", "host", 443)),
        ("https://u:p@host:8443/x", ("https", "host", 8443)),
        ("http://[::1]:/x", ("http", "::1", 80)),
    ],
)
def test_an_origin_is_scheme_host_and_port(url: str, origin: tuple[str, str, int]) -> None:
    assert origin_of(url) == origin


@pytest.mark.parametrize(
    ("url", "shown"),
    [
        ("", ""),
        ("whisper-base@1", "whisper-base@1"),
        ("hf:org/name@main", "hf:org/name@main"),
        ("https://host/a/b?sig=secret#secret", "https://host/a/b"),
        ("https://user:secret@host:8443/a@b", "https://host:8443/a@b"),
        ("https://secret@secret@host/a", "https://host/a"),
        ("oci://user:secret@host/repo@sha256:ab", "oci://host/repo@sha256:ab"),
        ("http://[::1]:80/x", "http://[::1]:80/x"),
        ("https://host/a;jsessionid=secret/b;token=secret?x", "https://host/a/b"),
        ("https://host/a;X-Amz-Signature=secret;v=2/b;c", "https://host/a;v=2/b;c"),
        ("https://host/a;b=1/c;sides=2/token/sid=3", "https://host/a;b=1/c;sides=2/token/sid=3"),
        ("https://proxy/https://user:secret@host/x", "https://proxy/https://host/x"),
        ("//user:secret@host/x", "//host/x"),
        ("https:/user:secret@host/x", "https:/host/x"),
        ("https:user:secret@host/x", "https:host/x"),
        ("https:/\n/user:secret@host/x", "https://host/x"),
        ("https://user:sec/ret@host/x", "https://..."),
        ("https://user:sec?ret@host/x", "https://..."),
        ("http://[secret", "http://..."),
    ],
)
def test_userinfo_query_and_fragment_are_never_shown(url: str, shown: str) -> None:
    assert without_secrets(url) == shown


@given(ANY_URL)
def test_cutting_secrets_never_fails_and_has_nothing_left_to_cut(text: str) -> None:
    for url in (text, "https://" + text):
        shown = without_secrets(url)
        assert not set("?#") & set(shown)
        assert without_secrets(shown) == shown
    assert without_secrets("https://u:secret@host/" + text).startswith("https://host/")


def test_cutting_secrets_takes_linear_time() -> None:
    for hostile in ("https:", "//", "https://a:", "@", "//["):
        without_secrets(hostile * 200_000)


@pytest.mark.parametrize(
    ("url", "identity"),
    [
        ("HTTPS://Host.Example:443/A?b=C&a=1#x", "https://host.example/A?b=C&a=1"),
        ("http://user:pw@host:80", "http://host/"),
        ("https://host:80/x", "https://host:80/x"),
        ("http://[::1]:80/x", "http://[::1]/x"),
        ("https://host/x?X-Amz-Signature=1&v=2&x-amz-date=3", "https://host/x?v=2"),
        ("https://host/x?X-Goog-Expires=1&GoogleAccessId=2&Signature=3&Expires=4", "https://host/x"),
        ("https://host/x?Policy=1&Key-Pair-Id=2&AWSAccessKeyId=3", "https://host/x"),
        ("https://host/x?sv=1&st=2&se=3&sr=b&sp=r&skoid=4&sig=5&versionid=6", "https://host/x?versionid=6"),
        ("https://host/x?token=1&ACCESS_TOKEN=2&auth=3&%74oken=4&file=a%2Fb", "https://host/x?file=a%2Fb"),
        ("https://host/x?sr=44100&sp=2", "https://host/x?sr=44100&sp=2"),
        ("http://[::1", "http://[::1"),
    ],
)
def test_a_url_signed_again_is_the_same_url(url: str, identity: str) -> None:
    assert identity_of(url) == identity_of(identity) == identity


@pytest.mark.parametrize(
    ("location", "target"),
    [
        ("https://cdn.example/x?sig=1", "https://cdn.example/x?sig=1"),
        ("//cdn.example/x", "https://cdn.example/x"),
        ("/x", "https://host.example/x"),
        ("y", "https://host.example/dir/y"),
        ("../../../y", "https://host.example/y"),
        ("?v=2", "https://host.example/dir/file.bin?v=2"),
        (" /a b ", "https://host.example/a%20b"),
        ("/mod\xc3\xa8le", "https://host.example/modèle"),
        ("/x#part", "https://host.example/x#part"),
    ],
)
def test_a_redirect_is_resolved_against_the_present_url(location: str, target: str) -> None:
    assert redirect_target(URL, location) == target


def test_a_redirect_takes_no_user_name_along_and_keeps_the_fragment() -> None:
    assert redirect_target("http://u:p@host/a#f", "/b") == "http://host/b#f"
    assert redirect_target("http://host/a", "https://host/a") == "https://host/a"


@pytest.mark.parametrize(
    "location",
    [
        "", " ", "http://host.example/x", "ftp://host/x", "file:///etc/passwd", "javascript:alert(1)", "data:,x",
        "https:x", "https:///x",
        "///x", "//", "https://", "/a\r\nSet-Cookie: x", "/a\0", "/a\x85", "\tx\ty", "https://u:secret@evil/x",
        "//u@evil/x",
        "https://host:99999/x", "https://[::1/x", "\\\\evil\\x", "/" + "a" * 8192, "https://evil/x y?token=secret\n",
        "http://evil/x?token=secret",
    ],
)  # fmt: skip
def test_a_redirect_that_must_not_be_followed_is_a_source_error(location: str) -> None:
    with pytest.raises(SourceError) as refused:
        redirect_target(URL, location)
    assert refused.value.message.isprintable()
    assert "secret" not in refused.value.message


@given(ANY_URL)
def test_any_location_leads_to_a_url_or_is_a_source_error(location: str) -> None:
    for where in (location, "//" + location):
        try:
            target = redirect_target(URL, where)
        except SourceError as error:
            assert error.message.isprintable()
        else:
            assert origin_of(checked_url(target))[0] == "https"


@pytest.mark.parametrize(
    "address",
    [
        "127.0.0.1", "10.1.2.3", "172.16.0.1", "192.168.1.1", "169.254.169.254", "100.64.0.1", "100.127.255.255",
        "0.0.0.0",         "224.0.0.1", "240.0.0.1", "255.255.255.255", "::", "::1", "fe80::1%eth0", "fe80::1",
        "fd00::1", "fec0::1",
        "ff02::1", "::ffff:127.0.0.1", "::ffff:10.0.0.1", "::127.0.0.1", "2002:7f00:1::", "2002:c0a8:101::1",
        "64:ff9b::7f00:1",
        "64:ff9b::a9fe:a9fe", "64:ff9b:1::1", "2001:db8::1", "[::1]", "", "localhost", "127.1", "0177.0.0.1",
        "2130706433",
    ],
)  # fmt: skip
def test_addresses_off_the_public_internet_are_private(address: str) -> None:
    assert is_private(address)


@pytest.mark.parametrize(
    "address",
    [
        "1.1.1.1",
        "100.63.255.255",
        "172.32.0.1",
        "2606:4700::1111",
        "::ffff:8.8.8.8",
        "2002:808:808::1",
        "64:ff9b::808:808",
    ],
)
def test_public_addresses_are_not_private(address: str) -> None:
    assert not is_private(address)
