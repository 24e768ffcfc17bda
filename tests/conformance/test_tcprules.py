"""The group `tcprules` of the vectors: what Debian's ucspi-tcp compiled, matched and set."""

import pytest
import vectors

from gateway.errors import ConfigError


def answer(rules, ip, host, info):
    tcprules = vectors.plugin_module("relay_control", "tcprules")
    try:
        parsed = tcprules.Rules.parse(rules, "tcp.smtp")
    except ConfigError:
        return {"compile_exit": 100}
    rule = parsed.find(ip or "", host, info)
    return {
        "compile_exit": 0,
        "exit": 0,
        "rule": rule and rule.address,
        "allow": rule is None or rule.allow,
        "env": [list(pair) for pair in rule.variables] if rule and rule.allow else [],
    }


@pytest.mark.parametrize("case", vectors.cases("tcprules"))
def test_tcprules(case, request):
    vectors.compare(request, "tcprules", case, answer(**case["input"]), case["expect"])
