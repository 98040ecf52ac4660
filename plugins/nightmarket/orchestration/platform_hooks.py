"""The hook classes that Airflow's connection form wants: they answer the form's test button with our own check."""

import asyncio
from typing import Any

from airflow.sdk import BaseHook

from nightmarket.orchestration.connection_types import FORMS, class_name, connection_type


class PlatformHook(BaseHook):
    """An account of one platform. Tasks do not use it: they read credentials through nightmarket.settings."""

    platform = ""
    conn_name_attr = "conn_id"
    default_conn_name = "nightmarket_default"
    conn_type = ""
    hook_name = ""

    def __init__(self, conn_id: str = default_conn_name, **_ignored: Any) -> None:
        super().__init__()
        self.conn_id = conn_id

    def test_connection(self) -> tuple[bool, str]:
        """(does it work, one sentence). Reads nothing but the account's own name; the options are those of its source."""
        from nightmarket.channels.registry import CHANNELS
        from nightmarket.channels.sms import SmsChannel, check
        from nightmarket.orchestration.hooks import airflow_credentials
        from nightmarket.platforms.base import PlatformError, Transport
        from nightmarket.settings import ConfigError
        from nightmarket.sources import PLATFORMS, load_sources

        channel, module = CHANNELS.get(self.platform), PLATFORMS.get(self.platform)
        if module is None:
            return False, "this account is written to, not read: a dry run of a campaign shows whether it works"
        try:
            if channel is not None and issubclass(channel, SmsChannel):  # sending is what its key is for
                return True, asyncio.run(check(channel, airflow_credentials(self.conn_id)))
            config = next((one for one in load_sources().values() if one.conn_id == self.conn_id), None)
            options = config.settings if config else module.Options()
            transport = Transport(self.platform, max_requests=20, max_seconds=60)
            client = module.connect(airflow_credentials(self.conn_id), transport, options=options)
            return True, module.check(client, list(config.streams) if config else []).sentence()
        except (PlatformError, ConfigError, ValueError) as error:
            return False, str(error)


def _hook(platform: str) -> type[PlatformHook]:
    attributes = {
        "platform": platform,
        "conn_type": connection_type(platform),
        "hook_name": FORMS[platform].name,
        "default_conn_name": f"{platform}_default",
    }
    return type(class_name(platform), (PlatformHook,), attributes)


globals().update({class_name(platform): _hook(platform) for platform in FORMS})
