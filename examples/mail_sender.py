# SPDX-License-Identifier: LGPL-2.1-or-later
"""Named task: each payload is a mail. A server that is away is waited for; one that refuses is told of at once.

bgtaskctl call mailsender '{"to": "ann@shop.example", "subject": "Your order", "text": "It is on its way."}'
"""

import os
import smtplib
import time
from email.message import EmailMessage

import bgtaskd


class MailSender(bgtaskd.AsyncTask):
    """Keeps its connection to the server from one mail to the next."""

    name = "mailsender"
    smtp = None

    def work(self, payload, context):
        """Send one."""
        mail = EmailMessage()
        mail["From"], mail["To"] = os.environ["MAIL_FROM"], payload["to"]
        mail["Subject"] = payload["subject"]
        # If this process dies, the mail may go out twice: with the same id, by which servers know it.
        mail["Message-ID"] = f"<{context.id}.{context.worker}@{os.uname().nodename}>"
        mail.set_content(payload["text"])
        for seconds in (0, 0.5, 2, 10, 30, 60):
            time.sleep(seconds)
            try:
                self.smtp = self.smtp or smtplib.SMTP(os.environ["SMTP_HOST"], timeout=60)
                return self.smtp.send_message(mail)
            except (smtplib.SMTPRecipientsRefused, smtplib.SMTPDataError):
                raise  # set aside, with the server's words
            except OSError as error:
                self.smtp, failure = None, error
        raise failure
