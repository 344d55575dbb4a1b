"""Settings, from the environment: PORTLLM_HOME, PORTLLM_DATABASE_URL, PORTLLM_POLL_SECONDS.

The Hub's own HF_ENDPOINT, HF_TOKEN and HF_HOME are read by huggingface_hub, as everywhere.
"""

from pathlib import Path

from pydantic import Field
from pydantic_settings import BaseSettings, SettingsConfigDict


class Settings(BaseSettings):
    model_config = SettingsConfigDict(env_prefix="PORTLLM_")

    home: Path = Field(
        default_factory=lambda: Path.home() / ".local/share/portllm",
        description="Where the registry, the bot's memory and its work folders live.",
    )
    database_url: str | None = Field(
        default=None, description="The registry's SQLAlchemy URL; a SQLite file in `home` if unset."
    )
    poll_seconds: float = Field(
        default=300.0, gt=0, description="Seconds between two looks at a followed base."
    )

    @property
    def registry_url(self) -> str:
        return self.database_url or f"sqlite:///{self.home / 'registry.db'}"

    @property
    def memory_url(self) -> str:
        """Where DBOS keeps the state of its workflows."""
        return f"sqlite:///{self.home / 'workflows.db'}"

    @property
    def lm_eval(self) -> Path:
        """Where the data of lm-eval's own tasks are kept."""
        return self.home / "lm-eval"

    def work(self, key: str) -> Path:
        """The folder in which the port `key` is made."""
        return self.home / "work" / key
