"""What stands around the agent, so that almost nothing is root: rights given up, processes, a plan.

`privilege` and `forking` run as root; `plan` is made without rights; an account's child runs `delivering`.
"""
