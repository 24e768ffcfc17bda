"""The group `routing` of the vectors: what qmail-send made of recipients."""

import pytest
import vectors

from gateway import Recipient, resolve
from gateway.address import Address

STEMS = ("percenthack", "virtual_domains", "locals", "dot_qmail")
SECTIONS = {"percenthack": "percenthack", "virtualdomains": "virtual_domains", "locals": "locals"}


def configuration(control, folder):
    """Say in our settings what the control directory said."""
    conf = {stem: {} for stem in STEMS}
    for name, content in control.items():
        (folder / name).write_bytes(vectors.raw(content))
        if name in SECTIONS:
            conf[SECTIONS[name]]["file"] = name
    noat = first_line(control, "envnoathost", first_line(control, "me", "envnoathost"))
    conf["percenthack"]["envnoathost"] = noat
    return conf


def first_line(control, name, default):
    return control[name].partition("\n")[0].rstrip() if name in control else default


async def answer(case, folder):
    control = case["input"]["control"]
    if "me" not in control and "locals" not in control:
        # A gateway always has a name of its own; qmail would not start without one.
        return {"started": False, "exit": 111}
    conf = configuration(control, folder)
    chain, _ = vectors.chain_of(folder, conf, *STEMS, hostname=first_line(control, "me", "me.example"))
    recipient = Recipient.of(Address(vectors.text(case["input"]["address"])))
    (routed,) = await resolve(chain, recipient)
    channel = routed.route.channel if routed.route else "remote"
    return {"started": True, "channel": channel, "address": str(routed.recipient.address)}


@pytest.mark.parametrize("case", vectors.cases("routing"))
async def test_routing(case, tmp_path, request):
    wanted = dict(case["expect"])
    if "address" in wanted:
        wanted["address"] = vectors.text(wanted["address"])
    vectors.compare(request, "routing", case, await answer(case, tmp_path), wanted)
