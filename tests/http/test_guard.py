"""A browser cannot be used against a server that asks nobody for a key."""

from __future__ import annotations

import pytest
from starlette.datastructures import Headers

from session_http.guard import LOOPBACK_NAMES, check_host, check_page
from session_http.problems import ProblemError


def check(method: str, **headers: str) -> None:
    check_host(Headers(headers), LOOPBACK_NAMES)
    check_page(method, Headers(headers), LOOPBACK_NAMES)


@pytest.mark.parametrize(
    "host",
    ["localhost", "localhost:3000", "127.0.0.1:3000", "[::1]:3000", "LOCALHOST:80", "localhost.:1"],
)
def test_this_machine_may_be_called_by_any_of_its_names(host: str) -> None:
    check("POST", host=host)


@pytest.mark.parametrize(
    "host", ["evil.example", "evil.example:3000", "localhost.evil.example", "", "[", "a@b:c:d"]
)
def test_a_request_addressed_to_another_host_is_refused(host: str) -> None:
    with pytest.raises(ProblemError) as caught:
        check("GET", host=host)
    assert caught.value.problem.status == 403


@pytest.mark.parametrize("origin", ["https://evil.example", "null", "http://localhost.evil"])
def test_a_page_of_another_site_may_not_change_anything(origin: str) -> None:
    with pytest.raises(ProblemError) as caught:
        check("POST", host="localhost:3000", origin=origin)
    assert caught.value.problem.status == 403


def test_a_page_of_this_machine_may() -> None:
    check("POST", host="127.0.0.1:3000", origin="http://localhost:8080")


def test_reading_is_left_to_the_browsers_own_rules() -> None:
    check("GET", host="localhost:3000", origin="https://evil.example")


def test_without_trusted_names_only_pages_of_other_hosts_are_refused() -> None:
    check_page("POST", Headers({"host": "a:1", "origin": "https://a"}), None)
    check_page("POST", Headers({"host": "a"}), None)
    for host, origin in (("a", "https://b"), ("", "null"), ("[", "null")):
        with pytest.raises(ProblemError):
            check_page("POST", Headers({"host": host, "origin": origin}), None)


def test_a_name_that_is_none_is_never_trusted() -> None:
    trusted = frozenset({"", "localhost"})
    with pytest.raises(ProblemError):
        check_host(Headers({"host": "["}), trusted)
    with pytest.raises(ProblemError):
        check_page("POST", Headers({"host": "localhost", "origin": "null"}), trusted)


def test_a_page_whose_origin_the_operator_allows_may() -> None:
    headers = Headers({"host": "localhost", "origin": "https://app.example"})
    check_page("POST", headers, LOOPBACK_NAMES, {"https://app.example"})
    for other in ("http://app.example", "https://app.example:444", "https://app.example.evil"):
        with pytest.raises(ProblemError):
            check_page("POST", headers, LOOPBACK_NAMES, {other})
