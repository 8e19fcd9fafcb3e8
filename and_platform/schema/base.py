"""What all tables share: the metadata with its naming convention, and the column types in use."""

from __future__ import annotations

from datetime import datetime
from typing import Annotated, Any

import sqlalchemy as sa
from sqlalchemy.dialects.postgresql import ARRAY, JSONB
from sqlalchemy.orm import DeclarativeBase, mapped_column

NAMING = {
    "ix": "ix_%(table_name)s_%(column_0_N_name)s",
    "uq": "uq_%(table_name)s_%(column_0_N_name)s",
    "ck": "ck_%(table_name)s_%(constraint_name)s",
    "fk": "fk_%(table_name)s_%(column_0_N_name)s",
    "pk": "pk_%(table_name)s",
}

Json = dict[str, Any]
Timestamp = Annotated[datetime, mapped_column(sa.DateTime(timezone=True), server_default=sa.func.now())]


class Base(DeclarativeBase):
    metadata = sa.MetaData(naming_convention=NAMING)
    type_annotation_map = {  # noqa: RUF012 (SQLAlchemy reads it)
        int: sa.BigInteger,
        str: sa.Text,
        float: sa.Double,
        bytes: sa.LargeBinary,
        datetime: sa.DateTime(timezone=True),
        Json: JSONB,
        list[str]: ARRAY(sa.Text),
        list[int]: ARRAY(sa.BigInteger),
        list[float]: ARRAY(sa.REAL),
    }


def identity(comment: str) -> Any:
    """A primary key that the server counts."""
    return mapped_column(sa.BigInteger, sa.Identity(), primary_key=True, comment=comment)


def reference(target: str, comment: str, *, cascade: bool = False, key: bool = False, index: bool = False) -> Any:
    """A foreign key. `cascade`: the row goes with what it points to."""
    return mapped_column(
        sa.BigInteger,
        sa.ForeignKey(target, ondelete="CASCADE" if cascade else None),
        primary_key=key,
        index=index,
        comment=comment,
    )
