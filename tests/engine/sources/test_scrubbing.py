"""No message keeps a piece of a password."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import SecretStr

from engine.sources.scrubbing import masked, scrub


@given(
    password=st.text(st.characters(min_codepoint=33, max_codepoint=126), min_size=8, max_size=20),
    around=st.sampled_from(["could not connect to {}", "invalid URI: postgresql://u:{}@h/db", "port '{}'", "{}"]),
)
def test_a_password_never_survives(password: str, around: str) -> None:
    uri = SecretStr(f"postgresql://u:{password}@h/db")
    assert password not in scrub(around.format(password), uri)


@pytest.mark.parametrize("piece", ["p4ss", "w", "rd1", "h0st"])
def test_pieces_of_a_password_that_a_driver_took_apart_go_too(piece: str) -> None:
    uri = SecretStr("postgresql://u:p4ss@w/rd1:h0st@127.0.0.1/db")
    message = f'could not translate host name "{piece}" to address'
    assert scrub(message, uri) == 'could not translate host name "****" to address'


def test_a_decoded_password_goes_too() -> None:
    uri = SecretStr("postgresql://u:p%40ss%2Fword@h/db")
    assert scrub("no: p@ss/word", uri) == "no: ****"


def test_short_pieces_do_not_eat_ordinary_words() -> None:
    uri = SecretStr("postgresql://u:a@h/db")
    assert scrub("password a failed at a table", uri) == "password **** failed at **** table"


def test_a_message_without_secrets_is_only_put_on_one_line() -> None:
    assert scrub("no such\n  table: t ", SecretStr("sqlite:///x.db")) == "no such table: t"


@pytest.mark.parametrize("text", ["password=hunter22", "PASSWORD = 'hunter22 b'", "sslpassword=hunter22&x=1"])
def test_named_passwords_go_whatever_the_uri(text: str) -> None:
    assert "hunter22" not in scrub(f"bad option: {text}", SecretStr("sqlite:///x.db"))


@pytest.mark.parametrize(
    ("uri", "expected"),
    [
        ("postgresql://u:secret@h:5/d", "postgresql://u:${PW}@h:5/d"),
        ("postgresql://u:sec@ret@h/d?x=1", "postgresql://u:${PW}@h/d?x=1"),
        ("postgresql://h/d?user=u&password=secret&x=1", "postgresql://h/d?user=u&password=${PW}&x=1"),
    ],
)
def test_a_draft_names_a_variable_instead(uri: str, expected: str) -> None:
    assert masked(SecretStr(uri), variable="PW") == (expected, True)


@pytest.mark.parametrize("uri", ["postgresql://u@h/d", "sqlite:///x.db", "postgresql:///d?host=/run"])
def test_a_uri_without_a_password_stays(uri: str) -> None:
    assert masked(SecretStr(uri), variable="PW") == (uri, False)
