# Sends by every means there is to everywhere it can think of. Prints what it tried, and what the kernel took.
import errno, os, socket, struct, sys

tried, taken, kinds = 0, 0, set()

def attempt(kind, act):
    global tried, taken
    tried += 1
    try:
        act()
        taken += 1
    except OSError as error:
        kinds.add((kind, errno.errorcode.get(error.errno, "timeout")))

def connect(family, address):
    with socket.socket(family, socket.SOCK_STREAM) as s:
        s.settimeout(0.2)
        s.connect(address)

def send(family, kind, protocol, address, data, options=()):
    with socket.socket(family, kind, protocol) as s:
        s.settimeout(0.2)
        for option in options:
            s.setsockopt(*option)
        s.sendto(data, address)

V4, V6 = socket.AF_INET, socket.AF_INET6
links = [name for _, name in socket.if_nameindex()]
gateways = sys.argv[1:]
v4 = ["203.0.113.1", "203.0.113.2", "198.51.100.1", "10.255.255.53", "169.254.1.1", "1.1.1.1"] + gateways
v6 = ["2001:db8:1::1", "2001:db8:1::2", "fd00::1", "::ffff:203.0.113.1"]
echo = struct.pack("!BBHHH", 8, 0, 0xf7ff, 0, 0)
broadcast = [(socket.SOL_SOCKET, socket.SO_BROADCAST, 1)]
for address in v4:
    for port in [53, 80, 443, 9999]:
        attempt("tcp", lambda: connect(V4, (address, port)))
        attempt("udp", lambda: send(V4, socket.SOCK_DGRAM, 0, (address, port), b"x"))
    attempt("ping", lambda: send(V4, socket.SOCK_DGRAM, socket.IPPROTO_ICMP, (address, 0), echo))
    attempt("raw", lambda: send(V4, socket.SOCK_RAW, socket.IPPROTO_ICMP, (address, 0), echo))
    header = struct.pack("!BBHHHBBH4s4s", 0x45, 0, 0, 1, 0, 64, 17, 0, socket.inet_aton("203.0.113.2"), socket.inet_aton(address))
    attempt("raw ip", lambda: send(V4, socket.SOCK_RAW, socket.IPPROTO_RAW, (address, 0), header + b"\x00\x35\x00\x35\x00\x08\x00\x00"))
for address in v6:
    for port in [53, 443, 9999]:
        attempt("tcp6", lambda: connect(V6, (address, port)))
        attempt("udp6", lambda: send(V6, socket.SOCK_DGRAM, 0, (address, port), b"x"))
    attempt("ping6", lambda: send(V6, socket.SOCK_DGRAM, socket.IPPROTO_ICMPV6, (address, 0), b"\x80" + echo[1:]))
for address, port in [("255.255.255.255", 67), ("224.0.0.251", 5353), ("239.1.2.3", 9999), ("203.0.113.255", 9)]:
    attempt("cast", lambda: send(V4, socket.SOCK_DGRAM, 0, (address, port), b"x", broadcast))
for number, name in socket.if_nameindex():
    attempt("cast6", lambda: send(V6, socket.SOCK_DGRAM, 0, ("ff02::fb", 5353, 0, number), b"x"))
    bound = [(socket.SOL_SOCKET, socket.SO_BINDTODEVICE, name.encode() + b"\0")]
    attempt("bound", lambda: send(V4, socket.SOCK_DGRAM, 0, ("203.0.113.1", 9999), b"x", bound + broadcast))
    def frame():
        with socket.socket(socket.AF_PACKET, socket.SOCK_RAW) as s:
            s.bind((name, 0))
            ip = struct.pack("!BBHHHBBH4s4s", 0x45, 0, 28, 1, 0, 64, 17, 0, socket.inet_aton("203.0.113.2"), socket.inet_aton("203.0.113.1"))
            for mac in [b"\xff" * 6, b"\x02\x00\x00\x00\x00\x01", b"\x02\x4f\xac\x1d\x07\x01"]:
                s.send(mac + b"\x02\x4f\x01\x02\x03\x04" + b"\x08\x00" + ip + b"\x27\x0f\x27\x0f\x00\x08\x00\x00")
    attempt("frame", frame)
for name in ["world.example", "registry.example", "orbit.invalid"]:
    attempt("dns", lambda: socket.getaddrinfo(name, 443))
print(f"{tried} tried, {taken} taken, refused {sorted(kinds)}, links {links}")
