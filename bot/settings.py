"""Settings, from the environment: PORTLLM_ and the name of a field, in capitals.

The Hub's own HF_ENDPOINT, HF_TOKEN and HF_HOME are read by huggingface_hub, as everywhere.
"""

import os
import re
import socket
from functools import cached_property
from pathlib import Path
from uuid import uuid4

from pydantic import Field, SecretStr
from pydantic_settings import BaseSettings, SettingsConfigDict


class Settings(BaseSettings):
    # Where systemd puts credentials: a secret need not be in the environment.
    model_config = SettingsConfigDict(
        env_prefix="PORTLLM_", secrets_dir=os.environ.get("CREDENTIALS_DIRECTORY")
    )

    home: Path = Field(
        default_factory=lambda: Path.home() / ".local/share/portllm",
        description="Where the registry, the bot's memory and its work folders live.",
    )
    database_url: str | None = Field(
        default=None,
        description="`postgresql://...`, for many workers; SQLite files in `home` if unset.",
    )
    poll_seconds: float = Field(
        default=300.0,
        gt=0,
        description="Seconds between two looks at a base that has just moved, at least.",
    )
    pushes_per_hour: int = Field(
        default=60, gt=0, description="Ports that are pushed to the Hub per hour, at most."
    )
    signing_key: Path | None = Field(
        default=None,
        description="The PEM file of an elliptic-curve private key: every port is signed with it.",
    )
    showcase: str | None = Field(
        default=None, description="The user or organisation that shows the registry on the Hub."
    )
    showcase_seconds: float = Field(
        default=3600.0, gt=0, description="Seconds between two times that this is kept current."
    )
    owners: str = Field(
        default="",
        description="Whose portllm.yaml is obeyed: accounts by comma, or *; its own if unset.",
    )
    onboard: bool = Field(
        default=False, description="Propose a portllm.yaml where a patch asks for one by its tag."
    )
    api_token: SecretStr | None = Field(
        default=None, description="What shows private patches, and changes things, under /api."
    )
    webhook_secret: SecretStr | None = Field(
        default=None, description="What the Hub says with its events, so that we know them."
    )
    notify_secret: SecretStr | None = Field(
        default=None, description="The key by which JSON notices are signed."
    )
    notify_private: bool = Field(
        default=False, description="Notices may go to private addresses, and unencrypted to here."
    )

    @property
    def served(self) -> list[str]:
        """The accounts in `owners`."""
        return [name.strip() for name in self.owners.split(",") if name.strip()]

    @property
    def is_shared(self) -> bool:
        """Whether other processes, on other machines, may work on the same records."""
        return self.registry_url.startswith("postgresql")

    @property
    def registry_url(self) -> str:
        if self.database_url is None:
            return f"sqlite:///{self.home / 'registry.db'}"
        return re.sub(r"^postgres(ql)?://", "postgresql+psycopg://", self.database_url)

    @property
    def memory_url(self) -> str:
        """Where DBOS keeps the state of its workflows."""
        return self.registry_url if self.is_shared else f"sqlite:///{self.home / 'workflows.db'}"

    @cached_property
    def worker(self) -> str:
        """The name of this process among the workers; alone, it is its own successor."""
        return f"{socket.gethostname()[:40]}-{uuid4().hex[:12]}" if self.is_shared else "local"

    @property
    def lm_eval(self) -> Path:
        """Where the data of lm-eval's own tasks are kept."""
        return self.home / "lm-eval"

    @property
    def scratch(self) -> Path:
        """What this process alone needs, and nobody after it."""
        return self.home / "scratch" / self.worker

    def work(self, key: str) -> Path:
        """The folder in which the port `key` is made."""
        return self.home / "work" / key
