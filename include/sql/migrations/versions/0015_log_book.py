"""The log book: calls that a restored database does not know of.

Revision ID: 0015
Revises: 0014
"""

from pathlib import Path

from alembic import op

revision = "0015"
down_revision = "0014"


def upgrade() -> None:
    # the driver's own cursor: the file holds DO blocks and percent signs, and takes no parameters
    with op.get_bind().connection.cursor() as cursor:
        cursor.execute(Path(__file__).with_suffix(".sql").read_text(encoding="utf-8"))


def downgrade() -> None:
    raise NotImplementedError("forward only: restore a backup instead (docs/runbook.md)")
