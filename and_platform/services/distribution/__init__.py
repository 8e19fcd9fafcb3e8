"""A dissection shared out to workers.

`runs` opens, cancels and retries; `steps` says what there is to do; `ledger` keeps what has become of it; `work` does
one unit; `settled` is the plan as rows, for workers that have no models. Nothing here knows the broker: who wants
messages sent passes a `Messenger`.
"""
