"""Migrations build the house; roles can do what they may and nothing else."""

import psycopg
import pytest

from nightmarket.privacy import Keyring, Tokenizer, erase, open_secrets, store_secrets
from nightmarket.warehouse import connect, connect_vault, migrate


def test_migrating_again_changes_nothing(environment: str) -> None:
    migrate()
    with connect() as connection:
        version = connection.execute("SELECT version_num FROM ops.schema_version").fetchall()
    assert len(version) == 1


def test_the_loading_role_can_fill_the_vault_but_not_read_it(environment: str) -> None:
    tokens = Tokenizer.from_settings()
    token = tokens.token("phone", "100 0000 0001")
    with connect() as connection:
        assert store_secrets(connection, tokens.secrets, Keyring.from_settings()) == 1
        assert store_secrets(connection, tokens.secrets, Keyring.from_settings()) == 0
    with connect() as connection, pytest.raises(psycopg.errors.InsufficientPrivilege):
        open_secrets(connection, [token], Keyring.from_settings())
    with connect_vault() as connection:
        assert open_secrets(connection, [token], Keyring.from_settings()) == {token: "100 0000 0001"}
        assert erase(connection, [token], actor="test", reason="asked by the person").secrets == 1
    with connect_vault() as connection:
        assert open_secrets(connection, [token], Keyring.from_settings()) == {}
        assert connection.execute("SELECT count(*) AS n FROM push.audit_log WHERE action = 'erase'").fetchone() == {
            "n": 1
        }
