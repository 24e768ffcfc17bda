"""The queue: the contract of stores, the schedule, and the dispatcher."""
