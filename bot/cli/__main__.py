"""`python -m bot.cli` is `portllm`."""

from bot.cli import main

main()
