"""The stages of a dissection as Celery tasks, for several processes or machines. Needs the extra `workers`.

Start a worker wherever the data set's files can be read:

    celery -A workers.app worker -c 1 --without-gossip --without-mingle --without-heartbeat

and send it work from Python:

    from workers.tasks import dissect_stages
    dissect_stages.delay("sample-ast", {"dataset": "sample"}, ["record", "caption"])

Messages go through the platform's own database unless ANDP_BROKER_URL names another broker. Results are rows in the
tables, so nothing is returned, and a task that is delivered twice does what is missing.
"""
