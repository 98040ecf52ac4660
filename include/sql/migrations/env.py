"""Alembic environment. Schemas are raw SQL beside each revision; there is no ORM model to compare with."""

from alembic import context
from sqlalchemy import create_engine, text
from sqlalchemy.pool import NullPool

dsn = context.config.attributes["dsn"]
engine = create_engine(dsn.replace("postgresql://", "postgresql+psycopg://", 1), poolclass=NullPool)
with engine.connect() as connection:
    # one migration at a time, also when two schedulers start together
    connection.execute(text("SELECT pg_advisory_lock(hashtextextended('nightmarket.migrate', 0))"))
    connection.execute(text("CREATE SCHEMA IF NOT EXISTS ops"))
    connection.commit()
    context.configure(connection=connection, version_table="schema_version", version_table_schema="ops")
    with context.begin_transaction():
        context.run_migrations()
    connection.commit()
