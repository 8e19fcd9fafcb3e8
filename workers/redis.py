"""The broker Redis."""

from __future__ import annotations

from kombu.transport import redis as kombu_redis

from workers.settling import Settling


class Channel(Settling, kombu_redis.Channel):
    """Kombu's channel, which reads on although it could not acknowledge."""


class Transport(kombu_redis.Transport):
    """Kombu's transport, with this channel."""

    Channel = Channel
