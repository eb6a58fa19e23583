"""A tenant's rules: what is accepted as one, and what they mean for an address or a name."""

from __future__ import annotations

from ipaddress import IPv4Address, IPv4Network, IPv6Address

import pytest
from hypothesis import given
from hypothesis import strategies as st

from wardian.model.egress import (
    ALL_TRAFFIC,
    Egress,
    EgressGrant,
    EgressMode,
    EgressProxy,
    EgressRule,
    GrantedHost,
    name_of,
)
from wardian.model.errors import Invalid
from wardian.model.sandbox import SandboxSpec
from wardian.network.rules import Rules, Verdict, grant_for, rules_of, stand_in
from wardian.network.told import PER_SANDBOX_MAX, REMEMBER_S, SANDBOXES_MAX, Told
from wardian.store.codec import _spec_of, spec_values
from wardian.store.sealing import Seal, Unsealable

ALLOW, DENY, ASK = Verdict.ALLOW, Verdict.DENY, Verdict.ASK_NAME


def rules(*, allow: tuple[str, ...] = (), deny: tuple[str, ...] = (), internet: bool = True) -> Rules:
    return rules_of(SandboxSpec(egress=Egress(allow, deny), allow_internet=internet))


def test_without_rules_everything_is_open_and_without_the_internet_nothing() -> None:
    assert rules().address("1.1.1.1") is ALLOW
    assert rules(internet=False).address("1.1.1.1") is DENY
    assert rules(internet=False, allow=("1.1.1.1",)).address("1.1.1.1") is ALLOW
    assert rules(internet=False).look_up("a.test").reason == "internet_off"


def test_allow_beats_deny() -> None:
    made = rules(allow=("10.0.0.1", "8.8.8.9/24"), deny=("10.0.0.0/8", "8.8.8.8"))
    assert [made.address(each) for each in ("10.0.0.1", "10.0.0.2", "8.8.8.8", "9.9.9.9")] == [
        ALLOW,
        DENY,
        ALLOW,
        ALLOW,
    ]


def test_names_open_what_is_closed() -> None:
    made = rules(allow=("Example.com", "*.example.org.", "1.1.1.1"), deny=(ALL_TRAFFIC,))
    assert [made.address(each) for each in ("1.1.1.1", "2.2.2.2", "::1")] == [ALLOW, ASK, ASK]
    allowed = ("example.com", "a.example.org", "a.b.example.org")
    denied = ("a.example.com", "example.org", "notexample.org", "example.com.evil.test", "")
    assert [made.name(name) for name in (*allowed, *denied)] == [True] * 3 + [False] * 5
    assert made.look_up("example.com").allowed
    assert made.look_up("evil.test").reason == "denied_by_rule"


@given(st.ip_addresses(v=4), st.integers(0, 32))
def test_a_denied_address_is_denied_in_every_spelling(address: IPv4Address, bits: int) -> None:
    made = rules(deny=(f"{address}/{bits}",))
    number = int(address)
    for spelling in (
        address,
        IPv6Address((0xFFFF << 32) | number),
        IPv6Address((0x2002 << 112) | (number << 80)),
        IPv6Address((0x64FF9B << 96) | number),
    ):
        assert made.address(str(spelling)) is DENY


@given(st.lists(st.ip_addresses(v=4), max_size=4), st.lists(st.ip_addresses(v=4), max_size=4))
def test_the_order_of_entries_means_nothing(allow: list[IPv4Address], deny: list[IPv4Address]) -> None:
    one = rules(allow=tuple(map(str, allow)), deny=tuple(map(str, deny)))
    other = rules(allow=tuple(map(str, reversed(allow))), deny=tuple(map(str, reversed(deny))))
    for address in (*allow, *deny):
        assert one.address(str(address)) is other.address(str(address))
        assert (one.address(str(address)) is ALLOW) == (address in allow or address not in deny)


@pytest.mark.parametrize(
    ("egress", "message"),
    [
        (Egress(deny=("a.test",)), "invalid denied CIDR a.test"),
        (Egress(deny=("10.0.0.0/33",)), "invalid denied CIDR 10.0.0.0/33"),
        (
            Egress(allow=("http://a.test",), deny=(ALL_TRAFFIC,)),
            "invalid allowed CIDR or domain http://a.test",
        ),
        (Egress(allow=("*.*.test",), deny=(ALL_TRAFFIC,)), r"invalid allowed CIDR or domain \*"),
        (Egress(allow=("256.1.1.1",), deny=(ALL_TRAFFIC,)), "invalid allowed CIDR or domain 256"),
        (Egress(allow=("a.test",)), "you must include 'ALL_TRAFFIC' in deny out"),
        (Egress(allow=("a.test",), deny=("10.0.0.0/8",)), "you must include 'ALL_TRAFFIC' in deny out"),
        (Egress(dns_servers=("dns.test",)), "invalid DNS server dns.test"),
        (Egress(rules=("permit a.test",)), "a rule is 'allow' or 'deny'"),
        (Egress(rules=("allow a.test:0",)), "its ports are not between"),
        (Egress(rules=("allow a.test:9-8",)), "its ports are not between"),
        (Egress(rules=("allow a.test:http",)), "its host is no address"),
        (Egress(rules=("allow 1.2.3",)), "its host is no address"),
        (Egress(rules=("allow a.test G=T",)), "its methods are no methods"),
        (Egress(rules=("allow a.test GET v1",)), "a path begins with"),
        (Egress(rules=("allow a.test GET /*/x",)), "a path begins with"),
    ],
)
def test_what_cannot_be_meant_is_refused(egress: Egress, message: str) -> None:
    with pytest.raises(Invalid, match=message):
        egress.check(internet=True)


def test_no_internet_counts_as_denying_everything() -> None:
    Egress(allow=("a.test",)).check(internet=False)
    Egress(allow=("a.test",), deny=("::/0",)).check(internet=True)


@given(st.text(max_size=80))
def test_a_name_has_one_spelling(text: str) -> None:
    name = name_of(text)
    assert name is None or (name == name.lower() and name_of(name) == name and name_of(name + ".") == name)


@given(st.ip_addresses(v=4))
def test_no_spelling_of_an_address_is_a_name(address: IPv4Address) -> None:
    for text in (str(address), str(int(address)), hex(int(address)), f"0x7f.{address}"):
        assert name_of(text) is None


def test_a_rule_says_hosts_ports_methods_and_paths() -> None:
    rule = EgressRule.parse("Allow [2001:DB8::/32]:80,8000-8100 get,HEAD /v1/* /x")
    assert rule == EgressRule(
        True, "2001:db8::/32", ((80, 80), (8000, 8100)), ("GET", "HEAD"), ("/v1/*", "/x")
    )
    assert EgressRule.parse("deny * * /x") == EgressRule(False, "*", (), (), ("/x",))


def test_what_a_grant_covers() -> None:
    grant = EgressGrant(EgressMode.GRANTED, ("*.good.test", "8.8.8.0/24"))
    for egress, covered in (
        (Egress(), True),
        (Egress(allow=("a.good.test", "*.b.good.test", "8.8.8.8")), True),
        (Egress(rules=("allow a.good.test:443", "deny *")), True),
        (Egress(allow=("good.test",)), False),
        (Egress(allow=("8.8.0.0/16",)), False),
        (Egress(rules=("allow *",)), False),
        (Egress(proxy=EgressProxy("p.test:1")), False),
        (Egress(dns_servers=("8.8.8.8",)), False),
    ):
        assert grant.covers(egress, internet=False) is covered
        assert EgressGrant().covers(egress, internet=True)
        assert not grant.covers(egress, internet=True)
    assert not EgressGrant(EgressMode.NONE).covers(Egress(allow=("a.test",)), internet=False)
    assert not EgressGrant(EgressMode.NONE).covers(Egress(grants=True), internet=False)
    assert EgressGrant(EgressMode.GRANTED).covers(Egress(grants=True), internet=False)
    assert EgressGrant(EgressMode.NONE).covers(Egress(deny=(ALL_TRAFFIC,)), internet=True)


def test_of_two_grants_the_narrower_counts() -> None:
    none, internet = EgressGrant(EgressMode.NONE), EgressGrant()
    one = EgressGrant(EgressMode.GRANTED, ("*.good.test", "other.test"))
    two = EgressGrant(EgressMode.GRANTED, ("a.good.test", "third.test"))
    assert internet.narrowed(one) == one == one.narrowed(internet)
    assert one.narrowed(none) == none == none.narrowed(internet)
    assert one.narrowed(two).hosts == ("a.good.test",) == two.narrowed(one).hosts
    with pytest.raises(Invalid, match="granted"):
        EgressGrant(EgressMode.NONE, ("a.test",)).check()


# ── grants


def test_a_granted_host_is_reached_by_its_stand_in_and_port_only() -> None:
    granted = (
        GrantedHost("index.test", 443),
        GrantedHost("Proxy.internal.", 3128, target="127.0.0.1"),
        GrantedHost("10.1.2.3", 80),
        GrantedHost("index.test", 80),
    )
    index, proxy = stand_in(granted, "index.test"), stand_in(granted, "proxy.internal")
    assert index != proxy
    assert index is not None
    assert IPv4Address(index) in IPv4Network("198.18.0.0/15")
    assert proxy is not None
    assert stand_in(granted, "evil.test") is None
    assert grant_for(granted, index, 443) == granted[0]
    assert grant_for(granted, index, 80) == granted[3]
    assert grant_for(granted, proxy, 3128) == granted[1]
    assert grant_for(granted, "10.1.2.3", 80) == granted[2]
    for address, port in (
        (index, 22),
        (proxy, 443),
        ("10.1.2.3", 443),
        ("127.0.0.1", 3128),
        ("10.1.2.4", 80),
    ):
        assert grant_for(granted, address, port) is None


# ── kept


def test_a_spec_is_kept_whole() -> None:
    spec = SandboxSpec(
        https_ports=(8443,),
        egress=Egress(
            ("a.test",),
            (ALL_TRAFFIC,),
            (),
            EgressProxy("p.test:1", "u", "sealed", True, "s", "PEM"),
            ("deny *:22",),
            grants=True,
        ),
        granted_hosts=(GrantedHost("index.test", 443, "127.0.0.1"),),
    )
    assert _spec_of(spec_values(spec)) == spec


def test_a_spec_of_an_older_server_has_no_rules() -> None:
    values = spec_values(SandboxSpec())
    for new in ("https_ports", "egress", "granted_hosts"):
        del values[new]
    assert _spec_of(values) == SandboxSpec()


def test_a_proxy_is_found_in_its_address() -> None:
    assert (EgressProxy("p.test:1080").host, EgressProxy("p.test:1080").port) == ("p.test", 1080)
    assert EgressProxy("[2001:db8::1]:1080").host == "2001:db8::1"


def test_what_was_sealed_opens_only_where_it_belongs() -> None:
    seal = Seal(bytes(32))
    sealed = seal.seal("secret", "p.test:1")
    assert seal.open(sealed, "p.test:1") == "secret"
    assert sealed != seal.seal("secret", "p.test:1")
    for wrong, context, key in (
        (sealed, "q.test:1", seal),
        (sealed[:-4] + "AAA=", "p.test:1", seal),
        ("?", "", seal),
    ):
        with pytest.raises(Unsealable):
            key.open(wrong, context)
    with pytest.raises(Unsealable):
        Seal(b"\1" * 32).open(sealed, "p.test:1")


# ── what was told


def test_what_was_told_is_forgotten_in_time_and_in_bulk() -> None:
    now = [0.0]
    told = Told(lambda: now[0])
    told.note("s1", "a.test", ["1.1.1.1", "2.2.2.2"])
    told.note("s1", "b.test", ["1.1.1.1"])
    assert told.names("s1", "1.1.1.1") == {"a.test", "b.test"}
    assert told.names("s2", "1.1.1.1") == set()
    now[0] = REMEMBER_S + 1
    assert told.names("s1", "1.1.1.1") == set()
    for number in range(PER_SANDBOX_MAX + 1):
        told.note("s1", f"{number}.test", ["3.3.3.3"])
    assert len(told.names("s1", "3.3.3.3")) == PER_SANDBOX_MAX
    for number in range(SANDBOXES_MAX):
        told.note(f"t{number}", "a.test", ["3.3.3.3"])
    assert told.names("s1", "3.3.3.3") == set()
    told.forget("t1")
    assert told.names("t1", "3.3.3.3") == set()
