"""The SMTP server, a file for each concern; `listening` is the one that others make.

`frame` reads, writes and watches the clock; `connection` looks up a command, checks what it needs and
answers; `commands` is the table of verbs. Each verb is a function of a connection and its argument, in
`commands` itself, `transaction` (MAIL, RCPT), `content` (DATA, BDAT), `tls` (STARTTLS), `auth` (AUTH) or
`proxy` (XCLIENT). Where TLS or a proxy's header comes before the first word, `accepting` takes connections.
"""
