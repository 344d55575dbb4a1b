"""follow rules, attempts, manners, workers, and the indexes that a million subscriptions need

Revision ID: 0004
Revises: 0003
"""

from typing import Any

import sqlalchemy as sa
from alembic import op

revision = "0004"
down_revision = "0003"
branch_labels = None
depends_on = None

ADDED: dict[str, list[sa.Column[Any]]] = {
    "patches": [sa.Column("owner", sa.String())],
    "bases": [
        sa.Column("rule", sa.String(8)),
        sa.Column("head_repo", sa.String()),
        sa.Column("head_ref", sa.String()),
        sa.Column("looked_at", sa.DateTime()),
        sa.Column("changed_at", sa.DateTime()),
        sa.Column("due_at", sa.DateTime()),
        sa.Column("doubted_sha", sa.String()),
        sa.Column("doubted_at", sa.DateTime()),
    ],
    "releases": [
        sa.Column("from_repo", sa.String()),
        sa.Column("from_ref", sa.String()),
        sa.Column("repo", sa.String()),
        sa.Column("ref", sa.String()),
        sa.Column("attempt", sa.Integer(), server_default="1"),
        sa.Column("due_at", sa.DateTime()),
    ],
    "subscriptions": [
        sa.Column("manners", sa.JSON()),
        sa.Column("group_name", sa.String()),
        sa.Column("from_repo", sa.String()),
        sa.Column("settled_repo", sa.String()),
        sa.Column("settled_sha", sa.String()),
        sa.Column("paused_at", sa.DateTime()),
    ],
    "ports": [
        sa.Column("attempt", sa.Integer(), server_default="1"),
        sa.Column("due_at", sa.DateTime()),
        sa.Column("verdict", sa.JSON()),
        sa.Column("made", sa.JSON()),
        sa.Column("published_at", sa.DateTime()),
    ],
}
BASE = "(SELECT {} FROM bases WHERE bases.id = {}.base_id)"
# The base of a subscription's last judged port, or where it started.
SETTLED = """COALESCE((
    SELECT releases.sha FROM ports JOIN releases ON releases.id = ports.release_id
    WHERE ports.subscription_id = subscriptions.id
    AND ports.state IN ('published', 'asked', 'rejected')
    AND releases.seen_at >= subscriptions.created_at
    ORDER BY releases.id DESC LIMIT 1), from_sha)"""
# Of two ports of the same subscription and release, the newer counts.
TWICE = """DELETE FROM ports WHERE EXISTS (
    SELECT 1 FROM ports AS newer WHERE newer.subscription_id = ports.subscription_id
    AND newer.release_id = ports.release_id AND newer.key <> ports.key
    AND (newer.created_at > ports.created_at
         OR (newer.created_at = ports.created_at AND newer.key > ports.key)))"""
FILLED = {
    "bases": {"rule": "'ref'", "head_repo": "repo", "head_ref": "ref"},
    "releases": {
        column: BASE.format(of, "releases")
        for column, of in (
            ("repo", "repo"), ("from_repo", "repo"), ("ref", "ref"), ("from_ref", "ref")
        )
    },
    "subscriptions": {
        "from_repo": BASE.format("repo", "subscriptions"),
        "settled_repo": BASE.format("repo", "subscriptions"),
        "settled_sha": SETTLED,
    },
    "ports": {"due_at": "updated_at"},
}  # fmt: skip
NULLABLE = {
    *("bases.looked_at", "bases.changed_at", "bases.due_at", "bases.doubted_sha"),
    *("bases.doubted_at", "releases.due_at", "subscriptions.manners", "subscriptions.paused_at"),
    *("subscriptions.group_name", "ports.verdict", "ports.made", "ports.published_at"),
}


def upgrade() -> None:
    op.execute(TWICE)
    for table, columns in ADDED.items():
        for column in columns:
            op.add_column(
                table, sa.Column(column.name, column.type, server_default=column.server_default)
            )
    _fill()
    for table, columns in ADDED.items():
        with op.batch_alter_table(table) as batch:
            for column in columns:
                if f"{table}.{column.name}" not in NULLABLE:
                    batch.alter_column(
                        column.name,
                        existing_type=column.type,
                        nullable=False,
                        server_default=None,
                    )
    with op.batch_alter_table("patches") as batch:
        batch.drop_index("ix_patches_repo")
        batch.create_index("ix_patches_owner", ["owner"])
    with op.batch_alter_table("bases") as batch:
        batch.drop_constraint("uq_bases_repo_ref", type_="unique")
        batch.create_unique_constraint("uq_bases_rule_repo_ref", ["rule", "repo", "ref"])
        batch.create_index("ix_bases_repo", ["repo"])
        batch.create_index("ix_bases_due_at", ["due_at"])
    with op.batch_alter_table("releases") as batch:
        batch.drop_constraint("uq_releases_base_id_sha", type_="unique")
        batch.create_index("ix_releases_base_id_id", ["base_id", "id"])
    if op.get_bind().dialect.name == "postgresql":  # in the order of bytes, as SQLite has it
        op.alter_column("subscriptions", "to_repo", type_=sa.String(collation="C"))
    with op.batch_alter_table("subscriptions") as batch:
        batch.create_index("ix_subscriptions_to_repo", ["to_repo"])
    with op.batch_alter_table("ports") as batch:
        batch.create_unique_constraint(
            "uq_ports_subscription_id_release_id", ["subscription_id", "release_id"]
        )
        batch.create_index("ix_ports_release_id_subscription_id", ["release_id", "subscription_id"])
        batch.create_index("ix_ports_state_due_at", ["state", "due_at"])
    _partial("ix_releases_unclassified", "releases", ["id"], "change IS NULL")
    active = ["base_id", "settled_repo", "settled_sha", "created_at", "id", "ended_at"]
    _partial("ix_subscriptions_active", "subscriptions", active, "ended_at IS NULL")
    named = ["base_id", "group_name"]
    _partial("ix_subscriptions_grouped", "subscriptions", named, "group_name IS NOT NULL")
    op.create_table(
        "events",
        sa.Column("id", sa.Integer(), nullable=False),
        sa.Column("port_key", sa.String(64), nullable=False),
        sa.Column("at", sa.DateTime(), nullable=False),
        sa.Column("attempt", sa.Integer(), nullable=False),
        sa.Column("step", sa.String()),
        sa.Column("blame", sa.String()),
        sa.Column("text", sa.String(), nullable=False),
        sa.ForeignKeyConstraint(["port_key"], ["ports.key"], name="fk_events_port_key_ports"),
        sa.PrimaryKeyConstraint("id", name="pk_events"),
    )
    op.create_index("ix_events_port_key", "events", ["port_key"])
    op.create_table(
        "workers",
        sa.Column("id", sa.String(64), nullable=False),
        sa.Column("started_at", sa.DateTime(), nullable=False),
        sa.Column("pulse_at", sa.DateTime(), nullable=False),
        sa.PrimaryKeyConstraint("id", name="pk_workers"),
    )
    op.create_table(
        "controls",
        sa.Column("name", sa.String(32), nullable=False),
        sa.Column("value", sa.JSON(), nullable=False),
        sa.Column("set_at", sa.DateTime(), nullable=False),
        sa.PrimaryKeyConstraint("name", name="pk_controls"),
    )


def downgrade() -> None:
    for table in ("controls", "workers", "events"):
        op.drop_table(table)
    for index, table in (
        ("ix_subscriptions_grouped", "subscriptions"),
        ("ix_subscriptions_active", "subscriptions"),
        ("ix_releases_unclassified", "releases"),
    ):
        op.drop_index(index, table)
    with op.batch_alter_table("ports") as batch:
        batch.drop_index("ix_ports_state_due_at")
        batch.drop_index("ix_ports_release_id_subscription_id")
        batch.drop_constraint("uq_ports_subscription_id_release_id", type_="unique")
    with op.batch_alter_table("subscriptions") as batch:
        batch.drop_index("ix_subscriptions_to_repo")
    if op.get_bind().dialect.name == "postgresql":
        op.alter_column("subscriptions", "to_repo", type_=sa.String())
    with op.batch_alter_table("releases") as batch:
        batch.drop_index("ix_releases_base_id_id")
        batch.create_unique_constraint("uq_releases_base_id_sha", ["base_id", "sha"])
    with op.batch_alter_table("bases") as batch:
        batch.drop_index("ix_bases_due_at")
        batch.drop_index("ix_bases_repo")
        batch.drop_constraint("uq_bases_rule_repo_ref", type_="unique")
        batch.create_unique_constraint("uq_bases_repo_ref", ["repo", "ref"])
    with op.batch_alter_table("patches") as batch:
        batch.drop_index("ix_patches_owner")
        batch.create_index("ix_patches_repo", ["repo"])
    for table, columns in ADDED.items():
        with op.batch_alter_table(table) as batch:
            for column in columns:
                batch.drop_column(column.name)


def _fill() -> None:
    if op.get_bind().dialect.name == "sqlite":
        owner = "substr(repo, 1, instr(repo, '/') - 1)"
    else:
        owner = "split_part(repo, '/', 1)"
    for table, columns in (FILLED | {"patches": {"owner": owner}}).items():
        for column, value in columns.items():
            op.execute(f"UPDATE {table} SET {column} = {value}")


def _partial(name: str, table: str, columns: list[str], where: str) -> None:
    condition = sa.text(where)
    op.create_index(name, table, columns, sqlite_where=condition, postgresql_where=condition)
