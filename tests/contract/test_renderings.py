"""The output of the shipped templates, so that every change to it is reviewed."""

import json
import os
from pathlib import Path

import pytest

from services.mailings.rendering.bound_template import BoundTemplate
from services.mailings.rendering.loader import SHIPPED, TemplateLoader

FOLDER = Path(__file__).parent / "golden" / "renderings"
SAMPLES = json.loads(SHIPPED.joinpath("samples.json").read_text())
NAMES = TemplateLoader(None).names()


def test_every_shipped_template_has_a_sample() -> None:
    assert SAMPLES.keys() - {"user"} == set(NAMES)


@pytest.mark.parametrize("name", NAMES)
def test_e5_a_shipped_template_renders_as_recorded(name: str) -> None:
    """WRITE_GOLDEN=1 records the output. Look at the HTML in a browser."""
    channel: str = "sms" if name.startswith("sms/") else "email"
    bound = BoundTemplate(
        TemplateLoader(None).get(name, channel), channel, SAMPLES[name], "Ringback"
    )

    rendered = bound.render(SAMPLES["user"], unsubscribe_url="https://example.com/u?id=7&k=1")

    stem = name.removesuffix(".md").replace("/", ".")
    head = f"Subject: {rendered.subject}\n\n" if channel == "email" else ""
    parts = {"txt": head + rendered.text, "html": rendered.html}
    for suffix, content in parts.items():
        file = FOLDER / f"{stem}.{suffix}"
        if content is None:
            assert not file.exists()
            continue
        if os.environ.get("WRITE_GOLDEN"):
            file.parent.mkdir(exist_ok=True)
            file.write_text(content.rstrip("\n") + "\n")
        assert content.rstrip("\n") + "\n" == file.read_text()


def test_a_single_item_has_a_singular_subject() -> None:
    loader = TemplateLoader(None)
    contexts = {
        "email/new_movies.md": {"movies": SAMPLES["email/new_movies.md"]["movies"][:1]},
        "email/new_episode.md": {"series": SAMPLES["email/new_episode.md"]["series"][:1]},
        "email/reactions_summary.md": {"stats": [{"type": "like", "total": 1, "target": ""}]},
    }

    subjects = [
        BoundTemplate(loader.get(name, "email"), "email", context, "Shop")
        .render({}, unsubscribe_url=None)
        .subject
        for name, context in contexts.items()
    ]

    assert subjects == [
        "New on Shop: The Long Queue",
        "A new episode of Heartbeat",
        "1 new reaction to your reviews",
    ]
