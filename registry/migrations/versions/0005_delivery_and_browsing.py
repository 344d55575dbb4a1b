"""how ports are delivered, who hears of them, portllm.yaml, and the indexes of the web pages

Revision ID: 0005
Revises: 0004
"""

import sqlalchemy as sa
from alembic import op

revision = "0005"
down_revision = "0004"
branch_labels = None
depends_on = None


def upgrade() -> None:
    with op.batch_alter_table("patches") as patches:
        patches.add_column(sa.Column("pipeline_tag", sa.String()))
        patches.add_column(sa.Column("task", sa.String()))
        patches.add_column(
            sa.Column("private", sa.Boolean(), nullable=False, server_default=sa.false())
        )
        patches.create_index("ix_patches_base_repo", ["base_repo"])
        patches.create_index("ix_patches_task", ["task"])
    with op.batch_alter_table("subscriptions") as subscriptions:
        subscriptions.add_column(
            sa.Column("delivery", sa.String(8), nullable=False, server_default="commit")
        )
        subscriptions.add_column(sa.Column("notify", sa.JSON()))
        subscriptions.add_column(
            sa.Column("managed", sa.Boolean(), nullable=False, server_default=sa.false())
        )
    with op.batch_alter_table("ports") as ports:
        ports.create_index("ix_ports_release_id_state", ["release_id", "state"])
        ports.create_index("ix_ports_published_at", ["published_at"])
    op.create_table(
        "configs",
        sa.Column("repo", sa.String(), primary_key=True),
        sa.Column("sha", sa.String(), nullable=False),
        sa.Column("problem", sa.String()),
        sa.Column("request", sa.Integer()),
        sa.Column("read_at", sa.DateTime(), nullable=False),
    )


def downgrade() -> None:
    op.drop_table("configs")
    with op.batch_alter_table("ports") as ports:
        ports.drop_index("ix_ports_published_at")
        ports.drop_index("ix_ports_release_id_state")
    with op.batch_alter_table("subscriptions") as subscriptions:
        for name in ("managed", "notify", "delivery"):
            subscriptions.drop_column(name)
    with op.batch_alter_table("patches") as patches:
        patches.drop_index("ix_patches_task")
        patches.drop_index("ix_patches_base_repo")
        for name in ("private", "task", "pipeline_tag"):
            patches.drop_column(name)
