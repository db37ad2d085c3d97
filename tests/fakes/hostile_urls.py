# ruff: noqa: RUF001 - look-alike digits are the point
"""URLs that a callback must never reach (fault row 27).

`{port}` stands for a port on which this machine listens. If the guard misses a URL, a connection is
accepted.
"""

# For some resolver or parser, each of these leads to this machine.
LOOPBACK = (
    "http://127.0.0.1:{port}/",
    "http://127.0.0.1.:{port}/",  # trailing dot
    "http://127.1.2.3:{port}/",
    "http://127.1:{port}/",  # short forms
    "http://127.0.1:{port}/",
    "http://2130706433:{port}/",  # decimal
    "http://2130706433.:{port}/",
    "http://017700000001:{port}/",  # octal
    "http://0177.0.0.1:{port}/",
    "http://0177.0.0.01:{port}/",
    "http://127.0.0.01:{port}/",
    "http://0x7f000001:{port}/",  # hexadecimal
    "http://0X7F000001:{port}/",
    "http://0x7f.0.0.1:{port}/",
    "http://0x7f.1:{port}/",
    "http://0x7f.0x0.0x0.0x1:{port}/",
    "http://127.0x0.0.1:{port}/",
    "http://00127.0.0.1:{port}/",
    "http://１２７.0.0.1:{port}/",  # full-width digits
    "http://①②⑦.⓪.⓪.①:{port}/",  # circled digits
    "http://127。0。0。1:{port}/",  # ideographic full stops
    "http://127．0．0．1:{port}/",
    "http://%31%32%37.0.0.1:{port}/",  # percent-encoded
    "http://127.0.0.1%00.example.com:{port}/",
    "http://127.0.0.1%2eexample.com:{port}/",
    "http://0.0.0.0:{port}/",
    "http://0:{port}/",
    "http://0.1.2.3:{port}/",
    "http://[::1]:{port}/",
    "http://[0:0:0:0:0:0:0:1]:{port}/",
    "http://[0000:0000:0000:0000:0000:0000:0000:0001]:{port}/",
    "http://[::]:{port}/",
    "http://[::1%25lo]:{port}/",  # zone ids
    "http://[::1%lo]:{port}/",
    "http://[fe80::1%25lo]:{port}/",
    "http://[::ffff:127.0.0.1]:{port}/",  # IPv4 inside IPv6
    "http://[::ffff:7f00:1]:{port}/",
    "http://[::ffff:0:0]:{port}/",
    "http://[0:0:0:0:0:ffff:127.0.0.1]:{port}/",
    "http://[::ffff:0:127.0.0.1]:{port}/",  # IPv4-translated
    "http://[::127.0.0.1]:{port}/",  # IPv4-compatible
    "http://[64:ff9b::127.0.0.1]:{port}/",  # NAT64
    "http://[64:ff9b:1::127.0.0.1]:{port}/",  # NAT64, local use
    "http://[2002:7f00:1::]:{port}/",  # 6to4
    "http://[2002:7f00:1::1]:{port}/",
    "http://[2001:0:4136:e378:8000:63bf:80ff:fffe]:{port}/",  # Teredo
    "http://[2606:4700::5efe:127.0.0.1]:{port}/",  # ISATAP
    "http://[2606:4700::200:5efe:7f00:1]:{port}/",
    "http://localhost:{port}/",
    "http://LOCALHOST:{port}/",
    "http://ⓛⓞⓒⓐⓛⓗⓞⓢⓣ:{port}/",
    "http://anything.localhost:{port}/",
    "https://127.0.0.1:{port}/",
    "https://localhost:{port}/",
    "http://127.0.0.1:{port}#@example.com/",
    "http://127.0.0.1:{port}?@example.com/",
)

# Private networks, cloud metadata, and unassigned addresses.
NOT_PUBLIC = (
    "http://10.0.0.1/",
    "http://10.255.255.255/",
    "http://172.16.0.1/",
    "http://172.31.255.254/",
    "http://192.168.1.1/",
    "http://100.64.0.1/",  # carrier-grade NAT
    "http://100.100.100.200/latest/meta-data/",  # Alibaba metadata
    "http://169.254.169.254/latest/meta-data/",  # AWS, GCP, Azure, … metadata
    "http://2852039166/",  # the same in decimal
    "http://0xa9fea9fe/",
    "http://[::ffff:169.254.169.254]/",
    "http://[64:ff9b::a9fe:a9fe]/",
    "http://[2002:a9fe:a9fe::]/",
    "http://169.254.170.2/v2/credentials",  # AWS ECS
    "http://168.63.129.16/",  # Azure
    "http://192.0.0.192/opc/v2/",  # Oracle
    "http://[fd00:ec2::254]/latest/meta-data/",  # AWS over IPv6
    "http://[fd20:ce::254]/computeMetadata/v1/",  # GCP over IPv6
    "http://192.0.0.8/",  # IETF protocol assignments
    "http://192.0.2.1/",  # documentation
    "http://198.51.100.1/",
    "http://203.0.113.1/",
    "http://192.88.99.1/",  # 6to4 relay
    "http://198.18.0.1/",  # benchmarking
    "http://198.19.255.255/",
    "http://224.0.0.1/",  # multicast
    "http://239.255.255.250:1900/",
    "http://240.0.0.1/",  # reserved
    "http://255.255.255.255/",  # broadcast
    "http://[fe80::1]/",  # link-local
    "http://[fec0::1]/",  # site-local
    "http://[fc00::1]/",  # unique local
    "http://[fd12:3456:789a::1]/",
    "http://[ff02::1]/",  # multicast
    "http://[2001:db8::1]/",  # documentation
    "http://[3fff::1]/",
    "http://[2001:2::1]/",  # benchmarking
    "http://[2001:10::1]/",  # ORCHID
    "http://[100::1]/",  # discard
    "http://[5f00::1]/",  # segment routing
    "http://[4000::1]/",  # not allocated
)

# Not valid URLs of a callback.
MALFORMED = (
    "",
    "http://",
    "http:///path",
    "http:/127.0.0.1:{port}/",
    "http:127.0.0.1:{port}",
    "//127.0.0.1:{port}/",
    "127.0.0.1:{port}/",
    "ftp://127.0.0.1:{port}/",
    "file:///etc/passwd",
    "gopher://127.0.0.1:{port}/_GET",
    "unix:///var/run/docker.sock",
    "ws://127.0.0.1:{port}/",
    "javascript:alert(1)",
    "http+unix://%2Fvar%2Frun%2Fdocker.sock/info",
    "http://user:secret@127.0.0.1:{port}/",
    "http://user:secret@example.com/",
    "http://@example.com/",
    "http://example.com:secret@127.0.0.1:{port}/",
    "http://example.com\\@127.0.0.1:{port}/",
    "http://127.0.0.1:{port}\\@example.com/",
    "http://example.com@127.0.0.1:{port}@example.org/",
    "http://example.com/a\\b",
    "http://127.0.0.1:{port} /",
    " http://127.0.0.1:{port}/",
    "http://127.0.0.1:{port}/\r\nX-Injected: 1",
    "http://127.0.0.1:{port}/\0",
    "http://127.0.0.1\t:{port}/",
    "http://exam ple.com/",
    "http://example.com:0/",
    "http://example.com:65536/",
    "http://example.com:-1/",
    "http://example.com:1e3/",
    "http://example.com:80:80/",
    "http://::1:{port}/",
    "http://[::1:{port}/",
    "http://[::1]{port}/",
    "http://[127.0.0.1]:{port}/",
    "http://[v1.127.0.0.1]:{port}/",
    "http://[::ffff:127.1]:{port}/",
    "http://a..b/",
    "http://.example.com/",
    "http://-example.com/",
    "http://exam%70le.com/",
    "http://exa;mple.com/",
    "http://256.256.256.256/",
    "http://1.2.3/",
    "http://1.2.3.4.5/",
    "http://example.0x/",
    "http://xn--/",
    "http://" + "a" * 64 + ".com/",
    "http://" + "a." * 127 + "com/",
    "http://example.com/" + "a" * 2048,
    "http://\ud800.example.com/",
    "http://example.com/\ud800",
    "http://exam\u200bple.com/",
    "http://\u202eexample.com/",
)
