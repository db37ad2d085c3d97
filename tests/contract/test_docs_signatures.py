"""The code of docs/how-to/verify-a-signature.md accepts what Ringback signs, and nothing else."""

import base64
import json
import re
import shutil
import subprocess
import time
from pathlib import Path
from typing import Any

import pytest
from multidict import CIMultiDict

from services.callback.domain import signed_headers, signing_key

PAGE = Path(__file__).parents[2] / "docs" / "how-to" / "verify-a-signature.md"
BODY = b'{"hello": "w\\u00f6rld"}'
NODE, GO = shutil.which("node"), shutil.which("go")
SECRETS = ("your-secret-key", "whsec_" + base64.b64encode(b"k" * 32).decode())

NODE_MAIN = """
const { verifyWebhook, verifyXSignature } = require("./webhook.js");
const cases = JSON.parse(require("node:fs").readFileSync("cases.json"));
console.log(JSON.stringify(cases.map(({ secret, headers, body }) => [
  verifyWebhook(secret, headers, Buffer.from(body)),
  verifyXSignature(secret, headers["x-signature"], Buffer.from(body)),
])));
"""
GO_TEST = """package webhook

import (
	"encoding/json"
	"fmt"
	"net/http"
	"os"
	"testing"
	"time"
)

func TestCases(t *testing.T) {
	var cases []struct {
		Secret  string
		Headers map[string]string
		Body    string
	}
	text, _ := os.ReadFile("cases.json")
	if err := json.Unmarshal(text, &cases); err != nil {
		t.Fatal(err)
	}
	results := [][]bool{}
	for _, each := range cases {
		headers := http.Header{}
		for name, value := range each.Headers {
			headers.Set(name, value)
		}
		body := []byte(each.Body)
		results = append(results, []bool{
			Verify(each.Secret, headers, body, 5*time.Minute),
			VerifyXSignature(each.Secret, headers.Get("X-Signature"), body),
		})
	}
	output, _ := json.Marshal(results)
	fmt.Println(string(output))
}
"""


def _code(language: str) -> str:
    """Return the page's only code block in that language."""
    [block] = re.findall(rf"(?ms)^```{language}\n(.*?)^```$", PAGE.read_text())
    return str(block)


def _cases() -> tuple[list[dict[str, Any]], list[list[bool]]]:
    """Return requests, and for each whether webhook-signature and X-Signature are valid."""
    cases, expected = [], []

    def add(secret: str, signed: CIMultiDict[str], body: bytes, results: list[bool]) -> None:
        headers = {name.lower(): value for name, value in signed.items()}
        cases.append({"secret": secret, "headers": headers, "body": body.decode()})
        expected.append(results)

    now = int(time.time())
    for secret in SECRETS:
        signed = signed_headers("id-1", BODY, [signing_key(secret)], timestamp=now)
        add(secret, signed, BODY, [True, True])
        add(secret, signed, BODY + b" ", [False, False])
        add("another-secret", signed, BODY, [False, False])
        old = signed_headers("id-1", BODY, [signing_key(secret)], timestamp=now - 600)
        add(secret, old, BODY, [False, True])
        other_id = signed_headers("id-1", BODY, [signing_key(secret)], timestamp=now)
        other_id["webhook-id"] = "id-2"
        add(secret, other_id, BODY, [False, True])
    rotated = signed_headers("id-1", BODY, [signing_key(each) for each in SECRETS], timestamp=now)
    add(SECRETS[0], rotated, BODY, [True, True])
    add(SECRETS[1], rotated, BODY, [True, False])
    return cases, expected


def test_python_verifies_signatures() -> None:
    namespace: dict[str, Any] = {}
    exec(_code("python"), namespace)  # noqa: S102 - the test runs the code of the page
    cases, expected = _cases()

    results = [
        [
            namespace["verify_webhook"](each["secret"], each["headers"], each["body"].encode()),
            namespace["verify_x_signature"](
                each["secret"], each["headers"]["x-signature"], each["body"].encode()
            ),
        ]
        for each in cases
    ]

    assert results == expected


@pytest.mark.skipif(NODE is None, reason="Node.js is not installed")
def test_node_verifies_signatures(tmp_path: Path) -> None:
    (tmp_path / "webhook.js").write_text(_code("js"))
    cases, expected = _cases()
    (tmp_path / "cases.json").write_text(json.dumps(cases))

    output = subprocess.check_output([str(NODE), "-e", NODE_MAIN], cwd=tmp_path, timeout=60)

    assert json.loads(output) == expected


@pytest.mark.skipif(GO is None, reason="Go is not installed")
def test_go_verifies_signatures(tmp_path: Path) -> None:
    (tmp_path / "go.mod").write_text("module webhook\n\ngo 1.21\n")
    (tmp_path / "webhook.go").write_text(_code("go"))
    (tmp_path / "webhook_test.go").write_text(GO_TEST)
    cases, expected = _cases()
    (tmp_path / "cases.json").write_text(json.dumps(cases))

    output = subprocess.check_output([str(GO), "test", "-v", "."], cwd=tmp_path, timeout=150)

    assert json.loads(output.splitlines()[1]) == expected
