"""A process of the running gateway, not a command: makes the backup that is due.

Takes the configuration in use from stdin, writes the archive, and says how it went on stdout as JSON.
"""

from __future__ import annotations

import json
import os
import sys
import time
from pathlib import Path

from gateway.commands.queue.archives import archived
from gateway.commands.queue.work import replaced
from gateway.configuration import Configuration
from gateway.errors import GatewayError


def main() -> None:
    """Make the backup; exit 1 with the reason on stderr."""
    began, file = time.monotonic(), Path(sys.argv[1])
    told = json.load(sys.stdin)
    configuration = Configuration.parse(Path(told["folder"]), told["texts"], Path(told["base"]))
    try:
        with replaced(file) as out:
            *_, row = archived(configuration, out)
            size = out.seek(0, os.SEEK_END)
    except (GatewayError, OSError) as error:
        sys.exit(str(error))
    seconds = round(time.monotonic() - began, 3)
    sys.stdout.write(json.dumps({"messages": row["messages"], "size": size, "seconds": seconds}))


if __name__ == "__main__":
    main()
