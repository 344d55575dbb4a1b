"""A port on its way into its repo: cards, one commit or a pull request, large files one by one."""
