"""The baseline for expansion, as a good engineer writes it for one purpose.

For each user of each page it checks the settings, runs Jinja and Markdown, and publishes with
confirms. It has no checkpoints, no stored messages, no limits and no statuses.
"""

import asyncio
import json
import os
import sys
import uuid

import aio_pika
import aiohttp
import jinja2
import uvloop
from markdown_it import MarkdownIt

from services.mailings.rendering.loader import SHIPPED
from tests.bench.expansion import PAGE, TEMPLATE


async def main(source: str, receivers: int, template_text: str) -> None:
    environment = jinja2.Environment(autoescape=False)  # noqa: S701 - the template is Markdown, not HTML
    template = environment.from_string(template_text)
    subject = environment.from_string("{{ movies|length }} new movies")
    markdown = MarkdownIt()
    connection = await aio_pika.connect_robust(os.environ["RINGBACK_AMQP_URL"])
    channel = await connection.channel()
    async with aiohttp.ClientSession() as session:
        async with session.get(f"{source}/movies/") as response:
            movies = await response.json()
        for number in range(1, receivers // PAGE + 1):
            url = f"{source}/users/{receivers}/?page_number={number}&page_size={PAGE}"
            async with session.get(url) as response:
                users = await response.json()
            messages = []
            for user in users:
                if not (user["is_active"] and user["email_notifications"]):
                    continue
                text = template.render(user=user, movies=movies, product="Ringback")
                body = json.dumps(
                    {
                        "id": str(uuid.uuid4()),
                        "to": user["email"],
                        "subject": subject.render(movies=movies),
                        "text": text,
                        "html": markdown.render(text),
                    }
                )
                messages.append(aio_pika.Message(body.encode(), delivery_mode=2, type="SendEmail"))
            await asyncio.gather(
                *(channel.default_exchange.publish(each, "messages.email") for each in messages)
            )
    await asyncio.get_running_loop().create_future()


if __name__ == "__main__":
    text = (SHIPPED / TEMPLATE).read_text().split("---\n", 2)[2]
    uvloop.run(main(sys.argv[1], int(sys.argv[2]), text))
