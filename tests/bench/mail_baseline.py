"""The mailer to be measured against, as a good engineer writes it by hand for one purpose.

Takes `messages.email`, builds the mail with the standard library, sends it over connections that
are kept, acks; what fails waits in the 1 s tier. No expiry, no breaker, no facts, no metrics, no
log: all that is the product's handicap.
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


def mail(order: dict[str, str]) -> EmailMessage:
    message = EmailMessage()
    message["From"] = os.environ["RINGBACK_MAIL_FROM"]
    message["To"] = order["to"]
    message["Subject"] = order["subject"]
    message["Date"] = formatdate()
    message["Message-ID"] = f"<{order['id']}@shop.example.com>"
    message["List-Unsubscribe"] = f"<{order['unsubscribe_url']}>"
    message["List-Unsubscribe-Post"] = "List-Unsubscribe=One-Click"
    message.set_content(order["text"])
    message.add_alternative(order["html"], subtype="html")
    return message


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
            await smtp.send_message(mail(json.loads(message.body)))
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
