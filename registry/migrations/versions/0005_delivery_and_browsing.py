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
        # Of those recorded before, nobody knows: they are shown once they are added again.
        patches.add_column(
            sa.Column("private", sa.Boolean(), nullable=False, server_default=sa.true())
        )
        patches.add_column(sa.Column("checked_at", sa.DateTime()))
        patches.create_index("ix_patches_checked_at", ["checked_at"])
        patches.create_index("ix_patches_base_repo_id", ["base_repo", "id"])
        patches.create_index("ix_patches_task_id", ["task", "id"])
        patches.create_index(
            "ix_patches_private",
            ["id"],
            sqlite_where=sa.text("private = 1"),
            postgresql_where=sa.text("private"),
        )
    with op.batch_alter_table("subscriptions") as subscriptions:
        subscriptions.add_column(
            sa.Column("delivery", sa.String(8), nullable=False, server_default="commit")
        )
        subscriptions.create_index("ix_subscriptions_base_id_id", ["base_id", "id"])
        subscriptions.add_column(sa.Column("notify", sa.JSON()))
        subscriptions.add_column(
            sa.Column("managed", sa.Boolean(), nullable=False, server_default=sa.false())
        )
    with op.batch_alter_table("ports") as ports:
        ports.drop_index("ix_ports_state_due_at")
        ports.create_index("ix_ports_state_due_at_key", ["state", "due_at", "key"])
        ports.add_column(sa.Column("action", sa.String(8)))
        ports.create_index(
            "ix_ports_release_id_action_subscription_id",
            ["release_id", "action", "subscription_id"],
        )
        ports.create_index("ix_ports_action_state_due_at_key", ["action", "state", "due_at", "key"])
        ports.create_index("ix_ports_published_at_key", ["published_at", "key"])
    judged = sa.table("ports", sa.column("verdict", sa.JSON()), sa.column("action", sa.String()))
    op.execute(sa.update(judged).values(action=judged.c.verdict["action"].as_string()))
    op.add_column("workers", sa.Column("traffic", sa.JSON()))
    op.add_column(
        "bases", sa.Column("private", sa.Boolean(), nullable=False, server_default=sa.true())
    )
    missed = sa.Column("missed", sa.Integer(), nullable=False, server_default="0")
    op.add_column("releases", missed)
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
    with op.batch_alter_table("releases") as releases:
        releases.drop_column("missed")
    with op.batch_alter_table("workers") as workers:
        workers.drop_column("traffic")
    with op.batch_alter_table("bases") as bases:
        bases.drop_column("private")
    with op.batch_alter_table("ports") as ports:
        ports.drop_index("ix_ports_published_at_key")
        ports.drop_index("ix_ports_action_state_due_at_key")
        ports.drop_index("ix_ports_release_id_action_subscription_id")
        ports.drop_column("action")
        ports.drop_index("ix_ports_state_due_at_key")
        ports.create_index("ix_ports_state_due_at", ["state", "due_at"])
    with op.batch_alter_table("subscriptions") as subscriptions:
        subscriptions.drop_index("ix_subscriptions_base_id_id")
        for name in ("managed", "notify", "delivery"):
            subscriptions.drop_column(name)
    with op.batch_alter_table("patches") as patches:
        patches.drop_index("ix_patches_private")
        patches.drop_index("ix_patches_task_id")
        patches.drop_index("ix_patches_base_repo_id")
        patches.drop_index("ix_patches_checked_at")
        for name in ("checked_at", "private", "task", "pipeline_tag"):
            patches.drop_column(name)
