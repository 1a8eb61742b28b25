"""Addresses have one spelling, and names stay in their place."""

from __future__ import annotations

import pytest

from weft.errors import InvalidRequestError
from weft.tenancy.emails import check_person_name, domain_of, is_domain, normalise_email


def test_an_address_has_one_spelling() -> None:
    assert normalise_email(" Ada.Lovelace+x@ACME.Example ") == "ada.lovelace+x@acme.example"
    assert domain_of("ada@acme.example") == "acme.example"


@pytest.mark.parametrize(
    "text",
    [
        "", "ada", "@acme.example", "ada@", "a@b@", "ada@acme..example", "ada@-acme.example",
        "ada@acme.example\r\nBcc: x", "ada lovelace@acme.example", "=1+1@acme.example",
        "ad\u0430@acme.example", "ada@\u0430cme.example", f"{'a' * 65}@acme.example",
        f"ada@{'a' * 250}.example", "ada\0@acme.example", "ada@acme.example,b@acme.example",
    ],
)  # fmt: skip
def test_what_is_no_address_is_refused(text: str) -> None:
    with pytest.raises(InvalidRequestError):
        normalise_email(text)


def test_domains_are_host_names() -> None:
    assert is_domain("acme.example")
    assert is_domain("xn--bcher-kva.example")
    for text in ("", "acme.example.", "*.example", "Acme.example", "a_b.example", "a" * 254):
        assert not is_domain(text)


@pytest.mark.parametrize(
    "name", ["a\nb", "a\x1b[31m", "\u202egnp.exe", "=cmd", "+1", "-1", "@x", "x" * 129, "a\u2028b"]
)
def test_a_name_that_would_do_harm_where_it_is_shown_is_refused(name: str) -> None:
    with pytest.raises(InvalidRequestError):
        check_person_name(name)


def test_names_of_people_are_taken_as_they_are() -> None:
    for name in ("", "Ada Lovelace", "Łukasz O'Brien-Müller", "王小明"):
        assert check_person_name(f" {name} ") == name
