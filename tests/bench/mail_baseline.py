"""The baseline: a mailer that a good engineer writes by hand for one purpose.

It consumes `messages.email`, builds each mail with the standard library, sends it over reused
connections and acks. A failed mail waits in the 1 s tier. It has no expiry, breaker, facts,
metrics or log.
"""

import asyncio
import json
import os
from email.message import EmailMessage
from email.utils import formatdate

import aio_pika
import uvloop
from aio_pika.abc import AbstractIncomingMessage
from aiosmtplib import SMTP, SMTPException
from yarl import URL

CONNECTIONS = 20


def build_mail(command: dict[str, str]) -> EmailMessage:
    mail = EmailMessage()
    mail["From"] = os.environ["RINGBACK_MAIL_FROM"]
    mail["To"] = command["to"]
    mail["Subject"] = command["subject"]
    mail["Date"] = formatdate()
    mail["Message-ID"] = f"<{command['id']}@shop.example.com>"
    mail["List-Unsubscribe"] = f"<{command['unsubscribe_url']}>"
    mail["List-Unsubscribe-Post"] = "List-Unsubscribe=One-Click"
    mail.set_content(command["text"])
    mail.add_alternative(command["html"], subtype="html")
    return mail


async def main() -> None:
    server = URL(os.environ["RINGBACK_SMTP_URL"])
    pool: asyncio.LifoQueue[SMTP] = asyncio.LifoQueue()
    for _ in range(CONNECTIONS):
        smtp = SMTP(hostname=server.host, port=server.port, local_hostname="localhost")
        await smtp.connect()
        pool.put_nowait(smtp)
    connection = await aio_pika.connect_robust(os.environ["RINGBACK_AMQP_URL"])
    channel = await connection.channel()
    await channel.set_qos(prefetch_count=500)
    queue = await channel.get_queue("messages.email")

    async def handle(message: AbstractIncomingMessage) -> None:
        smtp = await pool.get()
        try:
            await smtp.send_message(build_mail(json.loads(message.body)))
        except SMTPException:
            copy = aio_pika.Message(
                message.body, content_type=message.content_type, type=message.type, delivery_mode=2
            )
            await channel.default_exchange.publish(copy, "messages.email.retry.1s")
        finally:
            pool.put_nowait(smtp)
        await message.ack()

    await queue.consume(handle)
    await asyncio.get_running_loop().create_future()


if __name__ == "__main__":
    uvloop.run(main())
