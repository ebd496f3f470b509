"""What a user may call a model, and what nobody may."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from modelcache.errors import UsageError
from modelcache.refs import Ref

COMMIT = "0123456789abcdef0123456789abcdef01234567"
SHA256 = "ab" * 32
BEGINNINGS = (
    "https://",
    "https://host/",
    "hf:",
    "hf:org/name",
    "hf:org/name@",
    "ollama:",
    "ollama:m@",
    "oci://",
    "oci://h/",
)


def is_one_clean_line(text: str) -> bool:
    return bool(text) and text.isprintable()


@pytest.mark.parametrize(
    ("text", "ref"),
    [
        ("hf:org/name", Ref("hf--org--name", "", "", "hf", "org/name")),
        ("hf:org/name@v1.0", Ref("hf--org--name", "", "", "hf", "org/name", "v1.0")),
        ("hf:org/name@refs%2Fpr%2F1", Ref("hf--org--name", "", "", "hf", "org/name", "refs/pr/1")),
        (f"hf:org/name@{COMMIT}", Ref("hf--org--name", COMMIT, "", "hf", "org/name", COMMIT)),
        ("hf:org/name/onnx/a.onnx", Ref("hf--org--name", "", "", "hf", "org/name", "", "onnx/a.onnx")),
        (f"hf:org/name@{COMMIT}/a", Ref("hf--org--name", COMMIT, "", "hf", "org/name", COMMIT, "a")),
        ("hf:datasets/org/name", Ref("hf--datasets--org--name", "", "", "hf", "datasets/org/name")),
        ("hf:spaces/org/name@x/y", Ref("hf--spaces--org--name", "", "", "hf", "spaces/org/name", "x", "y")),
        ("ollama:llama3.2", Ref("ollama--llama3.2", "", "", "ollama", "llama3.2")),
        ("ollama:llama3.2:1b", Ref("ollama--llama3.2", "", "", "ollama", "llama3.2", "1b")),
        ("ollama:me/mine:1b", Ref("ollama--me--mine", "", "", "ollama", "me/mine", "1b")),
        (f"ollama:m@sha256:{SHA256}", Ref("ollama--m", SHA256, "", "ollama", "m", SHA256)),
        ("oci://127.0.0.1:5000/library/tiny:latest",
         Ref("oci--127.0.0.1-5000--library--tiny", "", "", "oci", "//127.0.0.1:5000/library/tiny", "latest")),
        (f"oci://host/a/b@sha256:{SHA256}", Ref("oci--host--a--b", SHA256, "", "oci", "//host/a/b", SHA256)),
    ],
)  # fmt: skip
def test_a_ref_of_a_hub_names_a_model_a_revision_and_a_file(text: str, ref: Ref) -> None:
    assert Ref.parse(text) == ref
    assert ref.shown == text
    assert Ref.parse(ref.base).id == ref.id


@pytest.mark.parametrize(
    ("text", "line"),
    [
        ("", "what is wanted is not named: the ref is empty; there are http://, https://, hf:, "),
        ("org/name", "'org/name' is no id of a model; of Hugging Face it is `hf:org/name`"),
        ("org/name@v1", "'org/name@v1' is no id of a model; of Hugging Face it is `hf:org/name@v1`"),
        ("hf:org/name#v1", "'hf:org/name#...' cannot be meant; write hf:org/name, hf:org/name@revision or "),
        ("hf:datasets/", "'hf:datasets/' cannot be meant; write hf:org/name, "),
        ("s3://bucket/key", "unknown scheme 's3:'; there are http://, https://, hf:, ollama:, oci:// and, "),
        ("oci://host", "'oci://host' cannot be meant; write oci://host/repository, "),
    ],
)
def test_what_is_no_ref_is_quoted_and_says_how_to_write_it(text: str, line: str) -> None:
    with pytest.raises(UsageError) as refused:
        Ref.parse(text)
    assert refused.value.line().startswith(line)


@pytest.mark.parametrize(
    "text",
    [
        "oci://me:s3cret@host/x", "oci://me:s3cret@host/x:tag", "oci://me:12/s3cret@host/x", "oci://s3cret@host/x",
        f"oci://me:s3cret@host/x@sha256:{SHA256}", f"oci://me:s@s3cret@host/x@sha256:{SHA256}", "hf:me:s3cret@host/x/y",
        "hf:org/name?token=s3cret", "hf:org/name#s3cret", "ollama:me:s3cret@host/a/b",
    ],
)  # fmt: skip
def test_a_password_in_a_ref_is_refused_and_not_shown(text: str) -> None:
    with pytest.raises(UsageError) as refused:
        Ref.parse(text)
    assert "s3cret" not in refused.value.line()
    if text.startswith("oci:"):
        assert refused.value.line() == (
            "a ref holds no user name and no password; run `docker login`, or pass --header"
        )


def test_half_a_character_in_a_revision_is_a_usage_error() -> None:
    with pytest.raises(UsageError, match="is no revision"):
        Ref.parse("hf:org/name@\udcff")


def test_a_branch_is_an_alias_and_a_commit_is_none() -> None:
    texts = ("hf:org/name", "hf:org/name@v1", f"hf:org/name@{COMMIT}", "m", "m@1")
    assert [Ref.parse(text).alias for text in texts] == ["main", "v1", "", "", ""]
    assert [Ref.parse(text).alias for text in ("ollama:m", "ollama:m:1b", "oci://h/m")] == ["latest", "1b", "latest"]


def test_a_name_of_the_early_days_has_no_organization() -> None:
    assert Ref.parse("hf:gpt2") == Ref("hf--gpt2", scheme="hf", name="gpt2")
    ref = Ref.parse(f"hf:gpt2@{COMMIT}/onnx/config.json")
    assert (ref.name, ref.version, ref.path) == ("gpt2", COMMIT, "onnx/config.json")
    assert Ref.parse(ref.shown) == ref
    assert Ref.parse("hf:datasets/squad").name == "datasets/squad"
    assert Ref.parse("hf:gpt2/config.json").name == "gpt2/config.json"


def test_an_escape_in_a_path_is_what_it_stands_for() -> None:
    ref = Ref.parse(f"hf:org/name@{COMMIT}/a%23b%20c%25.bin")
    assert ref.path == "a#b c%.bin"
    assert Ref.parse(Ref.parse("hf:org/name/a%2541").shown).path == "a%41"


@pytest.mark.parametrize(
    "text",
    [
        "hf:", "hf:org/", "hf:datasets", "hf:@main", "hf:name@", "hf:a@b@c/../x",
        "hf:/name", "hf:org//name", "hf:org/name@", "hf:org/name/", "hf:org/name@/x",
        "hf:org/name/../x", "hf:org/name/%2e%2e/x", "hf:../name", "hf:a--b/c", "hf:org/na..me", "hf:org/-n",
        "hf:org/n-",
        "hf:datasets/", "hf:org/name@..", "hf:org/name@a b", "hf:org/name@a%0ab", "hf:org/name@" + "x" * 201,
        "hf:" + "o" * 97 + "/name", "HF:org/name",
        "ollama:", "ollama:a/b/c", "ollama:m:", "ollama:m::x", "ollama:m@", "ollama:m@sha256:12",
        "ollama:m@md5:" + "a" * 32,
        "ollama:../m", "ollama:m:" + "t" * 129, "ollama:" + "m" * 201,
        "oci:host/m", "oci://", "oci://host", "oci://host/", "oci:///m", "oci://u:p@host/m", "oci://host:x/m",
        "oci://h/../m",
        "oci://h/m:t:u", "oci://h/m?x",
    ],
)  # fmt: skip
def test_a_malformed_ref_of_a_hub_is_a_usage_error(text: str) -> None:
    with pytest.raises(UsageError) as refused:
        Ref.parse(text)
    assert is_one_clean_line(refused.value.message)
    assert "u:p" not in refused.value.message


@pytest.mark.parametrize(
    ("text", "ref"),
    [("whisper-base", Ref("whisper-base")), ("tts@1.0", Ref("tts", "1.0")), ("hf--org--name", Ref("hf--org--name"))],
)
def test_a_ref_is_an_id_with_an_optional_version(text: str, ref: Ref) -> None:
    assert Ref.parse(text) == ref
    assert ref.shown == text


def test_the_id_of_a_url_outlives_its_signature_and_is_a_ref_itself() -> None:
    ref = Ref.parse("https://u:p@Host/d/a@b.bin?X-Amz-Signature=1")
    assert ref.id == Ref.parse("https://host/d/a@b.bin?X-Amz-Signature=2").id
    assert ref.id != Ref.parse("https://host/e/a@b.bin").id
    assert ref.id.startswith("url--a_b.bin--")
    assert ref.shown == "https://Host/d/a@b.bin"
    assert Ref.parse(ref.id) == Ref(ref.id)


@pytest.mark.parametrize(
    "text",
    ["", "a/b", "..", "ftp://host/x", "C:\\x", "https://", "https://h/\ud800", "m@..", "m@a/b", "@1"],
)
def test_what_is_no_ref_is_a_usage_error(text: str) -> None:
    with pytest.raises(UsageError) as refused:
        Ref.parse(text)
    assert is_one_clean_line(refused.value.message)


@given(st.text())
def test_any_text_is_a_ref_or_a_usage_error(text: str) -> None:
    for claim in (text, *(begin + text for begin in BEGINNINGS)):
        try:
            ref = Ref.parse(claim)
        except UsageError as error:
            assert is_one_clean_line(error.message)
        else:
            assert Ref.parse(ref.id.partition("@")[0]).id == ref.id
            assert "\n" not in ref.shown
            assert not ref.scheme or Ref.parse(ref.shown) == ref
