"""Work shared out to many processes and machines, through Celery. Needs the extra `workers`.

Start a worker wherever the data set's files can be read, and say which of the four queues it takes from:

    andp worker --queues gpu,db --device cuda:0

Messages go through the platform's own database unless ANDP_BROKER_URL names another broker (`andp broker check` tells
how it does). A message holds the id of a unit of work and nothing else: what there is to do, and what has come of it, is
in the tables. So a message that is delivered twice does no harm, and one that is lost is sent again.

    queues    the four queues, and how long a message of each may be kept
    app       the Celery app and its settings
    pgmq      the broker that needs no server of its own; rabbitmq, redis: the others
    validation  which messages a worker takes
    brokers   what a broker holds, and what is wrong with it
    program   `andp worker`
    messages, tasks, pulse   what is sent, what is done, and the sign of life
    observe, metrics, tracing   logs, numbers and traces
"""
